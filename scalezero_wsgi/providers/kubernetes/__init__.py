"""Functions as objects of Kubernetes that have the scale subresource."""

from .provider import KubernetesProvider

__all__ = ["KubernetesProvider"]
