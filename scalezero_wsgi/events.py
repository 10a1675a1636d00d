"""Events, as small frozen dataclasses, and the hooks that receive them.

A hook is any callable that takes an event. It is called in the thread in which the event happened, so
it must not block. If it raises, that is logged and has no other effect. The warm path has no events: they
would slow it down too much.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

from ._lib.bounded import Bounded
from .model import Function

logger = logging.getLogger("scalezero_wsgi")

_QUIET = 60.0
"""Seconds for which the same line about the same function is not logged again."""

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")

CALLS_LOGGED = 100
"""How many calls of one function are logged in a minute."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True, slots=True)
class FunctionEvent(Event):
    """Something that happened to a function."""

    function: Function


@dataclass(frozen=True, slots=True)
class StatusQueried(FunctionEvent):
    """An activation has its first answer: from the provider, or from the worker that leads it.

    Each worker says so for its own flights, and of a function that exists only.

    :ivar led: whether this worker leads the activation.
    """

    replicas: int
    available: int
    led: bool = True


@dataclass(frozen=True, slots=True)
class ScaleRequested(FunctionEvent):
    """The provider accepted a new replica count.

    :ivar took: for how many seconds it was called; one that starts a process may be up since the beginning.
    """

    before: int
    replicas: int
    took: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class FunctionReady(FunctionEvent):
    """A replica became available, ``after`` seconds after the activation began.

    Each worker in which requests waited for it says so.

    :ivar led: whether this is the worker that started it; there is one in the fleet.
    """

    after: float
    led: bool = True


@dataclass(frozen=True, slots=True)
class WaitGivenUp(FunctionEvent):
    """A request was held for ``after`` seconds and got no replica.

    :ivar call_id: the ``X-Call-Id`` that its client was told.
    """

    after: float
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class StartFailed(FunctionEvent):
    """The function cannot start; it rests for ``retry_after`` seconds."""

    reason: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class ProviderFailed(FunctionEvent):
    """A call to the provider failed."""

    error: Exception


@dataclass(frozen=True, slots=True)
class OutageBegan(FunctionEvent):
    """The provider fails, but the function was last seen up and is still served."""

    error: Exception


@dataclass(frozen=True, slots=True)
class OutageEnded(FunctionEvent):
    """The provider answers again, after an outage of ``after`` seconds."""

    after: float


@dataclass(frozen=True, slots=True)
class RequestRefused(FunctionEvent):
    """A request was answered with 503 although its function might have come up.

    :param reason: why, in words that name no function: ``"no place to wait"``, ``"the worker stops"``.
    :ivar call_id: the ``X-Call-Id`` that its client was told.
    """

    reason: str
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class RequestReplayed(FunctionEvent):
    """A safe request found the function at zero and is passed down once more.

    :ivar call_id: its own ``X-Call-Id``, or one that its client is told only if it fails after all.
    """

    waited: float
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class FunctionIdle(FunctionEvent):
    """The function has been idle for so many seconds, and would be stopped but for ``dry_run``."""

    idle_for: float


@dataclass(frozen=True, slots=True)
class FunctionStopped(FunctionEvent):
    """The function is at zero; this took ``after`` seconds from the decision on.

    :ivar reason: ``"idle"``; ``"evicted"``, for another one's room; ``"by_hand"``; ``"changed"``: it is to
        start with other settings; ``"exit"``: the server ends.
    :ivar late: of an idle one, how many seconds it had been idle for beyond ``idle_after`` at that decision.
    """

    after: float
    reason: str = "idle"
    late: float | None = None


@dataclass(frozen=True, slots=True)
class FunctionPaused(FunctionEvent):
    """The function was idle and is paused; this took ``after`` seconds from the decision on.

    :ivar late: see :class:`FunctionStopped`.
    """

    after: float
    late: float | None = None


@dataclass(frozen=True, slots=True)
class DrainCancelled(FunctionEvent):
    """The function was to be stopped, and is not, for ``reason``."""

    reason: str


@dataclass(frozen=True, slots=True)
class StopRefused(FunctionEvent):
    """The provider did not scale the unused function to zero; the next try is in ``retry_after`` seconds."""

    reason: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class FunctionContested(FunctionEvent):
    """Somebody else undoes what is done with the function here, again and again; ``reason`` says what. It is
    left alone for ``retry_after`` seconds, but for its requests."""

    reason: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class KeptWarm(FunctionEvent):
    """The function is started for its hours (``keep_warm``), or would be but for ``dry_run``.

    :ivar begins_in: in how many seconds they begin; negative within them.
    """

    begins_in: float
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class FunctionQueued(FunctionEvent):
    """The function's start waits its turn, for there is no room in the budget."""


@dataclass(frozen=True, slots=True)
class FunctionEvicted(FunctionEvent):
    """The function was stopped, for ``room_for`` needs its room."""

    room_for: Function


@dataclass(frozen=True, slots=True)
class BudgetOff(Event):
    """Starts are not kept within a budget here, for ``reason``."""

    reason: str


@dataclass(frozen=True, slots=True)
class IdlingOff(Event):
    """No function is scaled back to zero here, for ``reason``."""

    reason: str


@dataclass(frozen=True, slots=True)
class CoordinationLost(Event):
    """The workers' store cannot be used; this worker goes on alone."""

    error: Exception


@dataclass(frozen=True, slots=True)
class CoordinationRestored(Event):
    """The workers' store can be used again."""


Hook = Callable[[Event], None]


def as_dict(event: Event) -> dict[str, str | float | bool | None]:
    """Return an event as JSON has it: its kind under ``event``, such as ``"function_ready"``, and its fields.

    A function is ``"name"`` or ``"name.namespace"``, an error its text.
    """
    told: dict[str, str | float | bool | None] = {"event": kind_of(event)}
    for each in fields(event):
        value = getattr(event, each.name)
        told[each.name] = value if isinstance(value, str | float | int | None) else str(value)
    return told


def kind_of(event: Event) -> str:
    """Return the kind of an event in words, such as ``"function_ready"``."""
    return _CAPITAL.sub("_", type(event).__name__).lower()


def _describe(event: Event) -> tuple[int, str]:
    match event:
        case StatusQueried(function, replicas, available, _):
            return logging.DEBUG, f"{function}: {available} of {replicas} replicas available"
        case ScaleRequested(function, before, replicas, _):
            return logging.INFO, f"{function}: requested {before} → {replicas} replicas"
        case FunctionReady(function, after, _):
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
        case FunctionIdle(function, idle_for):
            return logging.INFO, f"{function}: idle for {idle_for:.0f} s, would be scaled to zero"
        case FunctionStopped(function, after, reason):
            return logging.INFO, f"{function}: {reason.replace('_', ' ')}, scaled to zero after {after:.3f} s"
        case FunctionPaused(function, after):
            return logging.INFO, f"{function}: idle, paused after {after:.3f} s"
        case DrainCancelled(function, reason):
            return logging.INFO, f"{function}: not scaled to zero: {reason}"
        case StopRefused(function, reason, retry_after):
            return logging.WARNING, f"{function}: stays up ({reason}); next try in {retry_after:.0f} s"
        case FunctionContested(function, reason, retry_after):
            return logging.WARNING, f"{function}: {reason}; left alone for {retry_after:.0f} s"
        case KeptWarm(function, begins_in, dry_run):
            done = "would be started" if dry_run else "started"
            when = f"begin in {begins_in:.0f} s" if begins_in > 0 else "have begun"
            return logging.INFO, f"{function}: {done} for its hours, which {when}"
        case FunctionQueued(function):
            return logging.INFO, f"{function}: waits for room in the budget"
        case FunctionEvicted(function, room_for):
            return logging.INFO, f"{function}: stopped to make room for {room_for}"
        case BudgetOff(reason):
            return logging.WARNING, f"no budget is kept: {reason}"
        case IdlingOff(reason):
            return logging.WARNING, f"no function is scaled back to zero: {reason}"
        case CoordinationLost(error):
            return logging.WARNING, f"the workers' store cannot be used, going on alone: {error}"
        case CoordinationRestored():
            return logging.WARNING, "the workers' store can be used again"
        case _:
            return logging.INFO, str(event)


class EventLog:
    """The hook that writes the log.

    It logs each kind of trouble with a function once a minute, and counts the lines that it leaves out. It
    logs the provider's failures, and refusals for the same reason, once a minute for all functions together,
    because clients can invent names. It logs an outage in which functions are still served when it begins and
    when it ends, but not the provider's failures for these functions in between.
    """

    __slots__ = ("_clock", "_outage_at", "_seen", "_served")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outage_at = -math.inf  # when a logged outage was last reported
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
        logger.log(level, "%s", line if line.isprintable() else _one_line(line))

    def _is_of_an_outage(self, event: Event) -> bool:
        """Return whether the line that was logged about an outage covers this event."""
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
    """Join the lines of a text, so that a function's output cannot pass for lines of the log."""
    return " | ".join(text.splitlines())


class CallLog:
    """Logs, with a call's id, what the client was not told. Safe for threads.

    The calls of a failing function mostly fail for the same reason, so only ``CALLS_LOGGED`` of them are
    logged in a minute. The first line after that says how many were left out.
    """

    __slots__ = ("_calls", "_clock")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: Bounded[Function | None, tuple[float, int]] = Bounded(10_000)

    def __call__(self, call_id: str, function: Function | None, line: str) -> None:
        """Log the line.

        :param function: the function whose calls this one is counted with; ``None`` for a failure of the
            provider, because a client may have invented the function's name.
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
    """Passes events to every hook, and logs a hook's exception, so that the request goes on."""

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
