"""The middleware's settings: one frozen dataclass, from keywords, a mapping or the environment."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from ._lib.durations import seconds
from ._lib.idle_action import STOP, IdleAction, idle_action
from ._lib.readers import count, file, http_status, one_of, optional, positive_duration, rate, switch
from .activation.function_cache import MAXSIZE
from .coordination import Coordination, make_coordination
from .events import Hook
from .model import InvalidFunctionName, SettingError
from .schedule import schedule
from .web.access import request_rule
from .web.routing import NAME_RULES, Names

if TYPE_CHECKING:
    from .web.access import Rule
    from .web.routing import Route

T = TypeVar("T")

Duration = float | str
"""Seconds, or a string such as ``"250ms"``, ``"10m30s"`` or ``"1h"``."""


class SettingKeywords(TypedDict, total=False):
    """The settings as keyword arguments; :class:`Settings` says what they mean."""

    route: str | Route
    default_namespace: str
    names: str
    cache_expiry: Duration
    stale_for: Duration
    stale_if_error: Duration
    missing_expiry: Duration
    cache_size: int
    max_wait: Duration
    max_wait_of: Mapping[str, Duration]
    linger: Duration
    max_waiting: int | None
    max_waiting_per_function: int | None
    release_rate: float | None
    page_after: Duration | None
    page_template: str | None
    no_wake: Sequence[str | Rule] | Rule
    no_wake_status: int
    allow: Sequence[str] | None
    deny: Sequence[str]
    wake: Sequence[str] | None
    replay: bool
    idle_after: Duration | None
    idle_default: str
    idle_action: str
    keep_warm: str | None
    stream_idle_after: Duration | None
    keep_alive_max: Duration
    busy: Callable[[str, str], object] | None
    busy_cap: Duration
    dry_run: bool
    expose_failures: bool
    coordination: Coordination | str | None
    hooks: Sequence[Hook]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Durations may be given as strings such as ``"250ms"``; they are seconds once the object is made.

    :param route: the path under which functions are, or a callable
        ``environ -> (name, namespace) | None``.
    :param default_namespace: of functions that are named without one. ``""``: the provider's own namespace,
        if it has one.
    :param names: which names are allowed: ``"dns"`` or ``"openfaas"`` (wider).
    :param cache_expiry: for how long a replica count counts as fresh.
    :param stale_for: for how long after that it may still be served, while one refresh runs behind it.
    :param stale_if_error: for how long it may be served while the provider fails or is silent, unless the
        application could not reach the function since.
    :param missing_expiry: for how long an unknown function is remembered as unknown.
    :param cache_size: how many functions are remembered.
    :param max_wait: for how long one request is held. Below gunicorn's time-out of 30 s on purpose.
    :param max_wait_of: the same for single functions, by ``"name"`` or ``"name.namespace"``. The label
        ``scalezero.max-wait`` says it as well.
    :param linger: for how long a start is still watched, now and then, once nobody waits for it. The label
        ``scalezero.linger`` says it for one function.
    :param max_waiting: how many requests may wait in one process. By default 1,000 where they take no
        place of the server; elsewhere a quarter of its places, and one at least, stay free.
    :param max_waiting_per_function: how many of them for one function; by default as many.
    :param release_rate: after a start, how many of those that waited go on in a second; ``None``: all.
    :param page_after: after how long a person's browser gets the waking page; ``None``: never.
    :param page_template: the path of a page of your own in its place.
    :param no_wake: requests that never wake and never count as use: ``"path=…"``, ``"method=…"``,
        ``"user-agent=…"`` with ``*`` for any text, or callables that are given ``environ``; one callable may
        stand alone.
    :param no_wake_status: what such a request is answered when its function is at zero.
    :param allow: patterns of the functions that are served, such as ``"hello"``, ``"job-*"`` or ``"*.prod"``;
        ``None``: all. The others do not exist for clients: 404, and the provider is not asked.
    :param deny: patterns of functions that are not served, whatever ``allow`` says.
    :param wake: patterns of the functions that may be woken; ``None``: all. The others are served while they
        are up.
    :param replay: whether a safe request that met a function at zero is passed down once more.
    :param idle_after: after how long without use a function goes to zero; ``None``: never. Only where all
        workers meet, see ``coordination``.
    :param idle_default: which functions do: ``"labelled"``: those whose labels say so, ``"all"``: all that do
        not say otherwise.
    :param idle_action: what is done then: ``"stop"``, ``"pause"`` (it keeps its memory; for providers that
        can do that), or both such as ``"pause after 5m, stop after 1h"``. A time in the first step is taken
        for ``idle_after``.
    :param keep_warm: hours such as ``"Mon-Fri 08:00-18:00 Europe/Berlin"`` in which the functions that may
        go to zero are up: see :mod:`scalezero_wsgi.schedule`. Only with ``idle_after``. The label
        ``scalezero.keep-warm`` says it for one function.
    :param stream_idle_after: after how long without a byte a response, or a ``GET`` without an answer, does
        not count as use any more; ``None``: never.
    :param keep_alive_max: for how long at most a request may ask that its function stays up after it, by its
        header ``X-Scalezero-Keep-Alive``; 0: it is not heeded.
    :param busy: a callable that is given a function's name and namespace, and returns whether it is busy
        although it serves no request. The label ``scalezero.busy`` names a path that is asked instead.
    :param busy_cap: for how long a function counts as busy that cannot be asked.
    :param dry_run: whether it is only said which functions would go to zero.
    :param expose_failures: whether clients are told why a function could not be started, its last lines of
        output included; for development.
    :param coordination: where the workers meet: a URL, see
        :func:`~scalezero_wsgi.coordination.make_coordination`, or an object. ``None``: the
        workers of a gunicorn that starts with two or more, in a SQLite file in the directory for temporary
        files (Linux); under other servers each for itself, as with ``"memory://"``.
    :param hooks: callables that are told every event.
    :raises SettingError: a value is not allowed; it names the setting, the value and what is.
    :raises MissingExtra: a value needs a library that is not installed.
    """

    route: str | Route = "/function/"
    default_namespace: str = ""
    names: str = "dns"
    cache_expiry: float = 0.25
    stale_for: float = 5.0
    stale_if_error: float = 600.0
    missing_expiry: float = 1.0
    cache_size: int = MAXSIZE
    max_wait: float = 25.0
    max_wait_of: Mapping[str, float] = field(default_factory=dict, hash=False)
    linger: float = 60.0
    max_waiting: int | None = None
    max_waiting_per_function: int | None = None
    release_rate: float | None = None
    page_after: float | None = 2.0
    page_template: str | None = None
    no_wake: tuple[Rule, ...] = ()
    no_wake_status: int = 503
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    wake: tuple[str, ...] | None = None
    replay: bool = True
    idle_after: float | None = None
    idle_default: str = "labelled"
    idle_action: IdleAction = STOP
    keep_warm: str | None = None
    stream_idle_after: float | None = None
    keep_alive_max: float = 0.0
    busy: Callable[[str, str], object] | None = None
    busy_cap: float = 3600.0
    dry_run: bool = False
    expose_failures: bool = False
    coordination: Coordination | None = None
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        waits_as_given = self.max_wait_of
        for setting in fields(self):
            value = getattr(self, setting.name)
            try:
                object.__setattr__(self, setting.name, _READERS[setting.name](value))
            except ValueError as error:
                raise SettingError(f"{setting.name}: {error}") from None
        if self.idle_action.after is not None:
            object.__setattr__(self, "idle_after", self.idle_action.after)
        try:
            names = Names(self.names, self.default_namespace)
        except InvalidFunctionName:
            raise SettingError(
                f"default_namespace: {self.default_namespace!r} is not allowed;"
                f" it must be a name by the rule {self.names!r}"
            ) from None
        try:
            max_wait_of = {str(names.split(name)): duration for name, duration in self.max_wait_of.items()}
        except InvalidFunctionName as error:
            raise SettingError(f"max_wait_of: {waits_as_given!r} is not allowed: {error}") from None
        if len(max_wait_of) < len(self.max_wait_of):
            raise SettingError(
                f"max_wait_of: {waits_as_given!r} is not allowed: it names a function twice, for a name"
                f" without a namespace is in {self.default_namespace!r}"
            )
        object.__setattr__(self, "max_wait_of", max_wait_of)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], prefix: str = "SCALEZERO_") -> Settings:
        """Read the keys that begin with ``prefix``, such as Flask's ``app.config`` holds them.

        Names are the settings' own, in upper or lower case. With an empty prefix every key is read, as
        of Django's ``settings.SCALEZERO``.

        :raises SettingError: a name is unknown or a value is not allowed.
        """
        known = [setting.name for setting in fields(cls)]
        chosen: dict[str, Any] = {}
        for key, value in mapping.items():
            if not key.startswith(prefix):
                continue
            name = key[len(prefix) :].lower()
            if name not in known:
                raise SettingError(f"{key} is not a setting; {_hint(name, known, prefix)}")
            chosen[name] = value
        return cls(**chosen)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read ``SCALEZERO_*`` from the process environment.

        A name that resembles none of the settings' is somebody else's: Kubernetes, for one, sets
        ``SCALEZERO_PORT`` and others for a service called scalezero.

        :raises SettingError: a name is a setting's misspelt, or a value is not allowed.
        """
        names = [setting.name.upper() for setting in fields(cls)]
        environ = os.environ if environ is None else environ
        ours = {
            key: value
            for key, value in environ.items()
            # Without the prefix, which would make any two of them alike.
            if difflib.get_close_matches(key.removeprefix("SCALEZERO_"), names, cutoff=0.75)
            and key.startswith("SCALEZERO_")
        }
        return cls.from_mapping(ours)


def _hint(name: str, known: Sequence[str], prefix: str) -> str:
    near = difflib.get_close_matches(name, known)
    if not near:
        return f"there are: {', '.join(known)}"
    meant = [f"{prefix}{each.upper() if prefix else each}" for each in near]
    return f"did you mean {' or '.join(meant)}?"


# A segment that begins with a colon is another router's placeholder. In PATH_INFO there is no query, and
# nothing is percent-encoded; what is not ASCII is there as bytes of UTF-8, read as latin-1 (PEP 3333).
_ROUTE = re.compile(r"(?:/(?!\.{1,2}(?:/|$))(?!:)[-\w.~!$&'()+,;=:@\x80-\xff]+)*/?", re.ASCII)


def _route(value: object) -> object:
    if callable(value):
        return value
    if isinstance(value, str) and value.startswith("/") and _ROUTE.fullmatch(value):
        try:
            value.encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:
            meant = value.encode().decode("latin-1")
            raise ValueError(f"{value!r} is not allowed; as a server passes it on it is {meant!r}") from None
        return value if value.endswith("/") else value + "/"
    raise ValueError(
        f"{value!r} is not allowed; it must be a path such as '/function/', which begins with '/' and after"
        " which the function's name follows by itself (no '<name>', '{name}', ':name', '*', '?', '%' or"
        " space), or a callable"
    )


def _namespace(value: object) -> object:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not allowed; it must be a string")


def _durations(value: object) -> Mapping[str, float]:
    pairs: object = value
    if isinstance(value, str):
        pairs = dict(part.partition("=")[::2] for part in value.split(",") if part.strip())
    if isinstance(pairs, Mapping) and all(isinstance(name, str) for name in pairs):
        return {name.strip(): _part(positive_duration, pairs[name], value) for name in pairs}
    raise ValueError(
        f"{value!r} is not allowed; it must hold a duration for each function,"
        " as a mapping or as 'hello=40s,slow.dev=2m'"
    )


def _words(value: object) -> Sequence[object]:
    """Read a list, or a string of words with commas between, as the environment has it."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    if isinstance(value, (list, tuple)):
        return value
    raise ValueError(f"{value!r} is not allowed; it must be a list, or words with commas between")


def _part(read: Callable[[object], T], part: object, whole: object) -> T:
    """Read a part of a value; the error names the whole as well, as it stands in the configuration."""
    try:
        return read(part)
    except ValueError as error:
        raise ValueError(f"{whole!r} is not allowed: {error}") from None


def _rules(value: object) -> tuple[Rule, ...]:
    rules = [value] if callable(value) else _words(value)
    return tuple(_part(request_rule, rule, value) for rule in rules)


def _patterns(value: object) -> tuple[str, ...]:
    return tuple(_part(_pattern, pattern, value) for pattern in _words(value))


def _fence(value: object) -> tuple[str, ...] | None:
    if value == "":  # an empty variable must not open what was meant to be closed
        raise ValueError("'' is not allowed; it must be patterns of functions, or left out for all of them")
    return None if value is None else _patterns(value)


def _pattern(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError(f"{value!r} is not a function's name, perhaps with '*' for any text")


def _coordination(value: object) -> object:
    if isinstance(value, str):
        return make_coordination(value)
    missing = [method for method in _STORE if not callable(getattr(value, method, None))]
    if not missing:
        return value
    raise ValueError(
        f"{value!r} is not allowed; it must be a URL or a Coordination: it has no {missing[0]}()"
    )


_STORE = ("acquire", "renew", "release", "publish", "known", "changes", "report", "leave", "workers")


def _hours(value: object) -> object:
    schedule(value)
    return value


def _busy(value: object) -> object:
    if callable(value):
        return value
    raise ValueError(f"{value!r} is not allowed; it must be a callable of (name, namespace)")


def _hooks(value: object) -> tuple[Hook, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(_part(_hook, hook, value) for hook in value)
    raise ValueError(f"{value!r} is not allowed; it must be a list of callables that take an event")


def _hook(value: object) -> Hook:
    if callable(value):
        return value
    raise ValueError(f"{value!r} is not a callable that takes an event")


_READERS: dict[str, Callable[[object], object]] = {
    "route": _route,
    "default_namespace": _namespace,
    "names": one_of(*NAME_RULES),
    "cache_expiry": seconds,
    "stale_for": seconds,
    "stale_if_error": seconds,
    "missing_expiry": seconds,
    "cache_size": count,
    "max_wait": positive_duration,
    "max_wait_of": _durations,
    "linger": seconds,
    "max_waiting": optional(count),
    "max_waiting_per_function": optional(count),
    "release_rate": optional(rate),
    "page_after": optional(seconds),
    "page_template": optional(file),
    "no_wake": _rules,
    "no_wake_status": http_status,
    "allow": _fence,
    "deny": _patterns,
    "wake": _fence,
    "replay": switch,
    "idle_after": optional(positive_duration),
    "idle_default": one_of("labelled", "all"),
    "idle_action": idle_action,
    "keep_warm": optional(_hours),
    "stream_idle_after": optional(positive_duration),
    "keep_alive_max": seconds,
    "busy": optional(_busy),
    "busy_cap": seconds,
    "dry_run": switch,
    "expose_failures": switch,
    "coordination": optional(_coordination),
    "hooks": _hooks,
}
