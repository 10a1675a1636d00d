"""The middleware's settings: one frozen dataclass, from keywords, a mapping or the environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

from ._lib.idle_action import STOP, IdleAction
from .activation.function_cache import MAXSIZE
from .coordination import Coordination
from .events import Hook
from .model import InvalidFunctionName, SettingError
from .setting_readers import READERS
from .web.routing import Names

if TYPE_CHECKING:
    from .web.access import Rule
    from .web.routing import Route

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
    max_running: int | None
    max_running_of: Mapping[str, int]
    max_memory: int | str | None
    max_memory_of: Mapping[str, int | str]
    min_uptime: Duration
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
    :param max_running: how many functions may be up or paused at once, in all workers that share a store;
        ``None``: as many as like. Another one's start waits until one can go that is not used.
    :param max_running_of: the same for groups of functions, such as ``{"gpu": 1}``. A function's label
        ``scalezero.budget`` names its group; it counts in ``max_running`` as well.
    :param max_memory: how much memory they may need together by their labels ``scalezero.memory``, which say
        it for each replica: bytes, or a string such as ``"8GiB"``. A function without the label needs none.
    :param max_memory_of: the same for groups.
    :param min_uptime: for how long a function has been up at least before it goes for another.
    :param expose_failures: whether clients are told why a function could not be started, its last lines of
        output included; for development.
    :param coordination: where the workers meet: a URL such as ``"sqlite:///path/of/file"`` or
        ``"redis://host:6379/0"``, or a :class:`~scalezero_wsgi.coordination.base.Coordination`. ``None``: the
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
    max_running: int | None = None
    max_running_of: Mapping[str, int] = field(default_factory=dict, hash=False)
    max_memory: int | None = None
    max_memory_of: Mapping[str, int] = field(default_factory=dict, hash=False)
    min_uptime: float = 30.0
    expose_failures: bool = False
    coordination: Coordination | None = None
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        waits_as_given = self.max_wait_of
        for setting in fields(self):
            value = getattr(self, setting.name)
            try:
                object.__setattr__(self, setting.name, READERS[setting.name](value))
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

    @property
    def has_budget(self) -> bool:
        """Whether it is limited what may be up at once."""
        alone = self.max_running is not None or self.max_memory is not None
        return alone or bool(self.max_running_of or self.max_memory_of)

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
    def from_environ(
        cls, environ: Mapping[str, str] | None = None, defaults: Mapping[str, Any] | None = None
    ) -> Settings:
        """Read ``SCALEZERO_*`` from the process environment.

        A name that resembles none of the settings' is somebody else's: Kubernetes, for one, sets
        ``SCALEZERO_PORT`` and others for a service called scalezero.

        :param defaults: settings by their names, where the environment says nothing.
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
        return cls.from_mapping(
            {f"SCALEZERO_{name.upper()}": value for name, value in (defaults or {}).items()} | ours
        )


def _hint(name: str, known: Sequence[str], prefix: str) -> str:
    near = difflib.get_close_matches(name, known)
    if not near:
        return f"there are: {', '.join(known)}"
    meant = [f"{prefix}{each.upper() if prefix else each}" for each in near]
    return f"did you mean {' or '.join(meant)}?"
