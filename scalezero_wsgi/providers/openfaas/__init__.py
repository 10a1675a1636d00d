"""Functions of an OpenFaaS gateway, faas-netes or faasd."""

from .provider import OpenFaaSProvider

__all__ = ["OpenFaaSProvider"]
