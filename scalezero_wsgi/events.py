"""What happened, as small frozen dataclasses, and the hooks that are told.

A hook is any callable that takes an event. It is called in the thread in which the thing happened, so it
should be quick; what it raises is logged and forgotten. The warm path has no events: it costs too
little for that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .bounded import Bounded
from .model import Function

logger = logging.getLogger("scalezero_wsgi")

_QUIET = 60.0
"""Seconds for which the same line about the same function is not logged again."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a function."""

    function: Function


@dataclass(frozen=True, slots=True)
class ScaleRequested(Event):
    """The provider accepted a new replica count."""

    before: int
    replicas: int


@dataclass(frozen=True, slots=True)
class FunctionReady(Event):
    """A replica became available, ``after`` seconds from when it was first asked for."""

    after: float


@dataclass(frozen=True, slots=True)
class WaitGivenUp(Event):
    """A request was held for ``after`` seconds and got no replica."""

    after: float


@dataclass(frozen=True, slots=True)
class StartFailed(Event):
    """The function cannot start; it is left alone for ``retry_after`` seconds."""

    reason: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class ProviderFailed(Event):
    """A call to the provider failed."""

    error: Exception


@dataclass(frozen=True, slots=True)
class RequestReplayed(Event):
    """A safe request met the function at zero and is passed down once more."""

    waited: float


Hook = Callable[[Event], None]


def _describe(event: Event) -> tuple[int, str]:
    match event:
        case ScaleRequested(function, before, replicas):
            return logging.INFO, f"{function}: requested {before} → {replicas} replicas"
        case FunctionReady(function, after):
            return logging.INFO, f"{function}: ready after {after:.3f} s"
        case WaitGivenUp(function, after):
            return logging.WARNING, f"{function}: gave up after {after:.3f} s"
        case StartFailed(function, reason, retry_after):
            return logging.ERROR, f"{function}: cannot start ({reason}); next try in {retry_after:.0f} s"
        case ProviderFailed(function, error):
            return logging.ERROR, f"{function}: the provider failed: {error}"
        case RequestReplayed(function, waited):
            return logging.INFO, f"{function}: was at zero, passed down again after {waited:.3f} s"
        case _:
            return logging.INFO, f"{event.function}: {event}"


class EventLog:
    """The hook that writes the log.

    Of the troubles of one kind with one function one line a minute is written, with a count of the others;
    of the provider's, which are nobody's own, one line for all functions.
    """

    __slots__ = ("_clock", "_seen")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: Bounded[tuple[type[Event], Function | None], tuple[float, int]] = Bounded(10_000)

    def __call__(self, event: Event) -> None:
        """Log the event."""
        level, line = _describe(event)
        if level > logging.INFO:
            key = type(event), None if isinstance(event, ProviderFailed) else event.function
            now = self._clock()
            until, unsaid = self._seen.get(key) or (now, 0)
            if now < until:
                self._seen.set(key, (until, unsaid + 1))
                return
            self._seen.set(key, (now + _QUIET, 0))
            if unsaid:
                line = f"{line} (and {unsaid} times before, not logged)"
        logger.log(level, "%s", line)


class Reporter:
    """Tells every hook, and keeps their faults from the request."""

    __slots__ = ("_hooks",)

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._hooks = tuple(hooks)

    def __call__(self, event: Event) -> None:
        """Pass the event on."""
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                logger.exception("a hook failed on %r", event)
