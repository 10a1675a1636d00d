"""Functions as containers of a Docker Engine."""

from .provider import DockerProvider

__all__ = ["DockerProvider"]
