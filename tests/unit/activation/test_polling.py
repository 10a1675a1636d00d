"""How late the end of a start is seen with a provider that must be polled, and after how many queries.

By default in simulated time; ``pytest -m soak -s tests/unit/activation/test_polling.py`` runs the same for
some minutes by the real clock, with threads, and prints the figures.
"""

from __future__ import annotations

import math
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero_wsgi import Function, FunctionCache, FunctionScaler, ReplicaStatus
from scalezero_wsgi.activation.polling import LATE, LONGEST, expected_window, pause
from scalezero_wsgi.activation.scaler import START_TIME_LABEL
from scalezero_wsgi.activation.state import REMEMBERED
from scalezero_wsgi.providers import CallbackProvider
from tests.support.clock import Clock
from tests.support.fakes import HELLO, STARTING, UP, ZERO
from tests.support.waiting import PATIENCE

DURATIONS = (0.3, 1.0, 3.0, 10.0, 60.0)
QUERY = 0.001
"""Seconds that the provider takes to answer."""

times = st.floats(0.0, 1e5)
starts = st.lists(st.floats(0.0, 1e4), max_size=REMEMBERED)


class TestPause:
    @settings(deadline=None)
    @given(times, starts)
    def test_it_is_never_nothing_nor_longer_than_a_second(self, elapsed: float, known: list[float]) -> None:
        assert 0.005 <= pause(elapsed, known) <= LONGEST

    @settings(deadline=None)
    @given(times)
    def test_while_nothing_is_known_it_is_a_part_of_what_has_passed(self, elapsed: float) -> None:
        """Half of it is the median delay, which may be 2 % of the start and 10 ms."""
        assert pause(elapsed, ()) <= 0.02 + 0.04 * elapsed

    @settings(deadline=None)
    @given(times, st.floats(0.5, 1e3))
    def test_after_the_expected_time_it_grows_to_a_tenth_of_a_second(self, over: float, usual: float) -> None:
        _, end = expected_window([usual])
        assert pause(end + over, [usual]) <= LATE
        assert pause(end + 10.0, [usual]) == LATE

    def test_it_is_short_around_the_expected_time_and_long_before(self) -> None:
        known = [9.0, 10.5, 9.6, 10.1, 9.9]
        assert all(pause(t, known) <= 0.02 for t in (9.6, 10.0, 10.5, 10.8))
        assert pause(5.0, known) == LONGEST

    def test_a_long_pause_ends_when_the_expected_time_begins(self) -> None:
        begin, _ = expected_window([10.0])
        assert pause(begin - 0.3, [10.0]) == pytest.approx(0.3)

    def test_the_window_follows_from_the_last_starts_themselves(self) -> None:
        assert expected_window([8.0, 9.0, 10.0, 11.0, 12.0]) == (7.0, 13.0)
        assert expected_window([10.0]) == (8.0, 12.0)
        begin, end = expected_window([10.0, 10.0, 10.0])
        assert 9.5 <= begin < 10.0 < end <= 10.5

    def test_starts_that_differ_widely_foretell_nothing(self) -> None:
        """An image that is on the host in one case and pulled in the other."""
        assert pause(5.0, [1.0, 60.0]) == pause(5.0, ())

    @pytest.mark.parametrize("usual", [0.3, 1.0, 3.0, 10.0, 60.0])
    def test_a_start_faster_than_ever_is_found_within_a_few_tenths_of_its_time(self, usual: float) -> None:
        begin, _ = expected_window([usual])
        for at in (begin * part / 10 for part in range(10)):
            assert pause(at, [usual]) <= 0.1 + 0.35 * at


class Engine:
    """A provider without ``wait_for_change``, of one function whose starts vary by a fifth."""

    def __init__(
        self, duration: float, seed: int, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._duration = duration
        self._clock = clock
        self._sleep = sleep
        self._random = random.Random(seed)
        self.ready_at: float | None = None
        self.queries = 0

    def zero(self, duration: float | None = None) -> None:
        """Scale it to zero; its next starts take about so many seconds."""
        self._duration = self._duration if duration is None else duration
        self.ready_at, self.queries = None, 0

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        self.queries += 1
        ready = self.ready_at is not None and self._clock() >= self.ready_at
        self._sleep(QUERY)
        if self.ready_at is None:
            return ZERO
        return UP if ready else STARTING

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        self._sleep(QUERY)
        self.ready_at = self._clock() + self._duration * self._random.uniform(0.8, 1.2)


class Start(NamedTuple):
    """How late its end was seen, in seconds, and after how many queries."""

    added: float
    queries: int


def start_again_and_again(
    duration: float,
    count: int,
    seed: int,
    wake: Callable[[FunctionScaler], object],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Start]:
    """The starts of a function of which nothing is known before the first."""
    engine = Engine(duration, seed, clock, sleep)
    jitter = random.Random(seed).random
    scaler = FunctionScaler(engine, FunctionCache(0.01, clock=clock), clock=clock, sleep=sleep, jitter=jitter)
    made = []
    for _ in range(count):
        engine.zero()
        wake(scaler)
        made.append(Start(clock() - (engine.ready_at or 0.0), engine.queries))
        sleep(0.1)
    return made


class Outcome(NamedTuple):
    """The first starts of functions, and the third ones and later."""

    duration: float
    first: list[Start]
    later: list[Start]

    def __str__(self) -> str:
        return f"{self.duration:4.1f} s: first {figures(self.first)}; later {figures(self.later)}"

    def check(self) -> None:
        assert statistics.median(start.added for start in self.first) <= 0.02 * self.duration + 0.010
        assert statistics.median(start.added for start in self.later) <= 0.020
        assert self.duration > 10.0 or statistics.median(start.queries for start in self.later) <= 60


def outcome_of(duration: float, runs: list[list[Start]]) -> Outcome:
    return Outcome(duration, [run[0] for run in runs], [start for run in runs for start in run[2:]])


def figures(made: list[Start]) -> str:
    added = sorted(1000 * start.added for start in made)
    queries = sorted(start.queries for start in made)
    return (
        f"+{statistics.median(added):.1f} ms (nine tenths below {added[len(added) * 9 // 10]:.0f}),"
        f" {statistics.median(queries):.0f} queries (mean {statistics.mean(queries):.0f}, most {queries[-1]})"
    )


@pytest.mark.parametrize("duration", [*DURATIONS[:-1], pytest.param(60.0, marks=pytest.mark.soak)])
def test_the_end_of_a_start_is_seen_soon(duration: float) -> None:
    def run(seed: int) -> list[Start]:
        clock = Clock()
        return start_again_and_again(
            duration,
            8,
            seed,
            lambda scaler: scaler.ensure_available(HELLO, math.inf),
            clock,
            clock.sleep,
        )

    outcome = outcome_of(duration, [run(seed) for seed in range(30)])
    print(outcome)
    outcome.check()


@pytest.mark.soak
def test_it_is_so_by_the_real_clock(capsys: pytest.CaptureFixture[str]) -> None:
    """Takes six minutes: five starts of a minute, and those that are shorter at the same time."""
    functions_at_once = {0.3: 4, 1.0: 4, 3.0: 6, 10.0: 10, 60.0: 24}
    one_after_another = {0.3: 20, 1.0: 15, 3.0: 8, 10.0: 5, 60.0: 1}
    runs: dict[float, list[list[Start]]] = {duration: [] for duration in DURATIONS}

    def run(duration: float, first_seed: int) -> None:
        for number in range(one_after_another[duration]):
            made = start_again_and_again(
                duration,
                5,
                first_seed + number,
                lambda scaler: scaler.ensure_available(HELLO, time.monotonic() + 1_000),
            )
            runs[duration].append(made)

    threads = [
        threading.Thread(target=run, args=(duration, 100 * number), daemon=True)
        for duration in DURATIONS
        for number in range(functions_at_once[duration])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    outcomes = [outcome_of(duration, runs[duration]) for duration in DURATIONS]
    with capsys.disabled():
        print("", *outcomes, sep="\n")
    for outcome in outcomes:
        outcome.check()


class TestWhatIsKnown:
    """Of starts, before this worker has made any, or of other functions."""

    class Labelled(Engine):
        labels: dict[str, str]

        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            return replace(super().get_replicas(name, namespace), labels=self.labels)

    def scene(self, label: str | None = None) -> tuple[FunctionScaler, Labelled, Clock]:
        clock = Clock()
        engine = self.Labelled(10.0, 0, clock, clock.sleep)
        engine.labels = {} if label is None else {START_TIME_LABEL: label}
        scaler = FunctionScaler(
            engine, FunctionCache(0.01, clock=clock), clock=clock, sleep=clock.sleep, jitter=lambda: 0.5
        )
        return scaler, engine, clock

    def wake(self, scaler: FunctionScaler, clock: Clock, function: Function = HELLO) -> None:
        scaler.ensure_available(function, math.inf)
        clock.advance(1.0)

    def test_nothing_tells_before_the_first_start(self) -> None:
        scaler, _, _ = self.scene()
        assert scaler.expected_start(HELLO) is None

    def test_the_label_tells_before_the_first_start_and_not_after_it(self) -> None:
        scaler, _, clock = self.scene("40s")
        assert scaler.wait_for_refresh(HELLO, PATIENCE) is None
        assert scaler.expected_start(HELLO) == 40.0
        self.wake(scaler, clock)
        assert scaler.expected_start(HELLO) == scaler.last_starts(HELLO)[0] < 13.0

    @pytest.mark.parametrize("label", ["soon", "", "0"])
    def test_a_label_that_tells_no_duration_tells_nothing(self, label: str) -> None:
        scaler, _, _ = self.scene(label)
        assert scaler.wait_for_refresh(HELLO, PATIENCE) is None
        assert scaler.expected_start(HELLO) is None

    def test_a_label_spares_queries(self) -> None:
        asked = []
        for label in (None, "10s"):
            scaler, engine, clock = self.scene(label)
            engine.zero(8.5)
            self.wake(scaler, clock)
            asked.append(engine.queries)
        assert asked[1] < asked[0]

    def test_other_functions_tell_of_one_that_has_not_started_yet(self) -> None:
        scaler, engine, clock = self.scene()
        for name, duration in (("a", 2.0), ("b", 20.0), ("c", 5.0)):
            engine.zero(duration)
            self.wake(scaler, clock, Function(name))
        median = scaler.expected_start(HELLO)
        assert median == scaler.last_starts(Function("c"))[0]
        engine.zero(1.0)
        self.wake(scaler, clock)
        assert scaler.expected_start(HELLO) == scaler.last_starts(HELLO)[0] < 2.0

    def test_only_so_many_starts_are_remembered(self) -> None:
        scaler, engine, clock = self.scene()
        for _ in range(REMEMBERED + 2):
            engine.zero()
            self.wake(scaler, clock)
        assert len(scaler.last_starts(HELLO)) == REMEMBERED

    def test_a_call_that_returns_when_the_function_is_ready_is_part_of_its_start(self) -> None:
        clock = Clock()
        provider = CallbackProvider(scale_up=lambda *_: clock.advance(20.0), clock=clock)
        scaler = FunctionScaler(provider, FunctionCache(0.01, clock=clock), clock=clock, sleep=clock.sleep)
        self.wake(scaler, clock)
        assert scaler.last_starts(HELLO) == (20.0,)
