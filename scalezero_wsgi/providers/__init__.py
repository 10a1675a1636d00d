"""Replica providers: they tell how many replicas a function has, and change that number.

A provider is given as an object, or chosen by name with keywords or by URL, see :func:`make_provider`. Its
module is imported when it is first named, so that nobody pays for one that they do not use.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from ..model import SettingError
from .base import DoubtingProvider, ListingProvider, NamespacedProvider, Provider, WatchingProvider

if TYPE_CHECKING:
    from .callback import CallbackProvider
    from .docker import DockerProvider
    from .kubernetes import KubernetesProvider
    from .openfaas import OpenFaaSProvider
    from .process import ProcessFunction, ProcessProvider, Ready, Stop
    from .swarm import SwarmProvider

__all__ = [
    "CallbackProvider",
    "DockerProvider",
    "DoubtingProvider",
    "KubernetesProvider",
    "ListingProvider",
    "NamespacedProvider",
    "OpenFaaSProvider",
    "ProcessFunction",
    "ProcessProvider",
    "Provider",
    "Ready",
    "Stop",
    "SwarmProvider",
    "WatchingProvider",
    "make_provider",
]

GROUP = "scalezero_wsgi.providers"
"""The entry point group for providers of other packages: a name, and a class that takes keywords and has a
class method ``from_url``."""

_MODULES = {
    "CallbackProvider": "callback",
    "DockerProvider": "docker",
    "KubernetesProvider": "kubernetes",
    "OpenFaaSProvider": "openfaas",
    "ProcessFunction": "process",
    "ProcessProvider": "process",
    "Ready": "process",
    "Stop": "process",
    "SwarmProvider": "swarm",
}

_NAMES = {
    "docker": "DockerProvider",
    "kubernetes": "KubernetesProvider",
    "openfaas": "OpenFaaSProvider",
    "process": "ProcessProvider",
    "swarm": "SwarmProvider",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def make_provider(which: str, **keywords: Any) -> Provider:
    """Make a provider by name or by URL.

    :param which: ``"docker"``, or a URL whose scheme begins with the name, such as ``"docker://"``,
        ``"kubernetes://?namespace=fn"`` or ``"openfaas+http://gateway:8080"``; of this package or of
        another one's entry point in the group ``scalezero_wsgi.providers``.
    :param keywords: of the provider's class; with a name only.
    :raises SettingError: there is no such provider, or the URL or a keyword is not allowed.
    :raises MissingExtra: the provider's library is not installed.
    """
    if "://" not in which and (which.endswith(".toml") or which.startswith(("/", "./", "../"))):
        url = f"process://{quote(str(Path(which).absolute()))}"
        raise SettingError(f"provider: {which!r} is a path, no name or URL; a file of functions is {url!r}")
    scheme, colon, _ = which.partition(":")
    provider = _class_of(scheme.partition("+")[0])
    if not colon:
        try:
            inspect.signature(provider).bind(**keywords)
        except TypeError as error:
            raise SettingError(f"provider {scheme}: {error}") from None
        return cast("Provider", provider(**keywords))
    if keywords:
        raise SettingError(f"provider {scheme}: a URL takes no keywords ({', '.join(keywords)})")
    return cast("Provider", provider.from_url(which))


def _class_of(name: str) -> Any:
    if name in _NAMES:
        return __getattr__(_NAMES[name])
    others = entry_points(group=GROUP)
    if name in others.names:
        return others[name].load()
    known = ", ".join(sorted({*_NAMES, *others.names}))
    raise SettingError(f"provider: there is none called {name!r}; there are: {known}")
