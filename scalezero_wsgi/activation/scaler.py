"""The cold path: query, scale up, wait for a replica; one leader for each function.

After OpenFaaS's ``gateway/handlers/scaling.go``, with its faults mended: whatever the provider says is
cached when it is seen, a wait that ends without a replica is an error, and one failed query ends
nothing.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from functools import partial

from .._lib.durations import label_seconds
from ..coordination.base import ProviderFault, SharedStatus
from ..coordination.peers import Leadership, Peers
from ..events import FunctionReady, ProviderFailed, Reporter
from ..model import (
    Function,
    FunctionNotFound,
    NotAvailable,
    ProviderError,
    ProviderSilent,
    TooManyWaiting,
)
from ..providers.base import DoubtingProvider, Provider
from .activation import Wake
from .function_cache import FunctionCache, FunctionMeta
from .knowledge import Knowledge
from .outages import SILENT
from .single_flight import Flight, SingleFlight
from .starts import median

LINGER = 60.0
"""Seconds for which a start is watched once nobody waits for it any more, unless a setting or label says
otherwise; and those after which a refresh that has not ended counts as one that hangs."""

LINGER_LABEL = "scalezero.linger"

START_TIME_LABEL = "scalezero.start-time"

OUTAGE_PATIENCE = 0.5
"""Seconds for which a request waits for a provider that is known to fail, for a function that the application
could not reach meanwhile."""

FOLLOW = 5.0
"""Seconds for which a refresh keeps the others waiting, and waits for another's."""

UNKNOWN_START = 5.0
"""Seconds that a start is taken to last when nothing tells."""

LEAST_GUESS = 2.0
"""Seconds that are told at least of a start of which none was measured yet."""

LATE = 5.0
"""Seconds that are told at least of a start that takes longer than expected."""

MAX_LEADERS = 1_000
"""Functions that may be asked for at once: it bounds the threads that a hanging provider can hold."""


class FunctionScaler:
    """Makes functions available. Safe for threads and after a fork; threads start on first use.

    :param provider: the one who knows replicas. Calls block within the provider's own time-outs.
    :param cache: where every answer goes.
    :param report: is told what happens.
    :param fleet: the other workers; by default there are none.
    :param linger: seconds for which a start is watched once nobody waits for it any more. The label
        ``scalezero.linger`` says it for one function.
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
        peers: Peers | None = None,
        linger: float = LINGER,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self._provider = provider
        self._cache = cache
        self._report = report or Reporter()
        self._linger = linger
        self._peers = peers or Peers(None, self._report, clock)
        self._clock = clock
        # Looked up late: gevent may replace time.sleep after this line has run.
        self._sleep = sleep or (lambda duration: time.sleep(duration))
        self._jitter = jitter or random.SystemRandom().random
        self._knowledge = Knowledge(provider, cache, self._report, clock, self._jitter)
        self._outages = self._knowledge.outages
        self._wakes: SingleFlight[Function, FunctionMeta] = SingleFlight("scalezero-wake", MAX_LEADERS, clock)
        self._refreshes: SingleFlight[Function, None] = SingleFlight("scalezero-refresh", MAX_LEADERS, clock)

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
        waiter = object()
        while True:
            flight = self._join(function, deadline, since, wanted_until=begun, waiter=waiter)
            try:
                landed = flight.wait(deadline - self._clock()) if wait is None else wait(flight)
            finally:
                flight.leave(waiter, self._clock())
                self.prolong(function, flight, self._clock())
            if not landed:
                raise self._give_up(function, flight, begun)
            try:
                meta = flight.result()
            except NotAvailable:
                if self._clock() >= deadline:
                    raise
                continue  # it ended for want of anybody who waits, at the moment at which we came
            if meta.last_refresh >= since:
                return meta

    def start(self, function: Function, until: float, *, since: float = -math.inf) -> Flight[FunctionMeta]:
        """Have the function woken, and do not wait for it.

        :param until: monotonic seconds up to which the caller is interested. From then on the provider is
            asked rarely, unless somebody waits.
        :raises ScaleZeroError: as :meth:`ensure_available`, for what is known already.
        """
        return self._join(function, until, since, wanted_until=until)

    def prolong(self, function: Function, flight: Flight[FunctionMeta], until: float) -> None:
        """Let a flight go on for one who waits in it longer than they first said.

        :param until: monotonic seconds up to which they wait.
        """
        flight.until = max(flight.until, until + self._linger_of(function))

    def _join(
        self, function: Function, until: float, since: float, *, wanted_until: float, waiter: object = None
    ) -> Flight[FunctionMeta]:
        self._knowledge.starts.refuse_while_resting(function)
        if self._cache.is_missing(function):
            raise FunctionNotFound(*function)
        return self._wakes.join(
            function,
            partial(self._wake, function, since),
            until + self._linger_of(function),
            wanted_until=wanted_until,
            waiter=waiter,
        )

    def _linger_of(self, function: Function) -> float:
        label = self._label(function, LINGER_LABEL)
        return self._linger if label is None else label

    def _label(self, function: Function, name: str) -> float | None:
        meta = self._cache.find(function)
        return None if meta is None else label_seconds(meta.status.labels, name)

    def keep_up(self, function: Function, until: float) -> Flight[FunctionMeta] | None:
        """Have a start that is under way in this process go on. Starts nothing.

        :param until: monotonic seconds up to which the caller is interested.
        :return: the start's flight; ``None`` if there is none.
        """
        return self._wakes.prolong(function, until + self._linger_of(function), until)

    def refuse_while_resting(self, function: Function) -> None:
        """:raises FunctionFailed: the function is left alone after a failed start."""
        self._knowledge.starts.refuse_while_resting(function)

    def told(self, function: Function) -> SharedStatus | None:
        """What the fleet's store holds of the function; ``None``: nothing, or there is no store. Keeps
        nothing of it."""
        return self._peers.known(function)

    def look(self, function: Function, timeout: float) -> ProviderError | None:
        """Have the function's status asked for, without waking it, and wait for that.

        :param timeout: seconds that all who look may wait in all: with a provider that hangs, those who come
            later do not wait.
        :return: what the matter is with the provider, if it has not told.
        """
        flight = self._look(function)
        if flight is not None and not flight.wait(flight.begun + timeout - self._clock()):
            return ProviderSilent("the provider does not answer")
        return self._outages.error(function)

    def refresh(self, function: Function) -> None:
        """Ask for the function's status in the background, unless that is being done. Never blocks."""
        if not self._refreshes.under_way(function):
            self._look(function)

    def stale_if_error(self, function: Function, since: float = -math.inf) -> FunctionMeta | None:
        """The entry of a function last seen up whose provider fails, or has been silent for a second: it is
        to be served. Has it asked for again in the background. Never blocks.

        :param since: take no answer to a question asked before that moment.
        """
        meta = self._cache.last_seen_up(function)
        if meta is None or meta.last_refresh < since:
            return None
        if self._outages.error(function) is None and not self._note_silence(function):
            return None
        self.refresh(function)
        self._outages.serve(function)
        return meta

    def _note_silence(self, function: Function) -> bool:
        """Note that the provider fails if it has owed an answer for a second; whether it has."""
        flight = self._refreshes.flight(function)
        if flight is None or self._clock() <= flight.begun + SILENT:
            return False
        self._outages.failed(function, ProviderSilent("it does not answer"))
        return True

    def provider_failed(self, function: Function, error: ProviderError) -> None:
        """Note that the provider was seen to fail for a function last seen up."""
        if self._outages.error(function) is None and self._cache.last_seen_up(function) is not None:
            self._outages.failed(function, error)

    def patience(self, function: Function) -> float:
        """Seconds for which it makes sense to wait for the provider: few if the application could not reach
        the function while the provider fails."""
        meta = self._cache.find(function)
        doubted = meta is not None and meta.doubted
        return OUTAGE_PATIENCE if doubted and self._outages.lasts(function) else math.inf

    def _look(self, function: Function) -> Flight[None] | None:
        if self._cache.is_missing(function) or self._outages.resting(function):
            return None
        try:
            return self._refreshes.join(function, partial(self._refresh, function), self._clock() + LINGER)
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
        if self._outages.error(meta.function) is None:
            self._note_silence(meta.function)
        self._cache.doubt(meta.function)
        if isinstance(self._provider, DoubtingProvider):
            self._provider.doubt(*meta.function)
        return True

    def expected_start(self, function: Function) -> float | None:
        """How long a start will probably take, in seconds; ``None`` when nothing tells.

        That is the median of the function's last starts; before the first what its label
        ``scalezero.start-time`` says, else the median of other functions' last starts.
        """
        own = median(self._usual(function))
        return self._knowledge.starts.of_others() if own is None else own

    def last_starts(self, function: Function) -> tuple[float, ...]:
        """How long the last starts took, in seconds, the latest last; those of the whole fleet."""
        return self._knowledge.starts.durations(function)

    def _usual(self, function: Function) -> tuple[float, ...]:
        """How long starts of the function take, as far as that is known of itself and not of others."""
        label = self._label(function, START_TIME_LABEL)
        return self.last_starts(function) or ((label,) if label else ())

    def begun_at(self, function: Function) -> float | None:
        """Since when the function is being woken, in monotonic seconds; ``None`` if it is not."""
        flight = self._wakes.flight(function)
        return None if flight is None else flight.begun

    def flight(self, function: Function) -> Flight[FunctionMeta] | None:
        """The flight that wakes the function, or asks whether it has to be woken; ``None``: there is none."""
        return self._wakes.flight(function)

    def time_left(self, function: Function) -> float:
        """Seconds until the function is probably ready: of a whole start if none is under way.

        Clients often try three times and no more (urllib3's ``Retry(total=3)``). So where the expectation
        is a guess, or has proved wrong, what is told grows with the time that has passed: their tries then
        reach well beyond it.
        """
        begun, expected = self.begun_at(function), self.expected_start(function)
        passed = 0.0 if begun is None else self._clock() - begun
        left = (UNKNOWN_START if expected is None else expected) - passed
        measured = bool(self.last_starts(function))
        if left <= 0:
            return max(passed / 2 if measured else passed, LATE)
        return left if measured else max(left, passed / 2, LEAST_GUESS)

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
        wake = Wake(
            self._knowledge,
            function,
            flight,
            doubted=known if known is not None and known.doubted else None,
            since=since,
            pause=self._pause,
            woken=self._woken,
            usual=partial(self._usual, function),
            ends=partial(self._ends, function, flight),
        )
        return self._peers.run_once(function, partial(self._ends, function, flight), wake.follow, wake.lead)

    def _ends(self, function: Function, flight: Flight[FunctionMeta]) -> float:
        """Monotonic seconds after which a flight is of use to nobody."""
        if flight.waiters:
            return flight.until
        return min(flight.until, flight.wanted_until + self._linger_of(function))

    def _refresh(self, function: Function, flight: Flight[None]) -> None:
        def follow(told: SharedStatus, is_update: bool) -> bool | None:
            if self._knowledge.take(function, told, is_update) is not None:
                return True
            if told.trouble is not None and told.trouble.age <= self._outages.pause(function):
                self._outages.failed(function, ProviderError("it fails another worker: see its log"))
                return True
            return None

        def lead(lead: Leadership) -> bool:
            try:
                self._knowledge.query(function, lead)
            except ProviderError:
                self._knowledge.tell(function, lead, self._cache.find(function), trouble=ProviderFault())
                raise
            return True

        try:
            self._peers.run_once(function, lambda: flight.begun + FOLLOW, follow, lead)
        except FunctionNotFound:
            pass
        except NotAvailable:  # the worker that asks has had no answer for as long; or it waits for a start
            self.provider_failed(function, ProviderSilent("the provider does not answer another worker"))
        except ProviderError as error:
            self._outages.failed(function, error)
            self._report(ProviderFailed(function, error))

    def _pause(self, duration: float) -> None:
        self._sleep(duration * (0.75 + self._jitter() / 2))

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
        if not self.last_starts(meta.function):  # a leader of an earlier release does not tell
            self._knowledge.starts.took(meta.function, after)
        self._report(FunctionReady(meta.function, after))
