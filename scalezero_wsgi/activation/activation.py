"""One flight, from the first query to the first replica, led by this worker or another."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence

from .._lib.backoff import backoff_step, growing
from ..coordination.base import ProviderFault, SharedStatus
from ..coordination.peers import BEAT, Leadership
from ..events import ProviderFailed, ScaleRequested
from ..model import Function, FunctionFailed, NotAvailable, ProviderError, ProviderSilent, ReplicaStatus
from . import polling
from .function_cache import FunctionMeta
from .knowledge import WATCH, Knowledge
from .single_flight import Flight
from .starts import SETTLE

logger = logging.getLogger("scalezero_wsgi")

PROVIDER_PATIENCE = 3.0
"""Seconds for which a provider may fail without a break before the flight ends with its error."""

UNWANTED_PAUSE = 3.0
"""Seconds between two queries while nobody waits."""

SLICE = 0.25
"""Seconds after which one who comes in that pause is noticed."""

SILENT = 2 * WATCH + 1.0
"""Seconds after which a leader that has told nothing counts as one whose provider does not answer."""


class _Patience:
    """How long one kind of provider call has failed without a break."""

    __slots__ = ("_clock", "_since", "delays", "trouble")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        self._since: float | None = None
        self.trouble: ProviderError | None = None
        self.delays = growing(0.05, 1.0, factor=2.0)

    def lost(self, error: ProviderError) -> bool:
        """Note a failure; whether there were too many."""
        self.trouble = error
        now = self._clock()
        if self._since is None:
            self._since = now
        return now - self._since >= PROVIDER_PATIENCE


class Wake:
    """What a flight does as a leader and as a follower.

    :param knowledge: whom it asks, and what it knows.
    :param flight: whose ``trouble`` it tells, and where it sees whether anybody waits.
    :param doubted: the entry that is not to be used any more.
    :param since: take no answer to a question asked before that moment.
    :param pause: waits about so many seconds.
    :param woken: is told of the entry when the function came up, and after how many seconds.
    :param usual: how long the function's starts take, in seconds; empty if that is not known.
    :param ends: monotonic seconds after which the flight is of use to nobody; asked for again and again.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        function: Function,
        flight: Flight[FunctionMeta],
        *,
        doubted: FunctionMeta | None,
        since: float,
        pause: Callable[[float], None],
        woken: Callable[[FunctionMeta, float], None],
        usual: Callable[[], Sequence[float]],
        ends: Callable[[], float],
    ) -> None:
        self._knowledge = knowledge
        self._starts = knowledge.starts
        self._clock = knowledge.clock
        self._function = function
        self._flight = flight
        self._doubted = doubted is not None
        self._since = since if doubted is None else max(since, doubted.last_refresh)
        self._pause = pause
        self._woken = woken
        self._usual = usual
        self._ends = ends
        self._begun = self._clock()
        self._met_unavailable = False
        flight.trouble = ProviderSilent("the provider did not answer in time")

    def follow(self, told: SharedStatus, is_update: bool) -> FunctionMeta | None:
        """Take the outcome from another leader, if there is one.

        :raises ScaleZeroError: there is one, and it is not a replica.
        """
        self._flight.trouble = self._trouble_of(told)
        if told.status is not None and not told.status.available_replicas:
            self._flight.starting = True
        meta = self._knowledge.take(self._function, told, is_update, self._since)
        if meta is not None and meta.available:
            start = told.start
            if start is not None and self._clock() - start.age >= self._begun:
                self._met_unavailable = True
            self._arrive(meta)
            return meta
        if meta is not None:
            self._met_unavailable = True
        self._starts.refuse_while_resting(self._function)
        if is_update and told.trouble is not None and told.trouble.final:
            raise ProviderError("the provider failed another worker for too long: see its log")
        return None

    @staticmethod
    def _trouble_of(told: SharedStatus) -> ProviderError | None:
        if told.trouble is not None and told.trouble.age <= SILENT:
            return ProviderError("the provider fails another worker: see its log")
        return ProviderSilent("no worker has had an answer of the provider") if told.age > SILENT else None

    def lead(self, lead: Leadership) -> FunctionMeta:
        """Loop until a replica is available.

        :raises ScaleZeroError: there will be none.
        :raises LeadershipLost: another worker leads.
        """
        self._lead = lead
        self._flight.trouble = ProviderSilent("the provider did not answer in time")
        self._querying = _Patience(self._clock)
        self._scaling = _Patience(self._clock)
        self._early_returns = growing(0.005, 0.25, factor=1.2)
        self._requests = 0
        self._requested_at = self._starts.pending(self._function)
        asked_at = self._begun if self._requested_at is None else self._requested_at
        self._started_at = min(asked_at, self._clock())  # another host's clock may run ahead
        self._unwanted_for = 0.0
        self._looked_elsewhere = -math.inf
        self._wanted_elsewhere = False
        self._request_seen = False
        seen: ReplicaStatus | None = None
        while True:
            try:
                meta = self._knowledge.query(
                    self._function, lead, seen, self._scaling.trouble, started_at=self._counted_from()
                )
            except ProviderError as error:
                seen = None
                self._lose(self._querying, error)
                continue
            self._querying.reset()
            self._flight.trouble = self._scaling.trouble
            if meta.available:
                self._arrive(meta)
                return meta
            self._met_unavailable = self._flight.starting = True
            lead.check()  # first: what a replaced leader sees late may be of a start that others got over
            self._check_failure(meta)
            if self._must_request(meta.status):
                # What was seen before is no measure any more: a start may fail within a moment, and then
                # look as if nothing had changed.
                seen = None
                self._request(meta)
                continue
            changed = meta.status != seen
            seen = meta.status
            self._wait_for_the_next(changed)

    def _arrive(self, meta: FunctionMeta) -> None:
        if self._met_unavailable:
            self._woken(meta, self._clock() - self._begun)
        elif self._doubted and meta.usage.woken_at <= meta.usage.refuted_at:
            meta.usage.vouched_at = self._clock()

    def _check_failure(self, meta: FunctionMeta) -> None:
        reason = meta.status.failure
        if reason is None:
            return
        try:
            if self._requested_at is not None or meta.status.replicas > 0:
                self._starts.fail(self._function, reason)
            else:
                # Left from before: it does not stand against a new start, but for one that came too soon.
                self._starts.ended(self._function, reason)
        finally:
            self._knowledge.tell(self._function, self._lead, meta)

    def _must_request(self, status: ReplicaStatus) -> bool:
        if status.replicas > 0:
            self._request_seen = True
            return False
        if self._requested_at is None:
            return True
        # Not at once: a function that ends as soon as it starts, of which the provider tells no failure,
        # would be started without a pause.
        pause = backoff_step(max(1, self._requests))
        return self._clock() >= self._requested_at + (pause if self._request_seen else max(SETTLE, pause))

    def _request(self, meta: FunctionMeta) -> None:
        """Scale up from zero."""
        status = meta.status
        replicas = status.first_replicas
        self._lead.confirm()
        started_at = self._clock()  # before the call: a provider may return when the function is ready
        try:
            with self._lead.acting():
                self._knowledge.set_replicas(self._function, self._lead, replicas)
        except ProviderError as error:
            self._lose(self._scaling, error)
            return
        except FunctionFailed as error:
            self._lead.confirm()  # what a replaced leader tried does not stand against what another started
            self._starts.begin(self._function)  # the failure is this start's own, not that of one before
            try:
                self._starts.fail(self._function, str(error.reason))
            finally:
                self._knowledge.tell(self._function, self._lead, meta)
            return
        self._scaling.reset()
        self._flight.trouble = None
        again = self._starts.unseen(self._function)
        self._started_at = started_at
        self._requested_at = self._starts.begin(self._function)
        self._requests += 1
        self._request_seen = False
        self._knowledge.tell(self._function, self._lead, meta)
        if again or self._lead.replaced:  # it was reported when it was asked for first, or by who leads now
            logger.debug("%s: requested again", self._function)
        else:
            self._knowledge.report(ScaleRequested(self._function, status.replicas, replicas))
        self._early_returns = growing(0.005, 0.25, factor=1.2)

    def _lose(self, patience: _Patience, error: ProviderError) -> None:
        self._flight.trouble = error
        self._knowledge.report(ProviderFailed(self._function, error))
        too_long = patience.lost(error)
        meta = self._knowledge.cache.find(self._function)
        self._knowledge.tell(self._function, self._lead, meta, trouble=ProviderFault(final=too_long))
        if too_long:
            raise error
        self._sleep(patience.delays)

    def _wait_for_the_next(self, changed: bool) -> None:
        """Wait before the next query. A provider that watches waits by itself, unless it came back
        without a change, too early perhaps: then pauses keep it from spinning."""
        if not self._knowledge.watches:
            self._pause_polling()
        elif not changed:
            self._sleep(self._early_returns)
        self._check_end()

    def _pause_polling(self) -> None:
        now = self._clock()
        self._unwanted_for = 0.0
        if self._is_wanted():
            self._pause(polling.pause(now - self._started_at, self._usual()))
            return
        while self._unwanted_for < UNWANTED_PAUSE and not self._is_wanted():
            self._pause(SLICE)
            self._check_end()
            self._unwanted_for = self._clock() - now

    def _is_wanted(self) -> bool:
        """Whether anybody waits, here or in another worker."""
        now = self._clock()
        if self._flight.is_wanted(now):
            return True
        if now >= self._looked_elsewhere + BEAT:  # workers report no more often
            self._looked_elsewhere = now
            self._wanted_elsewhere = self._lead.others_wait(self._function)
        if self._wanted_elsewhere:
            self._flight.wanted_until = max(self._flight.wanted_until, now)
        return self._wanted_elsewhere

    def _counted_from(self) -> float | None:
        """From when on it is counted how long the start takes; ``None`` if none is waited for.

        While nobody waits, queries are so rare that the start has probably ended halfway between two.
        """
        return self._started_at + self._unwanted_for / 2 if self._met_unavailable else None

    def _sleep(self, delays: Iterator[float]) -> None:
        self._pause(next(delays))
        self._check_end()

    def _check_end(self) -> None:
        now = self._clock()
        if now > self._ends():
            raise NotAvailable(self._function, now - self._begun)
