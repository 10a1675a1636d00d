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
    """Something that happened."""


@dataclass(frozen=True, slots=True)
class FunctionEvent(Event):
    """Something that happened to a function."""

    function: Function


@dataclass(frozen=True, slots=True)
class ScaleRequested(FunctionEvent):
    """The provider accepted a new replica count."""

    before: int
    replicas: int


@dataclass(frozen=True, slots=True)
class FunctionReady(FunctionEvent):
    """A replica became available, ``after`` seconds from when it was first asked for."""

    after: float


@dataclass(frozen=True, slots=True)
class WaitGivenUp(FunctionEvent):
    """A request was held for ``after`` seconds and got no replica."""

    after: float


@dataclass(frozen=True, slots=True)
class StartFailed(FunctionEvent):
    """The function cannot start; it is left alone for ``retry_after`` seconds."""

    reason: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class ProviderFailed(FunctionEvent):
    """A call to the provider failed."""

    error: Exception


@dataclass(frozen=True, slots=True)
class OutageBegan(FunctionEvent):
    """The provider fails; the function, which was last seen up, goes on being served."""

    error: Exception


@dataclass(frozen=True, slots=True)
class OutageEnded(FunctionEvent):
    """The provider answers again, ``after`` seconds."""

    after: float


@dataclass(frozen=True, slots=True)
class RequestReplayed(FunctionEvent):
    """A safe request met the function at zero and is passed down once more."""

    waited: float


@dataclass(frozen=True, slots=True)
class CoordinationLost(Event):
    """The store in which workers meet cannot be used; this one goes on alone."""

    error: Exception


@dataclass(frozen=True, slots=True)
class CoordinationRestored(Event):
    """The store can be used again."""


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
        case OutageBegan(function, error):
            return (
                logging.WARNING,
                f"the provider fails ({error}); functions last seen up go on being served, {function} first",
            )
        case OutageEnded(function, after):
            return logging.WARNING, f"the provider answers again after {after:.0f} s"
        case RequestReplayed(function, waited):
            return logging.INFO, f"{function}: was at zero, passed down again after {waited:.3f} s"
        case CoordinationLost(error):
            return logging.WARNING, f"the workers' store cannot be used, going on alone: {error}"
        case CoordinationRestored():
            return logging.WARNING, "the workers' store can be used again"
        case _:
            return logging.INFO, str(event)


class EventLog:
    """The hook that writes the log.

    Of the troubles of one kind with one function one line a minute is written, with a count of the others;
    of the provider's, which are nobody's own, one line for all functions. While functions are served in spite
    of a provider that fails, its failures are not logged: only the first, and that it answers again.
    """

    __slots__ = ("_clock", "_outage", "_seen")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outage = False
        self._seen: Bounded[tuple[type[Event], Function | None], tuple[float, int]] = Bounded(10_000)

    def __call__(self, event: Event) -> None:
        """Log the event."""
        level, line = _describe(event)
        if isinstance(event, (OutageBegan, OutageEnded)):
            if self._outage == isinstance(event, OutageBegan):
                return
            self._outage = isinstance(event, OutageBegan)
        elif isinstance(event, ProviderFailed) and self._outage:
            return
        elif level > logging.INFO and isinstance(event, FunctionEvent):
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
