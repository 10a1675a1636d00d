"""What one process remembers about one function. The parts are immutable and replaced as a whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .._lib.backoff import backoff_step
from ..coordination.base import Failure, SharedStatus, Start
from ..model import Function, FunctionFailed, ProviderError, ReplicaStatus

SETTLE = 2.0
"""Seconds to wait until the provider shows the count that was set, before setting it again."""

STABLE = 60.0
"""Seconds after a start within which the function's end counts as a failure of that start."""

REMEMBERED = 5
"""How many of a function's last starts are remembered with their durations."""

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class LastStart:
    """The last time that the function was started from zero, by a worker or by anything else that scales it.

    :ivar name: unique to this start in the whole fleet.
    :ivar shown: whether the provider has reported a count above zero since.
    :ivar up_at: the time of the first query that showed an available replica; ``None`` before that.
    """

    name: str
    at: float
    shown: bool = False
    up_at: float | None = None


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last failed start: the count of failures in a row, the start's name, and when the rest ends."""

    count: int
    start: str
    reason: str
    retry_at: float


class Outage(NamedTuple):
    """A provider's outage for a function: when it began, and when the provider may be asked again.

    :ivar silent: whether the last failure was that the provider did not answer.
    :ivar slow: whether it has answered since its last failure, but slowly.
    :ivar served: whether the function was served meanwhile.
    """

    error: ProviderError
    since: float
    failed_at: float
    failures: int
    retry_at: float
    silent: bool
    slow: bool = False
    served: bool = False


class FunctionState:
    """One function: its entry in the cache, its use, its starts, and its provider's outage.

    Safe for threads: attributes are replaced whole, and ``in_flight`` changes by ``add`` and ``discard``
    alone, which are atomic, with or without the GIL. Times are monotonic seconds.

    :ivar meta: the last status.
    :ivar missing_at: when the provider last said that it does not know the function.
    :ivar in_flight: one token for each request that the application is serving.
    :ivar last_used: when a request was last passed down.
    :ivar refuted_at: the time of the last query whose answer the application found wrong.
    :ivar confirmed_at: when the provider last repeated "available" for a suspect entry.
    :ivar paused_at: when it was first seen to be paused; minus infinity while it is not.
    :ivar durations: how long the last starts took, in seconds, the latest last.
    :ivar answered_in: how long the provider took for its last answer to this worker, in seconds.
    :ivar followed_at: when the provider was asked for the last answer that another worker published.
    :ivar outage: the provider's outage for the function, if there is one; see :mod:`.outages`.
    :ivar release_at: the last turn that was given to a request that waited for a start (``release_rate``).
    :ivar page_asked_at: when a waking page last asked this worker about a start in another one.
    """

    __slots__ = (
        *(
            "answered_in",
            "confirmed_at",
            "durations",
            "failure",
            "followed_at",
            "function",
            "in_flight",
            "last_used",
            "meta",
        ),
        *("missing_at", "outage", "page_asked_at", "paused_at", "refuted_at", "release_at", "start"),
    )

    def __init__(self, function: Function = Function("")) -> None:  # noqa: B008  immutable
        self.function = function
        self.meta: FunctionMeta | None = None
        self.missing_at = self.last_used = self.refuted_at = self.confirmed_at = NEVER
        self.release_at = self.page_asked_at = self.paused_at = self.followed_at = NEVER
        self.in_flight: set[object] = set()
        self.start: LastStart | None = None
        self.failure: LastFailure | None = None
        self.durations: tuple[float, ...] = ()
        self.answered_in = float("inf")
        self.outage: Outage | None = None

    def forget(self) -> None:
        """Drop the evicted entry. Callers that hold this object must look it up again."""
        self.meta = None

    # Starts

    def begin_start(self, now: float) -> None:
        """Note that a start was requested."""
        self.start = LastStart(uuid.uuid4().hex, now)

    def observe(self, status: ReplicaStatus, asked_at: float) -> None:
        """Note what an answer says about the last start. Call this before the answer becomes the entry.

        :param asked_at: when the provider was asked.
        """
        if not status.paused:
            self.paused_at = NEVER
        elif self.paused_at == NEVER:
            self.paused_at = asked_at
        start, before = self.start, self.meta
        available = status.available_replicas > 0
        if start is not None and start.up_at is None and asked_at >= start.at:
            shown = start.shown or status.replicas > 0
            up_at = asked_at if available else None
            if (shown, up_at) != (start.shown, start.up_at):
                self.start = replace(start, shown=shown, up_at=up_at)
        elif available and before is not None and self.came_up_at <= before.last_refresh < asked_at:
            if before.status.available_replicas == 0:  # not started by a worker
                self.start = LastStart(uuid.uuid4().hex, asked_at, shown=True, up_at=asked_at)

    @property
    def came_up_at(self) -> float:
        """The time at which the function was last seen to come up; minus infinity if never. Entries from
        before that time describe a replica that no longer exists."""
        start = self.start
        return NEVER if start is None or start.up_at is None else start.up_at

    @property
    def moved_at(self) -> float:
        """The time at which the function was last seen to come up or to be paused; minus infinity: never."""
        return max(self.came_up_at, self.paused_at)

    def unseen_start(self, now: float, within: float = STABLE) -> LastStart | None:
        """Return the start that was requested less than ``within`` seconds ago and that the provider does not
        show yet; ``None`` if there is none."""
        start, failure = self.start, self.failure
        if start is None or start.shown or now >= start.at + within:
            return None
        return start if failure is None or failure.start != start.name else None

    # Failed starts and the rest after them

    def refuse_while_resting(self, now: float) -> None:
        """Raise :class:`FunctionFailed` while the function rests after a failed start."""
        failure = self.failure
        if failure is not None and failure.retry_at > now:
            raise FunctionFailed(self.function, failure.reason, failure.retry_at - now)

    def fail_start(self, reason: str, now: float) -> None:
        """Note that the last start failed."""
        start = self.start
        self._fail(reason, uuid.uuid4().hex if start is None else start.name, now, now)

    def note_end(self, reason: str, now: float) -> bool:
        """Note that the function ended by itself: if that was soon after its start, the start failed.

        :return: whether it is a failed start that was not noted before.
        """
        start, failure = self.start, self.failure
        if start is None or now > start.at + STABLE or (failure is not None and failure.start == start.name):
            return False
        self._fail(reason, start.name, start.at, now)
        return True

    def _fail(self, reason: str, start: str, rest_from: float, now: float) -> None:
        """Note a failed start. Each further one in a row doubles the rest."""
        last = self.failure
        count = last.count + 1 if last is not None and now <= last.retry_at + STABLE else 1
        self.failure = LastFailure(count, start, reason, rest_from + backoff_step(count))

    # What the workers share about it

    def share(self, shared: SharedStatus, now: float) -> SharedStatus:
        """Add the last start, the last failure, the durations and the pause to what is published."""
        start, failure = self.start, self.failure
        paused_for = None if self.paused_at == NEVER else now - self.paused_at
        shared = replace(shared, durations=self.durations, paused_for=paused_for)
        if failure is not None and now <= failure.retry_at + STABLE:
            left = failure.retry_at - now
            shared = replace(shared, failure=Failure(failure.count, failure.start, failure.reason, left))
        if start is not None:
            up_for = None if start.up_at is None else now - start.up_at
            shared = replace(shared, start=Start(start.name, now - start.at, start.shown, up_for))
        return shared

    def apply(self, shared: SharedStatus, now: float) -> None:
        """Remember the starts, failures and pauses that another worker published."""
        if shared.paused_for is not None:
            since = now - shared.paused_for
            self.paused_at = since if self.paused_at == NEVER else min(self.paused_at, since)
        if shared.start is not None:
            self._apply_start(shared.start, now)
        told, mine = shared.failure, self.failure
        if told is not None:
            retry_at = now + told.left
            news = mine is None or ((mine.start, mine.count) != (told.start, told.count))
            if mine is None or (news and mine.retry_at < retry_at):
                self.failure = LastFailure(told.count, told.start, told.reason, retry_at)

    def _apply_start(self, told: Start, now: float) -> None:
        at, up_at = now - told.age, None if told.up_for is None else now - told.up_for
        mine = self.start
        if mine is None or (mine.name != told.name and mine.at < at):
            self.start = LastStart(told.name, at, told.shown, up_at)
        elif mine.name == told.name and mine.up_at is None:
            self.start = replace(mine, shown=mine.shown or told.shown, up_at=up_at)


@dataclass(frozen=True, slots=True)
class FunctionMeta:
    """A function's entry in the cache: its status, and when the provider was asked for it.

    :param last_refresh: monotonic seconds at which the provider was asked.
    :param state: what else is remembered about the function.
    :param suspect: whether the application could not reach the function since.
    :ivar available: whether the entry allows requests to be passed down.
    """

    last_refresh: float
    status: ReplicaStatus
    state: FunctionState = field(default_factory=FunctionState, compare=False, repr=False)
    suspect: bool = False
    available: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "available", self.status.available_replicas > 0 and not self.suspect)

    @property
    def function(self) -> Function:
        """The function whose status it is."""
        return self.state.function

    @property
    def seen_at(self) -> float:
        """When the provider showed this status: a suspect entry is no answer, however late it became one."""
        return self.state.refuted_at if self.suspect else self.last_refresh

    def expired(self, expiry: float, now: float | None = None) -> bool:
        """Return whether ``now`` (monotonic seconds, by default the present) is *later than*
        ``last_refresh + expiry``."""
        return (time.monotonic() if now is None else now) > self.last_refresh + expiry


def median(durations: Sequence[float]) -> float | None:
    """Return the middle duration, of two the longer one; ``None`` if there are no durations."""
    return sorted(durations)[len(durations) // 2] if durations else None
