"""The activation of one function, from the first query to the first replica, as leader or follower.

::

    QUERYING ◀──0── FOUND          FOUND: somebody else's start, or an end that is under way
        │ ───above 0──▶
        │ 0: request
        ▼
    REQUESTED ──above 0──▶ STARTING ──0: request, after a pause──▶ REQUESTED

    from each of the four: a replica is available ──▶ READY; the provider says why there is none ──▶ FAILED

A function at zero is requested at once. It is requested again only if the provider has not shown the count
for ``SETTLE`` seconds, or if the function has ended, and then with growing pauses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from .._lib.backoff import backoff_step
from ..coordination.base import ProviderFault, SharedStatus
from ..coordination.heartbeat import HEARTBEAT
from ..coordination.leadership import Leadership
from ..events import (
    FunctionQueued,
    FunctionReady,
    ProviderFailed,
    ScaleRequested,
    StartFailed,
    StatusQueried,
)
from ..model import Function, FunctionFailed, ProviderError, ProviderSilent, ReplicaStatus
from . import polling
from .refresh import WATCH, Context, Refresh
from .room import Room, not_available
from .single_flight import Flight
from .state import SETTLE, FunctionMeta

logger = logging.getLogger("scalezero_wsgi")

PROVIDER_PATIENCE = 3.0
"""Seconds for which a provider may fail without a break before the flight ends with its error."""

UNWANTED_PAUSE = 3.0
"""Seconds between two queries while nobody waits."""

SLICE = 0.25
"""Seconds within which a request that arrives during ``UNWANTED_PAUSE`` is noticed."""

LEADER_SILENT = 2 * WATCH + 1.0
"""Seconds without a publication after which the leader's provider counts as silent."""


QUEUE_PAUSE, QUEUE_PAUSE_LONGEST = 0.05, 0.5
"""Seconds between two looks for room, at first and in the end."""

WANTED_FOR = 10.0
"""Seconds for which a start still takes its turn once nobody waits: who was refused may come again."""


class Phase(Enum):
    """Where an activation stands."""

    QUERYING = "nothing was requested, and the provider shows no replica"
    FOUND = "nothing was requested, and the provider shows replicas, none of them available"
    REQUESTED = "scaled up from zero, of which the provider has shown nothing yet"
    STARTING = "the provider shows the replicas that were requested, none of them available"
    READY = "a replica is available"
    FAILED = "the provider says why there will be none"


def next_phase(phase: Phase, status: ReplicaStatus, available: bool) -> Phase:
    """Return the phase after an answer of the provider."""
    requested = phase in (Phase.REQUESTED, Phase.STARTING)
    if available:
        return Phase.READY
    if status.replicas == 0 and not requested:
        return Phase.QUERYING  # a failure is one from before, and does not stand against a new start
    if status.failure is not None:
        return Phase.FAILED
    if status.replicas == 0:
        return phase
    return Phase.STARTING if requested else Phase.FOUND


class _Failing(NamedTuple):
    """A row of failures of one kind of provider call: the last error, when the row began, its length."""

    error: ProviderError
    since: float
    times: int


_WORKING: _Failing | None = None


class Activation(Refresh):
    """Runs an activation as leader or as follower. For one flight and its thread.

    :param since: ignore answers to queries made before that moment.
    :param usual: returns how long the function's last starts took, in seconds; empty if that is not known.
    :param flight: the flight: this sets its ``trouble`` and ``starting``, and asks it whether anybody waits.
    :param ends_at: returns the monotonic seconds after which nobody needs the flight.
    """

    def __init__(
        self,
        context: Context,
        function: Function,
        since: float,
        usual: Callable[[], Sequence[float]],
        flight: Flight[FunctionMeta],
        ends_at: Callable[[], float],
    ) -> None:
        super().__init__(context, function)
        self._flight = flight
        flight.trouble = ProviderSilent("the provider did not answer in time")
        self._usual = usual
        self._ends_at = ends_at
        self._begun = self._clock()
        meta = self._state.meta
        self._was_suspect = meta is not None and meta.suspect
        self._since = max(since, meta.last_refresh) if meta is not None and meta.suspect else since
        self._was_unavailable = self._resumes = self._told_as_follower = False

    # As a follower

    def on_update(self, shared: SharedStatus, is_update: bool) -> FunctionMeta | None:
        """Return the outcome that the leader published; ``None`` if there is none yet.

        :raises ScaleZeroError: the outcome is an error.
        """
        trouble: ProviderError | None = None
        if shared.trouble is not None and shared.trouble.age <= LEADER_SILENT:
            trouble = ProviderError("another worker's call failed: see that worker's log")
        elif shared.age > LEADER_SILENT:
            trouble = ProviderSilent("no worker has had an answer from the provider")
        self._flight.trouble = trouble
        if shared.status is not None and not shared.status.available_replicas:
            self._flight.starting = True
        meta = self._apply(shared, is_update, self._since)
        # What was known before is no answer yet, unless it is enough: this worker may still lead.
        if meta is not None and (is_update or meta.available) and not self._told_as_follower:
            self._told_as_follower = True
            replicas, available = meta.status.replicas, meta.status.available_replicas
            self._context.report(StatusQueried(self._function, replicas, available, led=False))
        if meta is not None and meta.available:
            started_here = shared.start is not None and self._clock() - shared.start.age >= self._begun
            self._was_unavailable = self._was_unavailable or started_here
            return self._arrive(meta, led=False)
        if meta is not None:
            self._was_unavailable = True
        self._state.refuse_while_resting(self._clock())
        if is_update and shared.trouble is not None and shared.trouble.final:
            raise ProviderError("another worker's calls failed for too long: see that worker's log")
        return None

    def _arrive(self, meta: FunctionMeta, led: bool) -> FunctionMeta:
        state, now = self._state, self._clock()
        if self._was_unavailable:
            # A leader of an earlier release does not publish them.
            if not state.durations and not self._resumes:
                self._context.cache.set_durations(state, (now - self._begun,))
            self._context.report(FunctionReady(self._function, now - self._begun, led))
        elif self._was_suspect and state.came_up_at <= state.refuted_at:
            state.confirmed_at = now
        return meta

    # As the leader

    def lead(self, leadership: Leadership) -> FunctionMeta:
        """Loop until a replica is available.

        :raises ScaleZeroError: no replica will be available.
        :raises LeadershipLost: another worker leads.
        """
        self._leadership = leadership
        self._flight.trouble = ProviderSilent("the provider did not answer in time")
        self._querying = self._scaling = _WORKING
        self._requests = self._early_returns = 0
        # A start that was requested lately, perhaps by a leader that has died, may not show yet.
        pending = self._state.unseen_start(self._clock(), within=SETTLE)
        self._phase = Phase.QUERYING if pending is None else Phase.REQUESTED
        self._requested_at = None if pending is None else pending.at
        # Another host's clock may run ahead.
        self._started_at = min(self._begun if pending is None else pending.at, self._clock())
        self._unwanted_for = 0.0
        self._looked_elsewhere_at = -math.inf
        self._wanted_elsewhere = False
        self._queued_since: float | None = None
        seen: ReplicaStatus | None = None
        answered = False
        while True:
            # Queries are rare while nobody waits: assume that the start ended halfway through the last pause.
            # How long a paused function takes to go on says nothing about its starts.
            is_start = self._was_unavailable and not self._resumes
            started_at = self._started_at + self._unwanted_for / 2 if is_start else None
            try:
                meta = self._query(seen, started_at, solved=self._scaling is None)
            except ProviderError as error:
                seen = None
                self._querying = self._note_fault(error, self._querying)
                self._pause(backoff_step(self._querying.times, 0.05, 1.0))
                continue
            if not answered:
                answered = True
                replicas, available = meta.status.replicas, meta.status.available_replicas
                self._context.report(StatusQueried(self._function, replicas, available))
            self._querying = None
            self._flight.trouble = None if self._scaling is None else self._scaling.error
            self._phase = next_phase(self._phase, meta.status, meta.available)
            if self._phase is Phase.READY:
                return self._arrive(meta, led=True)
            self._was_unavailable = self._flight.starting = True
            leadership.check()  # before acting: a deposed leader may see the state of a later start
            if meta.status.failure is not None:
                self._note_failure(meta)
            requested_at = self._requested_at
            if meta.status.replicas == 0 and (requested_at is None or self._may_request_again(requested_at)):
                seen = None  # reset the baseline: a start may fail so fast that nothing seems to have changed
                self._request(meta)
            else:
                changed, seen = meta.status != seen, meta.status
                self._wait_for_the_next(changed)

    def _note_failure(self, meta: FunctionMeta) -> None:
        """Raise :class:`FunctionFailed` if the provider's failure ends this start or causes a rest."""
        reason, now = str(meta.status.failure), self._clock()
        if self._phase is Phase.FAILED:
            self._fail(reason, meta)
            return
        # An old failure does not end a new start, unless the function ended so soon that it must rest.
        noted = self._state.note_end(reason, now)
        try:
            if noted:
                self._rest()
        finally:
            self._publish(meta)

    def _fail(self, reason: str, meta: FunctionMeta) -> None:
        self._state.fail_start(reason, self._clock())
        try:
            self._rest()  # before publishing, which may take as long as the rest
        finally:
            self._publish(meta)

    def _rest(self) -> None:
        try:
            self._state.refuse_while_resting(self._clock())
        except FunctionFailed as failed:
            self._context.report(StartFailed(self._function, failed.reason, failed.retry_after))
            raise

    def _may_request_again(self, requested_at: float) -> bool:
        """Return whether to request the function again now: it is at zero although it was requested.

        Pause first: otherwise a function that ends as soon as it starts, without a failure that the provider
        tells, would be started again and again.
        """
        pause = backoff_step(max(1, self._requests))
        shown = self._phase is not Phase.REQUESTED
        return self._clock() >= requested_at + (pause if shown else max(SETTLE, pause))

    def _request(self, meta: FunctionMeta) -> None:
        """Scale the function up from zero, if there is room for it."""
        if self._context.room is not None and not self._claim(self._context.room, meta):
            return
        leadership, state = self._leadership, self._state
        replicas = meta.status.first_replicas
        try:
            with leadership.acting():
                started_at = self._clock()  # before the call, which may take until the function is ready
                self._call(self._context.provider.set_replicas, *self._function, replicas)
        except ProviderError as error:
            self._scaling = self._note_fault(error, self._scaling)
            self._pause(backoff_step(self._scaling.times, 0.05, 1.0))
            return
        except FunctionFailed as error:
            leadership.confirm()  # a deposed leader's failure must not count for the new leader's start
            state.begin_start(self._clock())  # the failure counts for this start, not for an earlier one
            self._fail(str(error.reason), meta)
            return
        self._scaling = None
        self._flight.trouble = None
        again = state.unseen_start(self._clock()) is not None
        self._phase, self._started_at, self._requested_at = Phase.REQUESTED, started_at, self._clock()
        self._resumes = meta.status.paused
        self._requests += 1
        state.begin_start(self._requested_at)
        self._publish(meta)
        if again or leadership.replaced:  # reported already: at the first request, or by the new leader
            logger.debug("%s: requested again", self._function)
        else:
            took = self._requested_at - started_at
            self._context.report(ScaleRequested(self._function, meta.status.replicas, replicas, took))
        self._early_returns = 0

    def _claim(self, room: Room, meta: FunctionMeta) -> bool:
        """Claim the room for the start; return ``False`` after a pause if it has to wait its turn."""
        again = self._requests > 0
        try:
            if room.claim(self._function, meta.status, again, self._is_wanted_still):
                return True
        except FunctionFailed as error:
            self._state.begin_start(self._clock())
            self._fail(str(error.reason), meta)
        now = self._clock()
        if self._queued_since is None:
            self._queued_since = now
            self._context.report(FunctionQueued(self._function))
        self._pause(min(QUEUE_PAUSE_LONGEST, max(QUEUE_PAUSE, (now - self._queued_since) / 20)))
        return False

    def _note_fault(self, error: ProviderError, before: _Failing | None) -> _Failing:
        """Note that a call failed. The caller repeats it after a pause.

        :raises ProviderError: the call has failed for too long.
        """
        now = self._clock()
        failing = _Failing(error, before.since if before else now, before.times + 1 if before else 1)
        self._flight.trouble = error
        self._context.report(ProviderFailed(self._function, error))
        exhausted = now - failing.since >= PROVIDER_PATIENCE
        self._publish(self._state.meta, ProviderFault(final=exhausted))
        if exhausted:
            raise error
        return failing

    def _wait_for_the_next(self, changed: bool) -> None:
        """Pause before the next query. A provider that watches waits by itself. If it returned without a
        change, perhaps too early, pause all the same, so as not to spin."""
        if self._context.watching is None:
            self._pause_polling()
        elif not changed:
            self._early_returns = min(30, self._early_returns + 1)
            self._pause(min(0.25, 0.005 * 1.2 ** (self._early_returns - 1)))
        else:
            self._check_end()

    def _pause_polling(self) -> None:
        now = self._clock()
        self._unwanted_for = 0.0
        if self._is_wanted():
            self._pause(polling.pause(now - self._started_at, self._usual()))
            return
        while self._unwanted_for < UNWANTED_PAUSE and not self._is_wanted():
            self._pause(SLICE)
            self._unwanted_for = self._clock() - now

    def _is_wanted(self) -> bool:
        """Return whether anybody waits, here or in another worker."""
        now = self._clock()
        if self._flight.is_wanted(now):
            return True
        if now >= self._looked_elsewhere_at + HEARTBEAT:  # workers report no more often
            self._looked_elsewhere_at = now
            self._wanted_elsewhere = self._leadership.others_wait(self._function)
        if self._wanted_elsewhere:
            self._flight.wanted_until = max(self._flight.wanted_until, now)
        return self._wanted_elsewhere

    def _is_wanted_still(self) -> bool:
        """Return whether anybody waits, or did a moment ago."""
        return self._is_wanted() or self._clock() <= self._flight.wanted_until + WANTED_FOR

    def _pause(self, duration: float) -> None:
        """Pause for about ``duration`` seconds; raise :class:`NotAvailable` once nobody needs the flight."""
        self._context.pause(duration)
        self._check_end()

    def _check_end(self) -> None:
        now = self._clock()
        if now > self._ends_at():
            raise not_available(self._context.room, self._function, now - self._begun)
