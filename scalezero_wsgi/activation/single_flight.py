"""One call at a time for each key, shared by all callers that want its outcome.

A flight belongs to none of its callers: a background thread leads it, and every caller joins with a deadline
of its own. If one leaves, the flight goes on for the others.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from .._lib.per_process import PerProcess
from .._lib.sleeper import Sleeper
from ..model import TooManyWaiting

K = TypeVar("K")
T = TypeVar("T")


ABREAST = 16
"""How many waiters are woken at once; each wakes another. With fewer, a busy machine lags,
because each wake-up in a chain waits for the processor. With many, they fight for the interpreter's lock."""


class Flight(Generic[T]):
    """A call under way.

    :ivar landed: whether it has ended.
    :ivar started_at: monotonic seconds at which it began.
    :ivar until: monotonic seconds after which the leader should end; later joiners extend it.
    :ivar waiters: one token for each caller that waits.
    :ivar wanted_until: monotonic seconds up to which a caller that does not wait wants the outcome, or at
        which the last waiter left.
    :ivar trouble: the leader's last error, while it tries again.
    :ivar starting: whether it is known that the function has to start, so that the call takes long.
    """

    __slots__ = (
        *("_error", "_sleepers", "_value", "landed", "started_at", "starting"),
        *("trouble", "until", "waiters", "wanted_until"),
    )

    def __init__(self, started_at: float, until: float) -> None:
        self.started_at = started_at
        self.until = until
        self.waiters: set[object] = set()
        self.wanted_until = until
        self.trouble: Exception | None = None
        self.starting = False
        self.landed = False
        self._sleepers: deque[Sleeper] = deque()
        self._value: T
        self._error: BaseException | None = None

    def leave(self, waiter: object, now: float, until: float) -> None:
        """Note that a waiter has left.

        :param until: monotonic seconds up to which the flight goes on all the same.
        """
        self.waiters.discard(waiter)
        self.wanted_until = max(self.wanted_until, now)
        self.until = max(self.until, until)

    @property
    def is_waited_for(self) -> bool:
        """Whether a caller waits for the outcome."""
        return bool(self.waiters or self._sleepers)

    def is_wanted(self, now: float) -> bool:
        """Return whether a caller waits for the outcome, or wants it without waiting."""
        return bool(self.waiters) or now <= self.wanted_until

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds; return whether the flight has landed."""
        if not self.landed:
            with self.wakes(Sleeper()) as sleeper:
                if not self.landed:  # if it has landed, nobody may be left to wake us
                    sleeper.sleep(timeout)
        return self.landed

    @contextlib.contextmanager
    def wakes(self, sleeper: Sleeper) -> Iterator[Sleeper]:
        """Wake the sleeper if the flight lands during the block.

        Check ``landed`` in the block before each sleep: the flight may have landed before the block began.
        """
        self._sleepers.append(sleeper)
        try:
            yield sleeper
        finally:
            # A waiter that leaves after the landing wakes another, even if it was not woken itself: its own
            # wake-up may be under way, and the waiters behind it need that one.
            if not self.landed:
                with contextlib.suppress(IndexError, ValueError):  # it may land meanwhile
                    self._sleepers.remove(sleeper)
            if self.landed:  # checked again: it may just have landed
                with contextlib.suppress(IndexError):
                    self._sleepers.popleft().wake()

    def result(self) -> T:
        """Return the outcome of a flight that has landed, or raise the leader's error."""
        if self._error is not None:
            # All waiters raise this one object: drop the traceback that the last one added.
            raise self._error.with_traceback(None)
        return self._value

    def lead(self, call: Callable[[Flight[T]], T]) -> None:
        """Make the call, and keep what it returns or raises."""
        try:
            self._value = call(self)
        except BaseException as error:  # noqa: BLE001  the waiters must be released in any case
            self._error = error

    def land(self) -> None:
        """Wake all waiters, roughly in the order in which they came.

        Wake a few here; each wakes the next. Waking a thousand threads at once takes several times as long,
        because each asks for the interpreter's lock every 5 ms until it gets it.
        """
        self.landed = True  # callers that come later see this, and do not sleep
        with contextlib.suppress(IndexError):
            for _ in range(ABREAST):
                self._sleepers.popleft().wake()


class _Flights(Generic[K, T]):
    __slots__ = ("by_key", "leaders", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_key: dict[K, Flight[T]] = {}
        self.leaders: set[object] = set()

    def fly(self, key: K, flight: Flight[T], call: Callable[[Flight[T]], T]) -> None:
        """Lead the flight from its start until it lands."""
        try:
            flight.lead(call)
        finally:
            with self.lock:
                self.leaders.discard(flight)
                if self.by_key.get(key) is flight:
                    del self.by_key[key]
            flight.land()


class SingleFlight(Generic[K, T]):
    """Starts flights, and joins callers to them. Safe for threads; each process has flights of its own.

    A single flight is not exactly-once: a caller that comes after it has ended starts another. If something
    must happen only once, the call itself must check that.

    :param name: the name of the threads.
    :param limit: how many leaders may run at once, including those whose call hangs.
    :param clock: returns monotonic seconds.
    """

    __slots__ = ("_clock", "_flights", "_limit", "_name")

    def __init__(self, name: str, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._limit = limit
        self._clock = clock
        self._flights: PerProcess[_Flights[K, T]] = PerProcess(_Flights)

    def flight(self, key: K) -> Flight[T] | None:
        """Return the running flight for ``key``, if there is one that may be joined. Takes no lock."""
        flight = self._flights.get().by_key.get(key)
        return flight if flight is not None and self._clock() <= flight.until else None

    def under_way(self, key: K) -> bool:
        """Return whether a flight for ``key`` runs and may be joined. Takes no lock."""
        return self.flight(key) is not None

    def running(self) -> int:
        """Return how many leaders run, including those whose call hangs. Takes no lock."""
        return len(self._flights.get().leaders)

    def prolong(self, key: K, until: float, wanted_until: float) -> Flight[T] | None:
        """Extend the flight for ``key`` to ``until``, if there is one that may be joined. Start none.

        :param wanted_until: monotonic seconds up to which the caller wants the outcome.
        :return: the flight; ``None`` if there is none.
        """
        flights = self._flights.get()
        with flights.lock:
            flight = self.flight(key)
            if flight is not None:
                flight.until = max(flight.until, until)
                flight.wanted_until = max(flight.wanted_until, wanted_until)
            return flight

    def join(
        self,
        key: K,
        call: Callable[[Flight[T]], T],
        until: float,
        *,
        wanted_until: float | None = None,
        waiter: object = None,
    ) -> Flight[T]:
        """Join the flight for ``key``, or start one that makes ``call`` in a thread of its own.

        A flight that is past its ``until`` counts as hanging: a new one replaces it.

        :param until: monotonic seconds up to which the caller wants the flight to go on.
        :param wanted_until: monotonic seconds up to which the caller wants the outcome without waiting for
            it; by default ``until``.
        :param waiter: the caller's token, if it waits; it must call :meth:`Flight.leave` in the end.
        :raises TooManyWaiting: ``limit`` leaders run already.
        """
        flights = self._flights.get()
        wanted_until = until if wanted_until is None else wanted_until
        with flights.lock:
            flight = flights.by_key.get(key)
            if flight is not None and self._clock() <= flight.until:
                flight.until = max(flight.until, until)
                flight.wanted_until = max(flight.wanted_until, wanted_until)
                if waiter is not None:
                    flight.waiters.add(waiter)
                return flight
            if len(flights.leaders) >= self._limit:
                raise TooManyWaiting(
                    f"{self._limit} functions are being asked for already",
                    reason="too many functions are being asked for",
                )
            flight = Flight(self._clock(), until)
            flight.wanted_until = wanted_until
            if waiter is not None:
                flight.waiters.add(waiter)
            flights.by_key[key] = flight
            flights.leaders.add(flight)

        fly = flights.fly
        try:
            threading.Thread(target=fly, args=(key, flight, call), name=self._name, daemon=True).start()
        except RuntimeError:  # can't start new thread
            fly(key, flight, _no_thread)
        return flight


def _no_thread(_: object) -> Any:
    raise TooManyWaiting("no thread could be started", reason="no thread can be started")
