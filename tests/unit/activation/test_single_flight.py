from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest

from scalezero_wsgi import TooManyWaiting
from scalezero_wsgi._lib.sleeper import Sleeper
from scalezero_wsgi.activation.single_flight import ABREAST, Flight, SingleFlight
from tests.support.clock import Clock

PATIENCE = 30.0
"""Seconds after which a test that hangs fails."""

Flights = SingleFlight[str, object]


class Gate:
    """A call that has begun waits here until the test opens it, and gives or raises ``outcome``."""

    def __init__(self, outcome: object = "landed") -> None:
        self.outcome = outcome
        self.calls = 0
        self.started_at = threading.Event()
        self._open = threading.Event()

    def __call__(self, _: Flight[object]) -> object:
        self.calls += 1
        self.started_at.set()
        assert self._open.wait(PATIENCE)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def open(self) -> None:
        self._open.set()


def flights(limit: int = 10, clock: Callable[[], float] = time.monotonic) -> Flights:
    return SingleFlight("test-flight", limit, clock)


def later() -> float:
    return time.monotonic() + PATIENCE


def sleep_in(flight: Flight[object], sleeper: Sleeper, timeout: float = PATIENCE) -> bool:
    """Sleep once, as one who waits and looks up now and then."""
    with flight.wakes(sleeper):
        if not flight.landed:
            sleeper.sleep(timeout)
    return flight.landed


def outcome(flight: Flight[object]) -> object:
    assert flight.wait(PATIENCE)
    return flight.result()


def outcomes_of_joiners(single: Flights, gate: Gate, number: int) -> list[object]:
    """What ``number`` threads get that all join before the gate is opened."""
    joined = threading.Barrier(number + 1)
    got: list[object] = []

    def join() -> None:
        flight = single.join("a", gate, later())
        joined.wait(PATIENCE)
        try:
            got.append(outcome(flight))
        except BaseException as error:
            got.append(error)

    threads = [threading.Thread(target=join) for _ in range(number)]
    for thread in threads:
        thread.start()
    joined.wait(PATIENCE)
    gate.open()
    for thread in threads:
        thread.join(PATIENCE)
    return got


def test_many_threads_join_one_flight_and_share_its_outcome() -> None:
    value = object()
    gate = Gate(value)
    assert outcomes_of_joiners(flights(), gate, 100) == [value] * 100
    assert gate.calls == 1


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
def test_what_the_leader_raises_reaches_all_and_the_next_join_starts_afresh(error: BaseException) -> None:
    single = flights()
    assert outcomes_of_joiners(single, Gate(error), 20) == [error] * 20
    assert not single.under_way("a")
    assert outcome(single.join("a", lambda _: "afresh", later())) == "afresh"


class SlowKey(str):
    """A key that lets the other threads run whenever it is looked up."""

    __slots__ = ()

    def __hash__(self) -> int:
        time.sleep(0.005)
        return super().__hash__()


def test_threads_that_come_at_the_same_moment_start_one_flight() -> None:
    single = flights()
    gate = Gate()
    together = threading.Barrier(8)
    joined: list[Flight[object]] = []

    def join() -> None:
        together.wait(PATIENCE)
        joined.append(single.join(SlowKey("a"), gate, later()))

    threads = [threading.Thread(target=join) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    gate.open()
    assert [outcome(flight) for flight in joined] == ["landed"] * 8
    assert len(set(joined)) == gate.calls == 1


def test_who_comes_after_a_flight_has_landed_starts_another() -> None:
    single = flights()
    assert outcome(single.join("a", lambda _: 1, later())) == 1
    assert outcome(single.join("a", lambda _: 2, later())) == 2


class Noted(Sleeper):
    """Says that it sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = threading.Event()

    def sleep(self, timeout: float) -> None:
        self.asleep.set()
        super().sleep(timeout)


class Leaver(Noted):
    """Leaves when it is told to, as on a signal, whether or not it has been woken."""

    def __init__(self, leave: threading.Event) -> None:
        super().__init__()
        self._leave = leave

    def sleep(self, timeout: float) -> None:
        self.asleep.set()
        assert self._leave.wait(PATIENCE)
        raise SystemExit


def test_those_who_leave_at_the_landing_leave_the_wake_up_to_those_behind_them() -> None:
    flight = Flight[object](0.0, 60.0)
    leave = threading.Event()
    ended: list[bool] = []

    def wait(sleeper: Sleeper) -> None:
        with suppress(SystemExit):
            ended.append(sleep_in(flight, sleeper))

    threads = []
    for number in range(3 * ABREAST):
        sleeper = Leaver(leave) if number < 2 * ABREAST else Noted()
        threads.append(threading.Thread(target=wait, args=(sleeper,)))
        threads[-1].start()
        assert sleeper.asleep.wait(PATIENCE)
    begun = time.monotonic()
    flight.land()
    leave.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2
    assert ended == [True] * ABREAST


def test_who_leaves_at_the_very_moment_of_the_landing_wakes_another() -> None:
    class Landing(Sleeper):
        """The flight lands while another sleeper looks for its own place behind this one."""

        __hash__ = Sleeper.__hash__

        def __eq__(self, other: object) -> bool:
            flight.land()
            return False

    class Last(Sleeper):
        def wake(self) -> None:
            woken.append(self)

    flight = Flight[object](0.0, 60.0)
    woken: list[Sleeper] = []
    last = Last()
    with ExitStack() as others:
        others.enter_context(flight.wakes(Landing()))
        leaver = ExitStack()
        leaver.enter_context(flight.wakes(Sleeper()))
        for sleeper in [*(Sleeper() for _ in range(ABREAST - 2)), last]:
            others.enter_context(flight.wakes(sleeper))
        leaver.close()
        assert woken == [last]


def test_who_begins_to_wait_as_the_flight_lands_does_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Sleeper):
        def __init__(self) -> None:
            super().__init__()
            flight.land()

    flight = Flight[object](0.0, 60.0)
    monkeypatch.setattr("scalezero_wsgi.activation.single_flight.Sleeper", Late)
    begun = time.monotonic()
    assert flight.wait(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2


def test_whoever_is_woken_finds_the_flight_landed_and_no_longer_to_be_joined() -> None:
    single, gate = flights(), Gate()
    flight = single.join("a", gate, later())
    found: list[tuple[bool, bool]] = []

    class Looking(Noted):
        def wake(self) -> None:
            found.append((flight.landed, single.under_way("a")))
            super().wake()

    with flight.wakes(Looking()) as sleeper:
        gate.open()
        sleeper.sleep(PATIENCE)
    assert found == [(True, False)]


def test_only_a_few_are_woken_at_once() -> None:
    """Threads that are all woken by the one who lands fight for the interpreter's lock."""
    woken = 0

    class Counting(Noted):
        def wake(self) -> None:
            nonlocal woken
            woken += threading.current_thread() is threading.main_thread()
            super().wake()

    flight = Flight[object](0.0, 60.0)
    sleepers = [Counting() for _ in range(100)]
    threads = [threading.Thread(target=sleep_in, args=(flight, each)) for each in sleepers]
    for thread, sleeper in zip(threads, sleepers, strict=True):
        thread.start()
        assert sleeper.asleep.wait(PATIENCE)
    flight.land()
    for thread in threads:
        thread.join(PATIENCE)
    assert woken <= ABREAST


def test_a_waiter_may_be_woken_early_and_twice_and_waits_again() -> None:
    flight = Flight[object](0.0, 60.0)
    sleeper = Sleeper()
    sleeper.wake()
    sleeper.wake()
    assert not sleep_in(flight, sleeper)
    assert not sleep_in(flight, sleeper, 0.01)
    flight.land()
    assert sleep_in(flight, sleeper)


def test_a_flight_keeps_nothing_of_those_who_have_left() -> None:
    flight = Flight[object](0.0, 60.0)
    for _ in range(3):
        assert not flight.wait(0.0)
    assert not flight._sleepers


def test_each_waiter_of_an_error_begins_its_traceback_anew() -> None:
    flight = flights().join("a", fail, later())
    depths = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no") as caught:
            outcome(flight)
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert depths == [depths[0]] * 3


def fail(_: Flight[object]) -> object:
    raise ValueError("no")


def test_two_keys_do_not_hold_each_other_up() -> None:
    single = flights()
    slow = Gate()
    waiting = single.join("slow", slow, later())
    assert outcome(single.join("quick", lambda _: "quick", later())) == "quick"
    assert not waiting.wait(0)
    slow.open()
    assert outcome(waiting) == "landed"


@pytest.mark.parametrize("timeout", [-5.0, 0.0, 0.01])
def test_a_waiter_goes_when_its_own_time_is_up_and_the_flight_goes_on(timeout: float) -> None:
    single = flights()
    gate = Gate()
    flight = single.join("a", gate, later())
    assert flight.wait(timeout) is False
    assert single.under_way("a")
    assert single.join("a", gate, later()) is flight
    gate.open()
    assert outcome(flight) == "landed"
    assert gate.calls == 1


def test_the_leader_is_a_named_daemon_thread_that_belongs_to_no_caller() -> None:
    leader = outcome(flights().join("a", lambda _: threading.current_thread(), later()))
    assert isinstance(leader, threading.Thread)
    assert leader is not threading.current_thread()
    assert (leader.name, leader.daemon) == ("test-flight", True)


def test_the_leader_is_given_its_flight_and_can_tell_its_trouble() -> None:
    told = threading.Event()
    gate = Gate()
    trouble = ValueError("still trying")

    def call(flight: Flight[object]) -> object:
        flight.trouble = trouble
        told.set()
        return gate(flight)

    flight = flights().join("a", call, later())
    assert told.wait(PATIENCE)
    assert flight.trouble is trouble
    gate.open()
    assert outcome(flight) == "landed"


def test_a_flight_has_no_trouble_at_first() -> None:
    assert Flight[object](1.0, 2.0).trouble is None


def test_a_flight_tells_when_it_began_however_late_one_joins() -> None:
    clock = Clock()
    single = flights(clock=clock)
    gate = Gate()
    clock.now = 3
    first = single.join("a", gate, until=20)
    clock.now = 7
    assert single.join("a", gate, until=30) is first
    assert (first.started_at, first.until) == (3, 30)
    gate.open()
    outcome(first)


def test_the_flight_that_may_be_joined_can_be_looked_up_and_no_other() -> None:
    clock = Clock()
    single = flights(clock=clock)
    gate = Gate()
    assert single.flight("a") is None
    flight = single.join("a", gate, until=10)
    assert single.flight("a") is flight
    assert single.flight("b") is None
    clock.now = 10.001  # past its end it hangs, and is nobody's
    assert single.flight("a") is None
    gate.open()
    outcome(flight)
    clock.now = 5
    assert single.flight("a") is None


def test_under_way_tells_of_its_own_key_from_the_start_to_the_landing() -> None:
    single = flights()
    gate = Gate()
    assert not single.under_way("a")
    flight = single.join("a", gate, later())
    assert single.under_way("a")
    assert not single.under_way("b")
    gate.open()
    outcome(flight)
    assert not single.under_way("a")


def test_a_later_joiner_moves_the_end_on_and_an_earlier_one_does_not_move_it_back() -> None:
    single = flights(clock=Clock())
    gate = Gate()
    flight = single.join("a", gate, until=10)
    single.join("a", gate, until=20)
    assert flight.until == 20
    single.join("a", gate, until=5)
    assert flight.until == 20
    gate.open()


def test_those_who_wait_want_it_and_the_others_as_long_as_they_say() -> None:
    single = flights(clock=Clock())
    gate = Gate()
    first, second = object(), object()
    flight = single.join("a", gate, until=20, wanted_until=3, waiter=first)
    assert (flight.waiters, flight.wanted_until) == ({first}, 3)
    single.join("a", gate, until=20, wanted_until=8, waiter=second)
    assert (flight.waiters, flight.wanted_until) == ({first, second}, 8)
    single.join("a", gate, until=20, wanted_until=5)
    assert flight.wanted_until == 8
    assert flight.is_wanted(9)
    flight.leave(first, now=10, until=30)
    assert (flight.waiters, flight.wanted_until, flight.until) == ({second}, 10, 30)
    flight.leave(second, now=9, until=25)
    assert (flight.waiters, flight.wanted_until, flight.until) == (set(), 10, 30)
    assert flight.is_wanted(10)
    assert not flight.is_wanted(10.001)
    single.join("a", gate, until=40)
    assert flight.wanted_until == 40
    gate.open()


def test_a_flight_can_be_prolonged_and_none_is_started_for_it() -> None:
    clock = Clock()
    single = flights(clock=clock)
    gate = Gate()
    assert single.prolong("a", until=20, wanted_until=5) is None
    flight = single.join("a", gate, until=10, wanted_until=1)
    for until, wanted_until in ((30, 20), (20, 5)):
        assert single.prolong("a", until, wanted_until) is flight
        assert (flight.until, flight.wanted_until) == (30, 20)
    clock.now = 30.001
    assert single.prolong("a", until=60, wanted_until=60) is None
    gate.open()


def test_a_flight_is_joined_up_to_its_end_and_given_up_for_a_new_one_after_it() -> None:
    clock = Clock()
    single = flights(clock=clock)
    hung = Gate("late")
    first = single.join("a", hung, until=10)
    clock.now = 10
    assert single.join("a", hung, until=10) is first
    clock.now = 10.001
    second = single.join("a", lambda _: "new", until=20)
    assert second is not first
    assert outcome(second) == "new"
    assert not first.wait(0)
    hung.open()
    assert outcome(first) == "late"


def test_a_hung_flight_that_lands_after_all_leaves_its_successor_alone() -> None:
    clock = Clock()
    single = flights(clock=clock)
    hung, successor = Gate("late"), Gate("new")
    first = single.join("a", hung, until=10)
    clock.now = 11
    second = single.join("a", successor, until=20)
    hung.open()
    assert outcome(first) == "late"
    assert single.under_way("a")
    assert single.join("a", successor, until=20) is second
    successor.open()
    assert outcome(second) == "new"
    assert (hung.calls, successor.calls) == (1, 1)


def test_a_hung_flight_past_its_end_does_not_count_as_under_way() -> None:
    clock = Clock()
    single = flights(clock=clock)
    hung = Gate()
    single.join("a", hung, until=10)
    clock.now = 11
    under_way = single.under_way("a")
    hung.open()
    assert not under_way


def test_no_more_leaders_run_than_the_limit_but_flights_can_still_be_joined() -> None:
    single = flights(limit=2)
    gate = Gate()
    first, second = (single.join(key, gate, later()) for key in "ab")
    with pytest.raises(TooManyWaiting, match="2 functions are being asked for already"):
        single.join("c", gate, later())
    assert not single.under_way("c")
    assert single.join("a", gate, later()) is first
    gate.open()
    assert outcome(first) == outcome(second) == "landed"
    assert outcome(single.join("c", lambda _: "c", later())) == "c"


def test_a_hung_leader_keeps_its_place_among_the_limit_until_it_ends() -> None:
    clock = Clock()
    single = flights(limit=1, clock=clock)
    hung = Gate()
    first = single.join("a", hung, until=10)
    clock.now = 11
    with pytest.raises(TooManyWaiting):
        single.join("a", lambda _: "new", until=20)
    hung.open()
    outcome(first)
    assert outcome(single.join("a", lambda _: "new", until=20)) == "new"


def test_a_thread_that_cannot_be_started_is_an_error_for_the_flight_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    single = flights(limit=1)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        flight = single.join("a", lambda _: "never", later())
    with pytest.raises(TooManyWaiting, match="no thread could be started"):
        outcome(flight)
    assert outcome(single.join("a", lambda _: "afresh", later())) == "afresh"


def test_at_no_time_do_two_calls_for_one_key_run() -> None:
    single = flights(limit=100)
    running: Counter[str] = Counter()
    lock = threading.Lock()
    overlaps: list[str] = []
    wrong: list[object] = []

    def call_for(key: str) -> Callable[[Flight[object]], object]:
        def call(_: Flight[object]) -> object:
            with lock:
                running[key] += 1
                if running[key] > 1:
                    overlaps.append(key)
            time.sleep(0.001)
            with lock:
                running[key] -= 1
            return key

        return call

    def join() -> None:
        for number in range(30):
            key = "abc"[number % 3]
            if outcome(single.join(key, call_for(key), later())) != key:
                wrong.append(key)

    threads = [threading.Thread(target=join) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not overlaps
    assert not wrong
    assert not any(single.under_way(key) for key in "abc")


@pytest.mark.server
def test_a_child_forked_during_a_flight_and_under_the_lock_has_flights_of_its_own() -> None:
    script = """
        import os, threading, time
        from scalezero_wsgi.activation.single_flight import SingleFlight

        single = SingleFlight("test", 1)
        landing = threading.Event()
        until = time.monotonic() + 30
        flight = single.join("a", lambda _: landing.wait(30), until)
        with single._flights.get().lock:
            child = os.fork()
            if child == 0:
                fresh = not single.under_way("a")
                own = single.join("a", lambda _: os.getpid(), until)
                os._exit(0 if fresh and own.wait(20) and own.result() == os.getpid() else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert single.under_way("a")
        landing.set()
        assert flight.wait(20) and flight.result() is True
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_a_flight_knows_whether_somebody_waits_for_it() -> None:
    flight: Flight[None] = Flight(0.0, 1.0)
    known = [flight.is_waited_for]
    with flight.wakes(Sleeper()):
        known.append(flight.is_waited_for)
    known.append(flight.is_waited_for)
    flight.waiters.add("a request")
    assert [*known, flight.is_waited_for] == [False, True, False, True]
