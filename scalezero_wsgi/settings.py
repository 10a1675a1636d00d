"""The middleware's settings: one frozen dataclass, from keywords, a mapping or the environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from .durations import seconds
from .events import Hook
from .function_cache import MAXSIZE
from .model import InvalidFunctionName, SettingError
from .routing import NAME_RULES, Names

if TYPE_CHECKING:
    from .routing import Route

Duration = float | str
"""Seconds, or a string such as ``"250ms"``, ``"10m30s"`` or ``"1h"``."""


class SettingKeywords(TypedDict, total=False):
    """The settings as keyword arguments; :class:`Settings` says what they mean."""

    route: str | Route
    default_namespace: str
    names: str
    cache_expiry: Duration
    stale_for: Duration
    missing_expiry: Duration
    cache_size: int
    max_wait: Duration
    replay: bool
    hooks: tuple[Hook, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Durations may be given as strings such as ``"250ms"``; they are seconds once the object is made.

    :param route: the path under which functions are, or a callable
        ``environ -> (name, namespace) | None``.
    :param default_namespace: of functions that are named without one.
    :param names: which names are allowed: ``"dns"`` or ``"openfaas"`` (wider).
    :param cache_expiry: for how long a replica count counts as fresh.
    :param stale_for: for how long after that it may still be served, while one refresh runs behind it.
    :param missing_expiry: for how long an unknown function is remembered as unknown.
    :param cache_size: how many functions are remembered.
    :param max_wait: for how long one request is held. Below gunicorn's time-out of 30 s on purpose.
    :param replay: whether a safe request that met a function at zero is passed down once more.
    :param hooks: callables that are told every event.
    :raises SettingError: a value is not allowed; it names the setting, the value and what is.
    """

    route: str | Route = "/function/"
    default_namespace: str = ""
    names: str = "dns"
    cache_expiry: float = 0.25
    stale_for: float = 5.0
    missing_expiry: float = 1.0
    cache_size: int = MAXSIZE
    max_wait: float = 25.0
    replay: bool = True
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, _READERS[field.name](value))
            except ValueError as error:
                raise SettingError(f"{field.name}: {error}") from None
        try:
            Names(self.names, self.default_namespace)
        except InvalidFunctionName:
            raise SettingError(
                f"default_namespace: {self.default_namespace!r} is not allowed;"
                f" it must be a name by the rule {self.names!r}"
            ) from None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], prefix: str = "SCALEZERO_") -> Settings:
        """Read the keys that begin with ``prefix``, such as Flask's ``app.config`` holds them.

        Names are the settings' own, in upper or lower case. With an empty prefix every key is read, as
        of Django's ``settings.SCALEZERO``.

        :raises SettingError: a name is unknown or a value is not allowed.
        """
        known = [field.name for field in fields(cls)]
        chosen: dict[str, Any] = {}
        for key, value in mapping.items():
            if not key.startswith(prefix):
                continue
            name = key[len(prefix) :].lower()
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {prefix}{near[0].upper() if prefix else near[0]}?" if near else ""
                raise SettingError(f"{key} is not a setting{hint} (there are: {', '.join(known)})")
            chosen[name] = value
        return cls(**chosen)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read ``SCALEZERO_*`` from the process environment.

        A name that resembles none of the settings' is somebody else's: Kubernetes, for one, sets
        ``SCALEZERO_PORT`` and others for a service called scalezero.

        :raises SettingError: a name is a setting's misspelt, or a value is not allowed.
        """
        names = [f"SCALEZERO_{field.name.upper()}" for field in fields(cls)]
        environ = os.environ if environ is None else environ
        ours = {key: environ[key] for key in environ if difflib.get_close_matches(key, names, cutoff=0.85)}
        return cls.from_mapping(ours)


def _route(value: object) -> object:
    if callable(value):
        return value
    if isinstance(value, str) and value.startswith("/"):
        return value if value.endswith("/") else value + "/"
    raise ValueError(f"{value!r} is not allowed; it must be a path that begins with '/', or a callable")


def _names(value: object) -> object:
    if isinstance(value, str) and value in NAME_RULES:
        return value
    raise ValueError(f"{value!r} is not allowed; it must be one of {', '.join(map(repr, NAME_RULES))}")


def _namespace(value: object) -> object:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not allowed; it must be a string")


def _positive_duration(value: object) -> float:
    duration = seconds(value)
    if duration == 0:
        raise ValueError(f"{value!r} is not allowed; it must be more than 0 seconds")
    return duration


def _count(value: object) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError(f"{value!r} is not allowed; it must be an integer of 1 or more")


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    switch = {"1": True, "true": True, "yes": True, "on": True}
    switch |= {"0": False, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.strip().lower() in switch:
        return switch[value.strip().lower()]
    raise ValueError(f"{value!r} is not allowed; it must be true or false")


def _hooks(value: object) -> tuple[Hook, ...]:
    if isinstance(value, (tuple, list)) and all(callable(hook) for hook in value):
        return tuple(value)
    raise ValueError(f"{value!r} is not allowed; it must be a list of callables that take an event")


_READERS: dict[str, Callable[[object], object]] = {
    "route": _route,
    "default_namespace": _namespace,
    "names": _names,
    "cache_expiry": seconds,
    "stale_for": seconds,
    "missing_expiry": seconds,
    "cache_size": _count,
    "max_wait": _positive_duration,
    "replay": _switch,
    "hooks": _hooks,
}
