"""Functions as local commands."""

from .config import ProcessFunction, Ready, Stop
from .provider import ProcessProvider

__all__ = ["ProcessFunction", "ProcessProvider", "Ready", "Stop"]
