"""Functions as services of a Docker Swarm."""

from .provider import SwarmProvider

__all__ = ["SwarmProvider"]
