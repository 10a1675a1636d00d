"""Decide whether a request may be passed down at once, or else whether it may wait, and until when.

A held request occupies a thread or greenlet of the server. So only some may wait, each has a deadline, and
each is checked now and then, in case its client has disconnected or the worker was told to stop.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .._lib.per_process import PerProcess
from .._lib.sleeper import Sleeper
from ..coordination.base import KEEP, WorkerReport
from ..events import Reporter, WaitGivenUp
from ..model import (
    Function,
    FunctionNotFound,
    MayNotWake,
    NoRoom,
    NotAvailable,
    ProviderError,
    ProviderSilent,
    StillStarting,
    TooManyWaiting,
)
from ..servers.watch import lookout
from .function_cache import Freshness, FunctionCache
from .outages import SILENT
from .places import Places, Token
from .scaler import FunctionScaler
from .single_flight import Flight
from .state import NEVER, FunctionMeta

if TYPE_CHECKING:
    from ..settings import Settings

GRACE = 0.1
"""Seconds to wait for a first answer about a function before sending the page, a 202 or (if no place is free)
a refusal."""

NOTICE = 0.02
"""Seconds within which a request without a place notices that its function has to start."""

REFRESH_TIMEOUT = 1.0
"""Seconds for which a request that may not wake waits for the provider's answer."""

PAGE_INTEREST = 10.0
"""Seconds for which each poll of a waking page keeps its function's flight going."""

MAX_WAIT_LABEL = "scalezero.max-wait"


class Caller(NamedTuple):
    """What the queue knows about a request.

    :ivar arrived: monotonic seconds at which it came.
    :ivar wish: what its client prefers to a longer wait: ``"page"`` or ``"respond-async"``.
    :ivar patience: seconds it will wait before it gets ``wish`` or an error.
    :ivar check: raises if the request must stop waiting: its client has disconnected, or the worker stops.
    :ivar room: returns how many requests, one or more, may wait here if ``max_waiting`` is not
        set. Call it in the thread that serves the request.
    :ivar without_slot: returns the context to wait in: it gives the thread's server slot back, and takes one
        at its end.
    :ivar call_id: returns what its client, the log and the events call it.
    """

    arrived: float
    wish: str | None = None
    patience: float = math.inf
    check: Callable[[], None] = lambda: None
    room: Callable[[], int] = lambda: 1
    without_slot: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    call_id: Callable[[], str] = lambda: ""


class RequestQueue:
    """Holds requests until their function is available. Safe for threads and after a fork.

    :param scaler: makes functions available.
    :param cache: what is known about them.
    :param settings: ``max_wait``, ``max_waiting`` and the like.
    :param clock: returns monotonic seconds.
    :param report: receives an event when a request gives up.
    """

    def __init__(
        self,
        scaler: FunctionScaler,
        cache: FunctionCache,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        report: Reporter | None = None,
    ) -> None:
        self._scaler = scaler
        self._cache = cache
        self._settings = settings
        self._clock = clock
        self._report = report or Reporter()
        self._places: PerProcess[Places] = PerProcess(Places)
        self._release_lock = PerProcess(lambda: threading.Lock())

    def warm(self, function: Function) -> FunctionMeta | None:
        """Return the entry if a request may be passed down at once; refresh it if it is not fresh."""
        state = self._cache.find_state(function)
        meta = None if state is None else state.meta
        if meta is None or not meta.available:
            return None
        match self._cache.freshness(meta):
            case Freshness.EXPIRED:
                return self._scaler.stale_if_error(function)
            case Freshness.STALE:
                self._scaler.refresh_stale(meta, self._clock())
        return meta

    def only_if_warm(self, function: Function) -> FunctionMeta:
        """Like :meth:`warm`, for a request that may not wake; wait briefly for the provider's answer.

        :raises ScaleZeroError: the request cannot be passed down.
        """
        before, meta = self._cache.find(function), self.warm(function)
        if meta is None and self._cache.freshness(before) is not Freshness.FRESH:
            self._scaler.wait_for_refresh(function, REFRESH_TIMEOUT)
            meta = self.warm(function)
        if meta is not None:
            return meta
        if self._cache.is_missing(function):
            raise FunctionNotFound(*function)
        after = self._cache.find(function)
        if after is before and self._cache.freshness(after) is not Freshness.FRESH:
            raise ProviderSilent("the provider has not said whether the function is at zero")
        raise MayNotWake(function, self._settings.no_wake_status)

    def hold(self, function: Function, caller: Caller, since: float = -math.inf) -> FunctionMeta:
        """Block until the function is available.

        :param since: ignore answers to queries made before that moment.
        :raises TooManyWaiting: there is no place to wait.
        :raises StillStarting: the client prefers an answer to a longer wait.
        :raises ClientGone: the client has disconnected.
        :raises WorkerStopping: the worker was told to stop.
        :raises ScaleZeroError: the function did not become available; see
            :meth:`~scalezero_wsgi.activation.scaler.FunctionScaler.ensure_available`.
        """
        settings = self._settings
        room, of_function = settings.max_waiting or caller.room, settings.max_waiting_per_function
        places, token = self._places.get(), Token()
        try:
            if not places.take(token, function, room, of_function):
                return self._without_a_place(function, caller, since)
            with caller.without_slot():
                try:
                    deadline = self._deadline(function, caller)
                    check = partial(self._check, function, caller, self._clock())
                    meta = self._scaler.ensure_available(function, deadline, since=since, check=check)
                    if settings.release_rate is not None and meta.state.came_up_at >= caller.arrived:
                        self._release_gradually(meta, caller, settings.release_rate)
                except (NotAvailable, ProviderError) as error:
                    return self._give_up(function, caller, since, error)
                return meta
        finally:
            try:
                places.tokens.pop(token, None)
            finally:
                token.beside.pop(token, None)

    def _give_up(
        self, function: Function, caller: Caller, since: float, error: NotAvailable | ProviderError
    ) -> FunctionMeta:
        """Return the entry to serve although the provider fails.

        :raises ScaleZeroError: there is no such entry.
        """
        if isinstance(error, ProviderError):
            if not isinstance(error, ProviderSilent):  # after a short wait it may just be slow
                self._scaler.provider_failed(function, error)
            stale = self._scaler.stale_if_error(function, since)
            if stale is not None:
                return stale
        answer = self._instead_of_waiting(function, caller, error)
        if not isinstance(answer, StillStarting):
            self._report(WaitGivenUp(function, self._clock() - caller.arrived, caller.call_id()))
        raise answer

    def _instead_of_waiting(
        self, function: Function, caller: Caller, error: NotAvailable | ProviderError
    ) -> NotAvailable | ProviderError:
        """Return the answer if the client's patience ran out, else the original error."""
        if isinstance(error, ProviderError) and not isinstance(error, ProviderSilent):
            return error
        max_wait = self.max_wait(function)
        shortened = caller.wish != "page" and caller.patience < max_wait
        if caller.wish == "respond-async" or (caller.wish == "page" and caller.patience <= max_wait):
            return self._still_starting(function, caller, shortened)
        if not shortened:
            return error
        if isinstance(error, NoRoom):
            return NoRoom(function, self._clock() - caller.arrived, error.retry_after, shortened)
        # Its patience ran out: do not report the provider as failing.
        left = error.retry_after if isinstance(error, NotAvailable) else self._scaler.time_left(function)
        return NotAvailable(function, self._clock() - caller.arrived, left, shortened)

    def _still_starting(self, function: Function, caller: Caller, shortened: bool = False) -> StillStarting:
        waited, left = self._clock() - caller.arrived, self._scaler.time_left(function)
        return StillStarting(function, waited, left, str(caller.wish), shortened)

    def _check(
        self, function: Function, caller: Caller, joined_at: float, flight: Flight[FunctionMeta]
    ) -> float:
        """Return the current deadline of a request that waits.

        :raises ScaleZeroError: the request must stop waiting.
        """
        deadline = self._deadline(function, caller)  # its label may be known by now
        if self._clock() < deadline:
            self._check_provider(function, flight, joined_at)
            caller.check()
        return deadline

    def _check_provider(self, function: Function, flight: Flight[FunctionMeta], joined_at: float) -> None:
        """Raise the provider's error if it fails and an old entry can be served, or patience is over."""
        failing, stale = self._failing(flight), self._cache.last_seen_up(function)
        if failing is not None and stale is not None and stale.last_refresh < flight.started_at:
            self._scaler.provider_failed(function, failing)
            raise failing
        if not flight.starting and self._clock() >= joined_at + self._scaler.patience(function):
            raise failing or ProviderSilent("the provider does not answer")

    def _failing(self, flight: Flight[FunctionMeta]) -> ProviderError | None:
        """Return the error that the flight's provider gave; ``None`` if none is known."""
        trouble = flight.trouble  # read once: the leader changes it
        if isinstance(trouble, ProviderError) and not isinstance(trouble, ProviderSilent):
            return ProviderError(str(trouble))  # a copy: all waiters would raise one object
        if not flight.starting and self._clock() >= flight.started_at + SILENT:
            return ProviderSilent("the provider does not answer")
        return None

    # All places are taken

    def _without_a_place(self, function: Function, caller: Caller, since: float) -> FunctionMeta:
        """Handle a request for which no place is free: refuse it only if its function has to start."""
        before, fresh_from = self._cache.find(function), max(since, caller.arrived - self._cache.expiry)
        error = self._wait_for_a_query(function, caller.arrived, fresh_from)
        meta = self._cache.find(function)
        told = meta is not None and (meta is not before or meta.last_refresh >= fresh_from)
        if meta is not None and told and meta.available and meta.last_refresh >= since:
            return meta
        if error is not None:
            self._scaler.provider_failed(function, error)
            stale = self._scaler.stale_if_error(function, since)
            if stale is not None:
                return stale
        if self._cache.is_missing(function):
            raise FunctionNotFound(*function)
        if caller.wish == "respond-async":  # needs no place
            self._scaler.start(function, caller.arrived)
            raise self._still_starting(function, caller)
        left = self._scaler.time_left(function)
        raise TooManyWaiting(f"no place is left for a request for {function}", left)

    def _wait_for_a_query(
        self, function: Function, arrived: float, asked_after: float
    ) -> ProviderError | None:
        """Wait until the provider has said whether the function is up, but not for a start.

        :param asked_after: ignore answers to queries made before that moment.
        :return: the provider's error, if it does not answer; else ``None``.
        """
        while True:
            meta, flight = self._cache.find(function), self._scaler.flight(function)
            if meta is not None and meta.last_refresh >= asked_after and not meta.suspect:
                return None
            up = meta is not None and meta.available
            left = arrived + (SILENT if up else GRACE) - self._clock()
            if flight is None:
                return self._scaler.wait_for_refresh(function, left)
            if flight.starting or left <= 0 or flight.wait(min(NOTICE, left)):
                return self._failing(flight)

    # Deadlines, counts and turns

    def _deadline(self, function: Function, caller: Caller) -> float:
        return caller.arrived + min(caller.patience, self.max_wait(function))

    def max_wait(self, function: Function) -> float:
        """Return the seconds for which a request may be held: by the function's setting, else by its label,
        else by the default."""
        settings = self._settings.max_wait_of
        if settings and (own := settings.get(str(function))) is not None:  # asked for each that waits, often
            return own
        return self._cache.labelled_seconds(function, MAX_WAIT_LABEL, self._settings.max_wait)

    def waiting(self, function: Function | None = None) -> int:
        """Return how many requests wait in this process, for one function or in all."""
        places = self._places.get()
        return len(places.tokens) if function is None else places.count(function)

    def by_function(self) -> dict[Function, int]:
        """Return how many requests wait in this process, for each function."""
        return dict(Counter(list(self._places.get().tokens.values())))

    def report(self, worker: str) -> WorkerReport:
        """Return the report of what this worker does, for its peers."""
        now = self._clock()
        # Most were never used, of many.
        states = [
            each for each in self._cache.states() if each.last_used != NEVER or each.page_asked_at != NEVER
        ]
        pages = {state.function: 1 for state in states if now <= state.page_asked_at + PAGE_INTEREST}
        return WorkerReport(
            worker,
            in_flight={state.function: len(state.in_flight) for state in states if state.in_flight},
            waiting=pages | self.by_function(),
            unused_for={
                state.function: now - state.last_used for state in states if now < state.last_used + KEEP
            },
        )

    def _release_gradually(self, meta: FunctionMeta, caller: Caller, rate: float) -> None:
        """Let the requests that waited for a start go on one by one.

        :param rate: requests per second.
        :raises NotAvailable: its turn is after the deadline; raised at once.
        """
        state, now = meta.state, self._clock()
        deadline = max(now, self._deadline(meta.function, caller))
        with self._release_lock.get():
            turn = max(now, state.release_at + 1.0 / rate)
            if turn > deadline:  # too late for this request: the turn stays free
                raise NotAvailable(meta.function, now - caller.arrived, turn - now)
            state.release_at = turn
        if turn <= now:
            return

        def wants_to_wait() -> bool:
            caller.check()
            return True

        sleeper = Sleeper()
        with lookout().watch(sleeper, wants_to_wait):
            sleeper.sleep(turn - self._clock())
            while (left := turn - self._clock()) > 0:  # woken before its turn
                caller.check()
                sleeper.sleep(left)
