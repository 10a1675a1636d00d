"""What happened, as small frozen dataclasses, and the hooks that are told.

A hook is any callable that takes an event. It is called in the thread in which the thing happened, so it
should be quick; what it raises is logged and forgotten. The warm path has no events: it costs too
little for that.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ._lib.bounded import Bounded
from .model import Function

logger = logging.getLogger("scalezero_wsgi")

_QUIET = 60.0
"""Seconds for which the same line about the same function is not logged again."""

CALLS_LOGGED = 100
"""Calls about one function of which a line each is written in a minute."""


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
class RequestRefused(FunctionEvent):
    """A request was answered with 503 although its function might have come up.

    :param reason: why, in words that name no function: ``"no place to wait"``, ``"the worker stops"``.
    """

    reason: str


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
        case RequestRefused(function, reason):
            return logging.WARNING, f"{function}: refused a request: {reason}"
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

    Of the troubles of one kind with one function one line a minute is written, with a count of the others.
    Of the provider's, and of requests refused for one reason, there is one line for all functions: these
    names may be a client's invention. An outage in which functions are served all the same is one line when
    it begins and one when it ends: what fails for these functions meanwhile is not logged.
    """

    __slots__ = ("_clock", "_outage_at", "_seen", "_served")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outage_at = -math.inf  # when an outage that was logged was heard of last
        self._served: Bounded[Function, bool] = Bounded(10_000)
        self._seen: Bounded[tuple[type[Event], Function | str], tuple[float, int]] = Bounded(10_000)

    def __call__(self, event: Event) -> None:
        """Log the event."""
        level, line = _describe(event)
        if level > logging.INFO and self._is_of_an_outage(event):
            return
        if level > logging.INFO and isinstance(event, FunctionEvent):
            key = type(event), _subject(event)
            now = self._clock()
            until, unsaid = self._seen.get(key) or (now, 0)
            if now < until:
                self._seen.set(key, (until, unsaid + 1))
                return
            self._seen.set(key, (now + _QUIET, 0))
            if unsaid:
                line = f"{line} (and {unsaid} times before, not logged)"
        logger.log(level, "%s", _one_line(line))

    def _is_of_an_outage(self, event: Event) -> bool:
        """Return whether the event says no more than the line about an outage that was logged already."""
        now, heard_at = self._clock(), self._outage_at
        match event:
            case OutageBegan(function):
                self._served.set(function, True)
                self._outage_at = now
                return now <= heard_at + _QUIET
            case OutageEnded(function):
                self._served.pop(function)
                self._outage_at = -math.inf
                return heard_at == -math.inf
            case ProviderFailed(function) if self._served.get(function):
                self._outage_at = now
                return True
            case _:
                return False


def _subject(event: FunctionEvent) -> Function | str:
    match event:
        case ProviderFailed() | OutageBegan() | OutageEnded():
            return type(event).__name__
        case RequestRefused():
            return event.reason
        case _:
            return event.function


def _one_line(text: str) -> str:
    """Join the lines of a text: a function's output must not look like lines of the log's own."""
    return " | ".join(text.splitlines())


class CallLog:
    """Writes under the id of a call what its client was not told. Safe for threads.

    A function that many ask for fails them all for the same reason: of each, ``CALLS_LOGGED`` calls a minute
    have a line. A line that comes after others were left out says how many.
    """

    __slots__ = ("_calls", "_clock")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: Bounded[Function | None, tuple[float, int]] = Bounded(10_000)

    def __call__(self, call_id: str, function: Function | None, line: str) -> None:
        """Log the line.

        :param function: with which ones the call is counted; ``None``: with those that failed of the
            provider, for which a client may have invented the function's name.
        """
        now = self._clock()
        left_out = 0

        def count(calls: tuple[float, int] | None) -> tuple[float, int]:
            nonlocal left_out
            until, number = calls or (now + _QUIET, 0)
            if now < until:
                left_out = 0
                return until, number + 1
            left_out = max(0, number - CALLS_LOGGED)
            return now + _QUIET, 1

        _, number = self._calls.change(function, count)
        if number > CALLS_LOGGED:
            return
        more = f" ({left_out} calls before, not logged)" if left_out else ""
        logger.warning("call %s: %s%s", call_id, _one_line(line), more)


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
