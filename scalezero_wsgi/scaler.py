"""The cold path: query, scale up, wait for a replica; one leader for each function.

After OpenFaaS's ``gateway/handlers/scaling.go``, with its faults mended: whatever the provider says is
cached when it is seen, a wait that ends without a replica is an error, and one failed query ends
nothing.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from .backoff import backoff_step, growing
from .bounded import Bounded
from .coordination.base import Failure, Known, Start, Trouble
from .coordination.fleet import Fleet, Lead
from .events import FunctionReady, ProviderFailed, Reporter, ScaleRequested, StartFailed
from .function_cache import FunctionCache, FunctionMeta
from .model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    NotAvailable,
    ProviderError,
    ProviderSilent,
    ReplicaStatus,
    TooManyWaiting,
)
from .providers.base import DoubtingProvider, Provider, WatchingProvider
from .single_flight import Flight, SingleFlight

PROVIDER_PATIENCE = 3.0
"""Seconds for which a provider may fail without a break before the flight ends with its error."""

LINGER = 60.0
"""Seconds for which a flight goes on after the last deadline of those who waited."""

SETTLE = 2.0
"""Seconds that a provider may take to show the count that was set, before it is set again."""

STABLE = 60.0
"""Seconds after which an end of a function has nothing to do with its start any more."""

REFRESH_PAUSE = 0.5
"""Seconds without another background refresh after one that failed."""

WATCH = 5.0
"""Seconds for which a provider is asked to watch for a change at a time."""

FOLLOW = 5.0
"""Seconds for which a refresh keeps the others waiting, and waits for another's."""

SILENT = 2 * WATCH + 1.0
"""Seconds after which a leader that has told nothing counts as one whose provider does not answer."""

MAX_LEADERS = 1_000
"""Functions that may be asked for at once: it bounds the threads that a hanging provider can hold."""


@dataclass(frozen=True, slots=True)
class _Start:
    """The last time that the function was scaled up from zero, by whichever worker.

    ``shown``: the provider has told since of a count above zero.
    """

    name: str
    at: float
    shown: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last failed start: how many in a row, of which start, and until when it is left alone."""

    count: int
    start: str
    reason: str
    retry_at: float


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


class FunctionScaler:
    """Makes functions available. Safe for threads and after a fork; threads start on first use.

    :param provider: the one who knows replicas. Calls block within the provider's own time-outs.
    :param cache: where every answer goes.
    :param report: is told what happens.
    :param fleet: the other workers; by default there are none.
    :param clock: monotonic seconds.
    :param sleep: pauses a leader.
    :param jitter: a number from 0 to 1 for each pause; by default one that neither disturbs a seeded
        generator of the application's nor repeats itself in the workers that it forked.
    """

    def __init__(
        self,
        provider: Provider,
        cache: FunctionCache,
        *,
        report: Reporter | None = None,
        fleet: Fleet | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self._provider = provider
        self._watching = provider if isinstance(provider, WatchingProvider) else None
        self._cache = cache
        self._report = report or Reporter()
        self._fleet = fleet or Fleet(None, self._report, clock)
        self._clock = clock
        # Looked up late: gevent may replace time.sleep after this line has run.
        self._sleep = sleep or (lambda duration: time.sleep(duration))
        self._jitter = jitter or random.SystemRandom().random
        self._wakes: SingleFlight[Function, FunctionMeta] = SingleFlight("scalezero-wake", MAX_LEADERS, clock)
        self._refreshes: SingleFlight[Function, None] = SingleFlight("scalezero-refresh", MAX_LEADERS, clock)
        self._starts: Bounded[Function, _Start] = Bounded(10_000)
        self._failures: Bounded[Function, _Failure] = Bounded(10_000)
        self._durations: Bounded[Function, tuple[float, ...]] = Bounded(10_000)
        self._refresh_after: Bounded[Function, float] = Bounded(10_000)

    # What the door asks for

    def ensure_available(
        self,
        function: Function,
        deadline: float,
        *,
        since: float = -math.inf,
        wait: Callable[[Flight[FunctionMeta]], bool] | None = None,
    ) -> FunctionMeta:
        """Block until the function has a replica, waking it when it is at zero.

        :param deadline: monotonic seconds up to which the caller waits.
        :param since: take no answer to a question asked before that moment.
        :param wait: how the caller waits for a flight to end: ``False`` when it would not wait longer. By
            default until the deadline.
        :raises FunctionNotFound: the provider does not know the function.
        :raises ProviderError: the provider failed for too long, or has not answered by the deadline.
        :raises FunctionFailed: the function cannot start, or rests after a failed start.
        :raises NotAvailable: the deadline came first. The flight goes on.
        :raises TooManyWaiting: too many functions are being asked for.
        """
        begun = self._clock()
        while True:
            flight = self.start(function, deadline, since=since)
            landed = flight.wait(deadline - self._clock()) if wait is None else wait(flight)
            if not landed:
                raise self._give_up(function, flight, begun)
            meta = flight.result()
            if meta.last_refresh >= since:
                return meta

    def start(self, function: Function, until: float, *, since: float = -math.inf) -> Flight[FunctionMeta]:
        """Have the function woken, and do not wait for it.

        :param until: monotonic seconds up to which the caller is interested.
        :raises ScaleZeroError: as :meth:`ensure_available`, for what is known already.
        """
        self._refuse_while_resting(function)
        if self._cache.is_missing(function):
            raise FunctionNotFound(*function)
        return self._wakes.join(function, partial(self._wake, function, since), until + LINGER)

    def look(self, function: Function, timeout: float) -> None:
        """Have the function's status asked for, without waking it, and wait for that.

        :param timeout: seconds that all who look may wait in all: with a provider that hangs, those who come
            later do not wait.
        """
        flight = self._look(function)
        if flight is not None:
            flight.wait(flight.begun + timeout - self._clock())

    def refresh(self, function: Function) -> None:
        """Ask for the function's status in the background, unless that is being done. Never blocks."""
        if not self._refreshes.under_way(function):
            self._look(function)

    def _look(self, function: Function) -> Flight[None] | None:
        now = self._clock()
        if self._cache.is_missing(function) or now < (self._refresh_after.get(function) or -math.inf):
            return None
        try:
            return self._refreshes.join(function, partial(self._refresh, function), now + LINGER)
        except TooManyWaiting as error:
            self._report(ProviderFailed(function, error))
            return None

    def doubt(self, meta: FunctionMeta) -> bool:
        """The application could not reach the function: ask the provider again before it is used.

        :return: ``False`` if the provider stood by its answer less than an expiry ago: then the function
            is there, its errors are its own, and nothing is asked for.
        """
        if self._clock() <= meta.usage.vouched_at + self._cache.expiry:
            return False
        self._cache.doubt(meta.function)
        if isinstance(self._provider, DoubtingProvider):
            self._provider.doubt(*meta.function)
        return True

    def expected_start(self, function: Function) -> float | None:
        """The median of the last starts, in seconds; ``None`` before the first."""
        durations = sorted(self.last_starts(function))
        return durations[len(durations) // 2] if durations else None

    def last_starts(self, function: Function) -> tuple[float, ...]:
        """How long the last starts took, in seconds, the latest last."""
        return self._durations.get(function) or ()

    def begun_at(self, function: Function) -> float | None:
        """Since when the function is being woken, in monotonic seconds; ``None`` if it is not."""
        flight = self._wakes.flight(function)
        return None if flight is None else flight.begun

    def time_left(self, function: Function) -> float:
        """Seconds that a start under way will probably still take; 1 when nothing tells."""
        begun, expected = self.begun_at(function), self.expected_start(function)
        if begun is None or expected is None:
            return 1.0
        return max(1.0, expected - (self._clock() - begun))

    # What a leader does

    def _wake(self, function: Function, since: float, flight: Flight[FunctionMeta]) -> FunctionMeta:
        # Whoever decided to join before the last flight ended starts this one after it: look again.
        known = self._cache.find(function)
        if (
            known is not None
            and known.available
            and known.last_refresh >= since
            and not known.expired(self._cache.expiry, self._clock())
        ):
            return known
        wake = _Wake(self, function, flight, known if known is not None and known.doubted else None, since)
        return self._fleet.fly(function, lambda: flight.until, wake.follow, wake.lead)

    def _refresh(self, function: Function, flight: Flight[None]) -> None:
        def follow(told: Known, news: bool) -> bool | None:
            self._learn(function, told)
            if self._take(function, told, news) is not None:
                return True
            if told.trouble is not None and told.trouble.age <= REFRESH_PAUSE:
                self._refresh_after.set(function, self._clock() - told.trouble.age + REFRESH_PAUSE)
                return True
            return None

        def lead(lead: Lead) -> bool:
            try:
                self._query(function, lead)
            except ProviderError:
                self._tell(lead, function, self._cache.find(function), trouble=Trouble())
                raise
            return True

        try:
            self._fleet.fly(function, lambda: flight.begun + FOLLOW, follow, lead)
        except (FunctionNotFound, NotAvailable):
            pass
        except ProviderError as error:
            self._refresh_after.set(function, self._clock() + REFRESH_PAUSE)
            self._report(ProviderFailed(function, error))

    # What the fleet knows

    def _learn(self, function: Function, told: Known) -> None:
        """Remember the last start and the failures; whoever leads has learned what the others knew."""
        now = self._clock()
        start, failure = told.start, told.failure
        if start is not None:
            mine = self._starts.get(function)
            if mine is None or (mine.name != start.name and mine.at < now - start.age):
                self._starts.set(function, _Start(start.name, now - start.age, start.shown))
            elif mine.name == start.name and start.shown and not mine.shown:
                self._starts.set(function, replace(mine, shown=True))
        if failure is not None:
            last = self._failures.get(function)
            learned = _Failure(failure.count, failure.start, failure.reason, now + failure.left)
            if last is None or (
                (last.start, last.count) != (learned.start, learned.count)
                and last.retry_at < learned.retry_at
            ):
                self._failures.set(function, learned)

    def _take(
        self, function: Function, told: Known, news: bool, since: float = -math.inf
    ) -> FunctionMeta | None:
        """Make an entry of what another worker was told.

        :return: the entry, if it counts as an answer: it is fresh, or came while one was waited for.
        :raises FunctionNotFound: the provider does not know the function.
        """
        asked_at = self._clock() - told.age
        if asked_at < since:
            return None
        news = news and told.trouble is None  # a trouble is told along with an answer from before
        if told.status is not None:
            meta = self._see(function, told.status, asked_at)
            return meta if news or told.age <= self._cache.expiry else None
        if told.trouble is None and (news or told.age <= self._cache.missing_expiry):
            self._cache.set_missing(function, asked_at)
            raise FunctionNotFound(*function)
        return None

    def _tell(
        self,
        lead: Lead,
        function: Function,
        meta: FunctionMeta | None,
        *,
        trouble: Trouble | None = None,
        news: bool = True,
    ) -> None:
        """Tell the fleet a status, and all else that is known here."""
        now = self._clock()
        known = Known(None, trouble=trouble)
        if meta is not None and not meta.doubted:
            known = Known(meta.status, max(0.0, now - meta.last_refresh), trouble=trouble)
        failure, start = self._failures.get(function), self._starts.get(function)
        if failure is not None and now <= failure.retry_at + STABLE:
            told = Failure(failure.count, failure.start, failure.reason, failure.retry_at - now)
            known = replace(known, failure=told)
        if start is not None:
            known = replace(known, start=Start(start.name, now - start.at, start.shown))
        lead.publish(known, news=news)

    def _tell_missing(self, lead: Lead, function: Function) -> None:
        self._cache.set_missing(function)
        lead.publish(Known(None))

    def _see(self, function: Function, status: ReplicaStatus, asked_at: float) -> FunctionMeta:
        """Remember a status, and whether it shows the last start."""
        start = self._starts.get(function)
        if start is not None and not start.shown and status.replicas > 0 and asked_at >= start.at:
            self._starts.set(function, replace(start, shown=True))
        return self._cache.set(function.name, status, function.namespace, asked_at=asked_at)

    def _query(
        self,
        function: Function,
        lead: Lead,
        seen: ReplicaStatus | None = None,
        trouble: ProviderError | None = None,
    ) -> FunctionMeta:
        """Ask the provider, or let it watch for a change from ``seen``; remember the answer, and tell the
        fleet.

        :param trouble: what the leader has met otherwise and not got over.
        """
        asked_at = self._clock()
        try:
            if seen is None or self._watching is None:
                status = self._provider.get_replicas(*function)
            else:
                status = self._watching.wait_for_change(*function, seen, WATCH)
                asked_at = self._clock() if status != seen else asked_at
        except FunctionNotFound:
            self._tell_missing(lead, function)
            raise
        except ProviderError:
            raise
        except BaseException as error:  # a leader's thread ends with its flight: nobody else is meant
            raise ProviderError(f"{type(error).__name__}: {error}") from error
        if not isinstance(status, ReplicaStatus):
            raise ProviderError(f"get_replicas returned {status!r}, not a ReplicaStatus")
        meta = self._see(function, status, asked_at)
        troubled = None if trouble is None or meta.available else Trouble()
        self._tell(lead, function, meta, trouble=troubled, news=status != seen)
        return meta

    def _set_replicas(self, function: Function, lead: Lead, replicas: int) -> None:
        try:
            self._provider.set_replicas(*function, replicas)
        except FunctionNotFound:
            self._tell_missing(lead, function)
            raise
        except ProviderError:
            raise
        except BaseException as error:
            raise ProviderError(f"{type(error).__name__}: {error}") from error

    def _pending_start(self, function: Function) -> float | None:
        """When a start was asked for that may show yet, perhaps by a leader that has died since."""
        start, failure = self._starts.get(function), self._failures.get(function)
        if start is None or start.shown or self._clock() >= start.at + SETTLE:
            return None
        failed = failure is not None and failure.start == start.name
        return None if failed else start.at

    # Failed starts and the rest after them

    def _refuse_while_resting(self, function: Function) -> None:
        failure = self._failures.get(function)
        if failure is not None:
            left = failure.retry_at - self._clock()
            if left > 0:
                raise FunctionFailed(function, failure.reason, left)

    def _fail(self, function: Function, reason: str, start: str, rest_from: float) -> None:
        """Note a failed start, and rest: each failure in a row doubles the time to the next start.

        :raises FunctionFailed: unless the rest is over already.
        """
        now = self._clock()
        last = self._failures.get(function)
        in_a_row = last is not None and now <= last.retry_at + STABLE
        count = last.count + 1 if last is not None and in_a_row else 1
        retry_at = rest_from + backoff_step(count)
        self._failures.set(function, _Failure(count, start, reason, retry_at))
        if retry_at > now:
            self._report(StartFailed(function, reason, retry_at - now))
        self._refuse_while_resting(function)

    def _check_last_start(self, function: Function, reason: str) -> None:
        """The function ended by itself. Soon after its start that counts as a failed one, once."""
        start = self._starts.get(function)
        failure = self._failures.get(function)
        if start is None or self._clock() > start.at + STABLE:
            return
        if failure is None or failure.start != start.name:
            self._fail(function, reason, start.name, rest_from=start.at)

    # What becomes of a wait

    def _give_up(self, function: Function, flight: Flight[FunctionMeta], begun: float) -> Exception:
        waited = self._clock() - begun
        trouble = flight.trouble  # read once: the leader changes it
        if isinstance(trouble, ProviderSilent):
            return ProviderSilent(str(trouble))
        if trouble is not None:
            return ProviderError(str(trouble))
        return NotAvailable(function, waited, self.time_left(function))

    def _woken(self, meta: FunctionMeta, after: float) -> None:
        meta.usage.woken_at = self._clock()
        self._durations.change(meta.function, lambda known: (*(known or ()), after)[-5:])
        self._report(FunctionReady(meta.function, after))


class _Wake:
    """One flight, from the first query to the first replica, led by this worker or another.

    :param doubted: the entry that is not to be used any more.
    :param since: take no answer to a question asked before that moment.
    """

    def __init__(
        self,
        scaler: FunctionScaler,
        function: Function,
        flight: Flight[FunctionMeta],
        doubted: FunctionMeta | None,
        since: float,
    ) -> None:
        self._scaler = scaler
        self._function = function
        self._flight = flight
        self._doubted = doubted is not None
        self._since = since if doubted is None else max(since, doubted.last_refresh)
        self._clock = scaler._clock
        self._begun = self._clock()
        self._met_unavailable = False
        self._last_start = self._start_name()  # before the others' are learned
        flight.trouble = ProviderSilent("the provider did not answer in time")

    def follow(self, told: Known, news: bool) -> FunctionMeta | None:
        """Take the outcome from another leader, if there is one.

        :raises ScaleZeroError: there is one, and it is not a replica.
        """
        scaler, function = self._scaler, self._function
        scaler._learn(function, told)
        self._flight.trouble = self._trouble_of(told)
        meta = scaler._take(function, told, news, self._since)
        if meta is not None and meta.available:
            start = told.start
            if start is not None and self._clock() - start.age >= self._begun:
                self._met_unavailable = True
            self._arrive(meta)
            return meta
        if meta is not None:
            self._met_unavailable = True
        scaler._refuse_while_resting(function)
        if news and told.trouble is not None and told.trouble.final:
            raise ProviderError("the provider failed another worker for too long: see its log")
        return None

    @staticmethod
    def _trouble_of(told: Known) -> ProviderError | None:
        if told.trouble is not None and told.trouble.age <= SILENT:
            return ProviderError("the provider fails another worker: see its log")
        return ProviderSilent("no worker has had an answer of the provider") if told.age > SILENT else None

    def lead(self, lead: Lead) -> FunctionMeta:
        """Loop until a replica is available.

        :raises ScaleZeroError: there will be none.
        :raises LeadLost: another worker leads.
        """
        self._lead = lead
        self._flight.trouble = ProviderSilent("the provider did not answer in time")
        self._querying = _Patience(self._clock)
        self._scaling = _Patience(self._clock)
        self._polls = growing(0.005, 0.25, factor=1.2)
        self._requested_at = self._scaler._pending_start(self._function)
        self._request_seen = False
        seen: ReplicaStatus | None = None
        while True:
            try:
                meta = self._scaler._query(self._function, lead, seen, self._scaling.trouble)
            except ProviderError as error:
                seen = None
                self._lose(self._querying, error)
                continue
            self._querying.reset()
            self._flight.trouble = self._scaling.trouble
            if meta.available:
                self._arrive(meta)
                return meta
            self._met_unavailable = True
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
            self._pause(changed)

    def _arrive(self, meta: FunctionMeta) -> None:
        if self._met_unavailable:
            self._scaler._woken(meta, self._clock() - self._begun)
        elif self._doubted and self._start_name() != self._last_start:
            # Another worker has had it started: what was doubted is not what is there now.
            meta.usage.woken_at = self._clock()
        elif self._doubted:
            meta.usage.vouched_at = self._clock()

    def _start_name(self) -> str:
        start = self._scaler._starts.get(self._function)
        return "" if start is None else start.name

    def _check_failure(self, meta: FunctionMeta) -> None:
        if meta.status.failure is None:
            return
        try:
            self._judge(meta.status, meta.status.failure)
        finally:
            self._scaler._tell(self._lead, self._function, meta)

    def _judge(self, status: ReplicaStatus, reason: str) -> None:
        if self._requested_at is not None or status.replicas > 0:
            start = self._scaler._starts.get(self._function)
            name = uuid.uuid4().hex if start is None else start.name
            self._scaler._fail(self._function, reason, name, rest_from=self._clock())
        else:
            # Left from before: it does not stand against a new start, but for one that came too soon.
            self._scaler._check_last_start(self._function, reason)

    def _must_request(self, status: ReplicaStatus) -> bool:
        if status.replicas > 0:
            self._request_seen = True
            return False
        if self._requested_at is None or self._request_seen:
            return True
        return self._clock() >= self._requested_at + SETTLE

    def _request(self, meta: FunctionMeta) -> None:
        """Scale up from zero."""
        status = meta.status
        replicas = status.first_replicas
        self._lead.confirm()
        try:
            self._scaler._set_replicas(self._function, self._lead, replicas)
        except ProviderError as error:
            self._lose(self._scaling, error)
            return
        self._scaling.reset()
        self._flight.trouble = None
        self._requested_at = started = self._clock()
        self._request_seen = False
        self._scaler._starts.set(self._function, _Start(uuid.uuid4().hex, started))
        self._scaler._tell(self._lead, self._function, meta)
        self._scaler._report(ScaleRequested(self._function, status.replicas, replicas))
        self._polls = growing(0.005, 0.25, factor=1.2)

    def _lose(self, patience: _Patience, error: ProviderError) -> None:
        self._flight.trouble = error
        self._scaler._report(ProviderFailed(self._function, error))
        too_long = patience.lost(error)
        meta = self._scaler._cache.find(self._function)
        self._scaler._tell(self._lead, self._function, meta, trouble=Trouble(final=too_long))
        if too_long:
            raise error
        self._sleep(patience.delays)

    def _pause(self, changed: bool) -> None:
        """Wait before the next query. A provider that watches waits by itself, unless it came back
        without a change, too early perhaps: then the poll's pauses keep it from spinning."""
        if self._scaler._watching is None or not changed:
            self._sleep(self._polls)
        self._check_end()

    def _sleep(self, delays: Iterator[float]) -> None:
        self._scaler._sleep(next(delays) * (0.75 + self._scaler._jitter() / 2))
        self._check_end()

    def _check_end(self) -> None:
        now = self._clock()
        if now > self._flight.until:
            raise NotAvailable(self._function, now - self._begun)
