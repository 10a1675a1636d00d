"""The cold path: query, scale up, wait for a replica; one leader for each function.

After OpenFaaS's ``gateway/handlers/scaling.go``, without its faults: every answer of the provider is cached
at once, a wait that ends without a replica is an error, and a failed query ends no wait.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from functools import partial

from .._lib.sleeper import Sleeper
from ..coordination.base import SharedStatus
from ..coordination.peers import Peers
from ..events import ProviderFailed, Reporter
from ..model import (
    Function,
    FunctionNotFound,
    NotAvailable,
    ProviderError,
    ProviderSilent,
    TooManyWaiting,
)
from ..providers.base import DoubtingProvider, LearningProvider, Provider, WatchingProvider
from ..servers.watch import lookout
from .activation import Activation
from .function_cache import Freshness, FunctionCache
from .outages import SILENT, WORKING, Outages
from .refresh import Context, Refresh
from .room import Room, not_available
from .single_flight import Flight, SingleFlight
from .state import FunctionMeta, FunctionState, median

LINGER = 60.0
"""Seconds for which a start is watched after the last waiter has left, unless a setting or a label says
otherwise. Also the seconds after which a refresh counts as hanging."""

LINGER_LABEL = "scalezero.linger"

START_TIME_LABEL = "scalezero.start-time"

OUTAGE_PATIENCE = 0.5
"""Seconds for which a request for a suspect function waits for the provider, if the provider is known to
fail."""

SUSPECT_PATIENCE = 0.8
"""The same if it is not known to fail, and its last answer took at most ``QUICK`` seconds."""

QUICK = 0.25

HEAD_START = 0.35
"""Seconds after an answer has become stale in which only the worker that got it asks again. The others then
find a later answer in the store, by default every second one, and do not contend for the lease with it."""

UNKNOWN_START = 5.0
"""Assumed duration of a start, in seconds, if nothing is known about it."""

LEAST_GUESS = 2.0
"""The shortest time left, in seconds, that is told before any start was measured."""

LATE = 5.0
"""The least time left, in seconds, that is told when a start takes longer than expected."""

MAX_LEADERS = 1_000
"""How many functions may be queried at once: it bounds the threads that a hanging provider can hold."""


class FunctionScaler:
    """Makes functions available. Safe for threads and after a fork; threads start on first use.

    :param provider: reads and sets replica counts. Its own time-outs bound how long its calls block.
    :param cache: stores every answer.
    :param report: receives the events.
    :param peers: the other workers; by default there are none.
    :param linger: seconds for which a start is watched after the last waiter has left. The label
        ``scalezero.linger`` overrides this for one function.
    :param clock: returns monotonic seconds.
    :param sleep: pauses a leader.
    :param jitter: returns a number from 0 to 1 for each pause. The default leaves the application's seeded
        generator alone, and differs in each forked worker.
    """

    def __init__(
        self,
        provider: Provider,
        cache: FunctionCache,
        *,
        report: Reporter | None = None,
        peers: Peers | None = None,
        linger: float = LINGER,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self._cache = cache
        self._report = report = report or Reporter()
        self._linger_of = partial(cache.labelled_seconds, label=LINGER_LABEL, default=linger)
        self._peers = peers or Peers(None, report, clock)
        self._clock = clock
        jitter = jitter or random.SystemRandom().random
        # Looked up late: gevent may replace time.sleep after this line has run.
        sleep = sleep or (lambda duration: time.sleep(duration))
        self._outages = Outages(clock, report, jitter)
        self._doubting = provider if isinstance(provider, DoubtingProvider) else None
        self.context = self._context = Context(
            provider,
            provider if isinstance(provider, WatchingProvider) else None,
            provider if isinstance(provider, LearningProvider) else None,
            cache,
            self._outages,
            self._peers,
            report,
            clock,
            lambda duration: sleep(duration * (0.75 + jitter() / 2)),
        )
        self._followed_for = cache.expiry + min(HEAD_START, (cache.usable - cache.expiry) / 2)
        self._activations: SingleFlight[Function, FunctionMeta] = SingleFlight(
            "scalezero-activation", MAX_LEADERS, clock
        )
        self._refreshes: SingleFlight[Function, None] = SingleFlight("scalezero-refresh", MAX_LEADERS, clock)

    def limit(self, room: Room) -> None:
        """Have every start claim its room first. Call this before the first one."""
        self.context = self._context = self._context._replace(room=room)

    # Activations

    def ensure_available(
        self,
        function: Function,
        deadline: float,
        *,
        since: float = -math.inf,
        check: Callable[[Flight[FunctionMeta]], float] | None = None,
    ) -> FunctionMeta:
        """Block until the function has an available replica; start it if it is at zero.

        :param deadline: monotonic seconds up to which the caller waits.
        :param since: ignore answers to queries made before that moment.
        :param check: called now and then during the wait, in any thread. It returns the current
            deadline, or raises if the caller must stop waiting. It must not block.
        :raises FunctionNotFound: the provider does not know the function.
        :raises ProviderError: the provider failed for too long, or has not answered by the deadline.
        :raises FunctionFailed: the function cannot start, or rests after a failed start.
        :raises NotAvailable: the deadline passed first. The flight goes on.
        :raises TooManyWaiting: too many functions are being queried, or no thread could be started.
        """
        started_at = self._clock()
        waiter = object()

        def waits_on() -> bool:
            nonlocal deadline
            if check is None or flight.landed:
                return True
            deadline = check(flight)
            if deadline > flight.until:  # a label, unknown when the caller joined, allows more
                flight.until = deadline + self._linger_of(function)
            return self._clock() < deadline

        while True:
            self.refuse_at_once(function)
            flight = self._activations.join(
                function,
                partial(self.activate, function, since),
                deadline + self._linger_of(function),
                wanted_until=started_at,
                waiter=waiter,
            )
            try:
                with flight.wakes(Sleeper()) as sleeper, lookout().watch(sleeper, check and waits_on):
                    while not flight.landed:
                        sleeper.sleep(deadline - self._clock())
                        if check is None or (not flight.landed and not waits_on()):  # type: ignore[redundant-expr]
                            break  # no check: the one sleep was the whole wait
            finally:
                now = self._clock()
                flight.leave(waiter, now, now + self._linger_of(function))
            if not flight.landed:
                raise self._give_up(function, flight, started_at)
            try:
                meta = flight.result()
            except NotAvailable:
                if self._clock() >= deadline:
                    raise
                continue  # it ended because nobody waited, just as this caller joined
            if meta.last_refresh >= since:
                return meta

    def start(self, function: Function, until: float, *, since: float = -math.inf) -> Flight[FunctionMeta]:
        """Activate the function without waiting for it.

        :param until: monotonic seconds up to which the caller is interested. After that the provider is
            queried rarely, unless somebody waits.
        :raises ScaleZeroError: as :meth:`refuse_at_once`; also :class:`TooManyWaiting`.
        """
        self.refuse_at_once(function)
        lead = partial(self.activate, function, since)
        return self._activations.join(function, lead, until + self._linger_of(function), wanted_until=until)

    def keep_up(self, function: Function, until: float) -> Flight[FunctionMeta] | None:
        """Keep a start going that is under way in this process. Start none.

        :param until: monotonic seconds up to which the caller is interested.
        :return: the start's flight; ``None`` if there is none.
        """
        return self._activations.prolong(function, until + self._linger_of(function), until)

    def flight(self, function: Function) -> Flight[FunctionMeta] | None:
        """Return the function's flight, if one is under way: it may still be querying the status."""
        return self._activations.flight(function)

    def refuse_at_once(self, function: Function) -> None:
        """Raise an error if it is known already that the function cannot be started now.

        :raises FunctionFailed: the function rests after a failed start.
        :raises FunctionNotFound: the provider did not know it a moment ago.
        """
        state = self._cache.peek(function)
        if state is None:
            return
        now = self._clock()
        state.refuse_while_resting(now)
        if now <= state.missing_at + self._cache.missing_expiry:
            raise FunctionNotFound(*function)

    def activate(self, function: Function, since: float, flight: Flight[FunctionMeta]) -> FunctionMeta:
        """Lead or follow the function's activation. Runs in the flight's thread.

        :param since: ignore answers to queries made before that moment.
        :raises ScaleZeroError: as :meth:`ensure_available`.
        """

        def ends_at() -> float:
            """Return the monotonic seconds after which nobody needs the flight."""
            if flight.waiters:
                return flight.until
            return min(flight.until, flight.wanted_until + self._linger_of(function))

        # The last flight may have ended after the caller decided to join. Its result may be enough.
        state = self._cache.find_state(function)
        meta = None if state is None else state.meta
        if meta is not None and meta.available and meta.last_refresh >= since:
            if self._cache.freshness(meta) is Freshness.FRESH:
                return meta
        usual = partial(self._own_starts, function)
        activation = Activation(self._context, function, since, usual, flight, ends_at)
        return self._peers.run_once(function, ends_at, activation.on_update, activation.lead)

    def _give_up(self, function: Function, flight: Flight[FunctionMeta], started_at: float) -> Exception:
        trouble = flight.trouble  # read once: the leader changes it
        if trouble is None:
            waited = self._clock() - started_at
            return not_available(self._context.room, function, waited, self.time_left(function))
        silent = isinstance(trouble, ProviderSilent)
        return ProviderSilent(str(trouble)) if silent else ProviderError(str(trouble))

    def refuse_while_resting(self, function: Function) -> None:
        """Raise :class:`FunctionFailed` while the function rests after a failed start."""
        state = self._cache.peek(function)
        if state is not None:
            state.refuse_while_resting(self._clock())

    # Refreshes, and a provider that fails

    def refresh(self, function: Function) -> None:
        """Query the function's status in the background, unless a query is under way. Never blocks."""
        if not self._refreshes.under_way(function):
            self._join_refresh(function)

    def refresh_stale(self, meta: FunctionMeta, now: float) -> None:
        """Like :meth:`refresh`, for an entry that is stale and used: ``HEAD_START`` later if another worker
        has asked last.

        :param now: monotonic seconds.
        """
        state = meta.state
        if state.followed_at != meta.last_refresh or now > meta.last_refresh + self._followed_for:
            self.refresh(state.function)

    def wait_for_refresh(self, function: Function, timeout: float) -> ProviderError | None:
        """Query the function's status without activating it, and wait for the answer.

        :param timeout: seconds from the start of the query, for all callers: whoever comes after that does
            not wait.
        :return: the error if the provider fails or is silent, or ``None``.
        """
        flight = self._join_refresh(function)
        if flight is not None and not flight.wait(flight.started_at + timeout - self._clock()):
            return ProviderSilent("the provider does not answer")
        state = self._cache.peek(function)
        return None if state is None else self._outages.error(state)

    def _join_refresh(self, function: Function) -> Flight[None] | None:
        state = self._cache.peek(function)
        if self._cache.is_missing(function) or (state is not None and self._outages.resting(state)):
            return None
        try:
            return self._refreshes.join(function, partial(self.query, function), self._clock() + LINGER)
        except TooManyWaiting as error:
            self._report(ProviderFailed(function, error))
            return None

    def query(self, function: Function, flight: Flight[None]) -> None:
        """Lead or follow a refresh. Runs in the flight's thread."""
        Refresh(self._context, function).run(flight)

    def stale_if_error(self, function: Function, since: float = -math.inf) -> FunctionMeta | None:
        """Return the last entry, if it was up and the provider fails or has been silent for a second; else
        ``None``. Refresh that entry in the background. Never blocks.

        :param since: ignore answers to queries made before that moment.
        """
        meta = self._cache.last_seen_up(function)
        if meta is None or meta.last_refresh < since:
            return None
        if not self._note_silence(meta.state) and self._outages.error(meta.state) is None:
            return None
        self.refresh(function)
        self._outages.serve(meta.state)
        return meta

    def _note_silence(self, state: FunctionState) -> bool:
        """Return whether a query has got no answer for ``SILENT`` seconds, or ``WORKING`` if the provider is
        known to be slow; if so, note that, once for each query."""
        outage = state.outage
        asked_at = self._unanswered(state, WORKING if outage is not None and outage.slow else SILENT)
        if asked_at is None:
            return False
        if outage is None or outage.failed_at < asked_at:
            self._outages.failed(state, ProviderSilent("it does not answer"))
        return True

    def _unanswered(self, state: FunctionState, seconds: float) -> float | None:
        """Return when a query was made that has got no answer for so long; ``None`` if there is none."""
        flight = self._refreshes.flight(state.function)
        return None if flight is None or self._clock() <= flight.started_at + seconds else flight.started_at

    def provider_failed(self, function: Function, error: ProviderError) -> None:
        """Note that the provider failed, if the function was last seen up and no outage is noted yet."""
        meta = self._cache.last_seen_up(function)
        if meta is not None and self._outages.error(meta.state) is None:
            self._outages.failed(meta.state, error)

    def patience(self, function: Function) -> float:
        """Return for how many seconds to wait for the provider. Few for a suspect function whose provider
        fails or last answered fast; else infinite."""
        meta = self._cache.find(function)
        if meta is None or not meta.suspect:
            return math.inf
        if self._outages.lasts(meta.state) or self._unanswered(meta.state, WORKING) is not None:
            return OUTAGE_PATIENCE
        return SUSPECT_PATIENCE if meta.state.answered_in <= QUICK else math.inf

    def mark_suspect(self, meta: FunctionMeta) -> bool:
        """Note that the application could not reach the function: query the provider before using it again.

        :return: ``False`` if its answer was confirmed within ``cache_expiry``. Then the function
            is there, the errors are its own, and there is nothing to query.
        """
        state = meta.state
        if self._clock() <= state.confirmed_at + self._cache.expiry:
            return False
        if self._outages.error(state) is None:
            self._note_silence(state)
        self._cache.mark_suspect(state.function)
        if self._doubting is not None:
            self._doubting.doubt(*state.function)
        return True

    # How long starts take

    def expected_start(self, function: Function) -> float | None:
        """Return how long a start will probably take, in seconds; ``None`` if that is unknown.

        That is the median of the function's last starts. Before its first start it is the label
        ``scalezero.start-time``, or else the median of other functions' last starts.
        """
        own = median(self._own_starts(function))
        return self._cache.usual_start() if own is None else own

    def last_starts(self, function: Function) -> tuple[float, ...]:
        """Return how long the last starts in the whole fleet took, in seconds, the latest last."""
        state = self._cache.peek(function)
        return () if state is None else state.durations

    def _own_starts(self, function: Function) -> tuple[float, ...]:
        told = self._cache.labelled_seconds(function, START_TIME_LABEL, 0.0)
        return self.last_starts(function) or ((told,) if told else ())

    def started_at(self, function: Function) -> float | None:
        """Return when the activation under way began, in monotonic seconds; ``None`` if there is none."""
        flight = self._activations.flight(function)
        return None if flight is None else flight.started_at

    def time_left(self, function: Function) -> float:
        """Return the probable seconds until the function is ready, or a whole start's if none goes on.

        Clients often retry only three times (urllib3's ``Retry(total=3)``). So if the expected time is a
        guess, or has proved too short, the time returned grows with the time that has passed. Three retries
        then reach well beyond the expected time.
        """
        started_at, expected = self.started_at(function), self.expected_start(function)
        passed = 0.0 if started_at is None else self._clock() - started_at
        left = (UNKNOWN_START if expected is None else expected) - passed
        measured = bool(self.last_starts(function))
        if left <= 0:
            return max(passed / 2 if measured else passed, LATE)
        return left if measured else max(left, passed / 2, LEAST_GUESS)

    def shared_status(self, function: Function) -> SharedStatus | None:
        """Return the function's shared status, or ``None``; it is not cached."""
        return self._peers.shared_status(function)
