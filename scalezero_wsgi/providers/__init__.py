"""Those who know replicas and change their number.

A provider's module is imported when it is first named, so that nobody pays for what he does not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .base import DoubtingProvider, ListingProvider, Provider, WatchingProvider

if TYPE_CHECKING:
    from .callback import CallbackProvider
    from .process import ProcessProvider

__all__ = [
    "CallbackProvider",
    "DoubtingProvider",
    "ListingProvider",
    "ProcessProvider",
    "Provider",
    "WatchingProvider",
]

_HOMES = {"CallbackProvider": "callback", "ProcessProvider": "process"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
