"""A start that nobody waits for any more."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from scalezero_wsgi import FunctionCache, FunctionScaler, NotAvailable, ReplicaStatus
from scalezero_wsgi.activation.activation import SLICE, UNWANTED_PAUSE
from scalezero_wsgi.activation.scaler import LINGER, LINGER_LABEL
from scalezero_wsgi.activation.single_flight import Flight
from scalezero_wsgi.activation.state import FunctionMeta
from scalezero_wsgi.model import ClientGone
from tests.support.clock import Clock, MovingClock
from tests.support.fakes import HELLO, STARTING, UP, ScriptedProvider
from tests.support.waiting import PATIENCE, until

LEFT_AT = 0.5
AT_MOST = 1.25
"""What jitter makes of a pause."""


class Bench:
    """A scaler in simulated time; who asked for the start is interested for ``LEFT_AT`` seconds only."""

    def __init__(self, status: ReplicaStatus = STARTING, linger: float = LINGER) -> None:
        self.clock = Clock()
        self.asked: list[float] = []
        self.status = status
        self.at: list[tuple[float, Callable[[], object]]] = []
        self.scaler = FunctionScaler(
            ScriptedProvider(self._answer),
            FunctionCache(0.25, clock=self.clock),
            linger=linger,
            clock=self.clock,
            sleep=self._sleep,
        )

    def _answer(self) -> ReplicaStatus:
        self.asked.append(self.clock())
        return self.status

    def _sleep(self, duration: float) -> None:
        self.clock.advance(duration)
        while self.at and self.clock() >= self.at[0][0]:
            self.at.pop(0)[1]()

    def wake(self) -> FunctionMeta:
        """Have the start begun, and wait for its end without being one of those who wait."""
        flight = self.scaler.start(HELLO, LEFT_AT)
        assert flight.wait(PATIENCE)
        return flight.result()

    def come(self, until: float) -> None:
        """Be interested in the start from now on up to that moment."""
        self.scaler.start(HELLO, until)

    def asked_since(self, since: float) -> list[float]:
        return [at for at in self.asked if at >= since]


def test_it_is_asked_for_every_few_seconds_and_for_a_minute_only() -> None:
    bench = Bench()
    with pytest.raises(NotAvailable):
        bench.wake()
    assert LEFT_AT + LINGER <= bench.clock() <= LEFT_AT + LINGER + AT_MOST * SLICE
    unwanted = bench.asked_since(LEFT_AT + 0.1)
    assert len(unwanted) <= LINGER / UNWANTED_PAUSE + 1
    assert all(later - earlier >= UNWANTED_PAUSE for earlier, later in itertools.pairwise(unwanted))
    assert len(bench.asked_since(0.0)) < 60


@pytest.mark.parametrize("linger", [0.0, 5.0])
def test_the_setting_says_for_how_long(linger: float) -> None:
    bench = Bench(linger=linger)
    with pytest.raises(NotAvailable):
        bench.wake()
    assert LEFT_AT + linger <= bench.clock() <= LEFT_AT + linger + AT_MOST * SLICE


@pytest.mark.parametrize(("label", "linger"), [("10s", 10.0), ("nonsense", LINGER)])
def test_or_the_label(label: str, linger: float) -> None:
    bench = Bench(replace(STARTING, labels={LINGER_LABEL: label}))
    with pytest.raises(NotAvailable):
        bench.wake()
    assert LEFT_AT + linger <= bench.clock() <= LEFT_AT + linger + AT_MOST * SLICE


def test_who_comes_then_does_not_wait_for_the_next_query() -> None:
    bench = Bench()
    came: list[float] = []

    def come() -> None:
        came.append(bench.clock())
        bench.status = UP
        bench.come(until=40.0)

    bench.at.append((20.0, come))
    assert bench.wake().available
    assert bench.clock() <= came[0] + AT_MOST * SLICE


def test_from_then_on_queries_are_as_close_as_ever() -> None:
    bench = Bench()
    bench.at.append((20.0, lambda: bench.come(until=30.0)))
    with pytest.raises(NotAvailable):
        bench.wake()
    wanted = [at for at in bench.asked if 21.0 <= at <= 30.0]
    assert len(wanted) >= 9
    unwanted = bench.asked_since(31.5)
    assert all(later - earlier >= UNWANTED_PAUSE for earlier, later in itertools.pairwise(unwanted))
    assert 30.0 + LINGER <= bench.clock() <= 30.0 + LINGER + AT_MOST * SLICE


def test_how_long_it_took_is_estimated_where_it_was_seen_late() -> None:
    bench = Bench()
    bench.at.append((5.0, lambda: setattr(bench, "status", UP)))
    bench.wake()
    ((took,), seen) = bench.scaler.last_starts(HELLO), bench.clock()
    assert seen >= 6.0
    assert took == pytest.approx(seen - UNWANTED_PAUSE / 2, abs=AT_MOST * SLICE)


class TestWhoCounts:
    """Real threads; the provider never has it ready."""

    @staticmethod
    def scaler() -> FunctionScaler:
        return FunctionScaler(ScriptedProvider(STARTING), FunctionCache(0.25))

    def test_one_who_waits_until_the_wait_is_over(self) -> None:
        scaler = self.scaler()
        seen: set[int] = set()

        def check(flight: Flight[FunctionMeta]) -> float:
            seen.add(len(flight.waiters))
            raise ClientGone

        for _ in range(2):
            with pytest.raises(ClientGone):
                scaler.ensure_available(HELLO, time.monotonic() + 25.0, check=check)
        flight = scaler.flight(HELLO)
        assert flight is not None
        assert (seen, flight.waiters) == ({1}, set())
        assert not flight.is_wanted(time.monotonic())

    def test_all_who_wait_at_once(self) -> None:
        scaler = self.scaler()
        deadline = time.monotonic() + 20.0

        def check(_: object) -> float:
            return deadline

        def request() -> None:
            with pytest.raises(NotAvailable):
                scaler.ensure_available(HELLO, time.monotonic() + 20.0, check=check)

        threads = [threading.Thread(target=request) for _ in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: (flight := scaler.flight(HELLO)) is not None and len(flight.waiters) == 20)
        flight = scaler.flight(HELLO)
        assert flight is not None
        deadline = time.monotonic()
        for thread in threads:
            thread.join(20)
        assert not flight.is_wanted(time.monotonic())

    def test_one_who_does_not_wait_as_long_as_it_said(self) -> None:
        scaler = self.scaler()
        now = time.monotonic()
        flight = scaler.start(HELLO, now + 10.0)
        assert flight.is_wanted(now + 9.0)
        assert not flight.is_wanted(now + 11.0)
        assert scaler.start(HELLO, now + 30.0) is flight
        assert scaler.start(HELLO, now + 5.0) is flight
        assert flight.is_wanted(now + 29.0)

    def test_one_who_keeps_a_start_up(self) -> None:
        scaler = self.scaler()
        now = time.monotonic()
        assert scaler.keep_up(HELLO, now + 10.0) is None
        flight = scaler.start(HELLO, now)
        assert scaler.keep_up(HELLO, now + 10.0) is flight
        assert (flight.wanted_until, flight.until) == (now + 10.0, now + 10.0 + LINGER)

    def test_the_label_is_heeded_though_it_was_not_known_when_the_request_came(self) -> None:
        clock = MovingClock()
        labels = {LINGER_LABEL: "1h"}
        provider = ScriptedProvider(replace(STARTING, labels=labels))
        cache = FunctionCache(0.25, clock=clock)
        scaler = FunctionScaler(provider, cache, clock=clock)

        def check(_: object) -> float:
            return clock() + (25.0 if cache.find(HELLO) is None else 0.0)

        with pytest.raises(NotAvailable):
            scaler.ensure_available(HELLO, clock() + 25.0, check=check)
        clock.advance(1_000.0)
        asked = len(provider.queries)

        def asked_again_and_again() -> bool:
            clock.advance(UNWANTED_PAUSE)
            return len(provider.queries) >= asked + 2

        until(asked_again_and_again, pause=0.05)

    def test_who_comes_as_it_ends_for_want_of_anybody_begins_another(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scaler = FunctionScaler(ScriptedProvider(UP), FunctionCache(0.25))
        flights: list[Flight[FunctionMeta]] = []
        outcome = Flight.result

        def result(flight: Flight[FunctionMeta]) -> FunctionMeta:
            flights.append(flight)
            if len(flights) == 1:
                raise NotAvailable(HELLO, 60.0)
            return outcome(flight)

        monkeypatch.setattr(Flight, "result", result)
        assert scaler.ensure_available(HELLO, time.monotonic() + 20.0).available
        assert len(set(flights)) == 2
