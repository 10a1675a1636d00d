"""Back to zero under every schedule that hypothesis can think of: see ``idling``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scalezero_wsgi.activation.activation import PROVIDER_PATIENCE
from scalezero_wsgi.activation.idling.drain import ACKNOWLEDGE, TAKE_EFFECT
from scalezero_wsgi.activation.idling.gate import REPORT_EVERY, VANISHED_IN_USE
from scalezero_wsgi.activation.idling.idler import NEWLY_LED
from scalezero_wsgi.activation.idling.listing import LIST_EVERY
from scalezero_wsgi.activation.state import SETTLE
from scalezero_wsgi.coordination.base import DrainPhase
from scalezero_wsgi.coordination.heartbeat import HEARTBEAT
from scalezero_wsgi.coordination.leadership import LEASE
from tests.unit.coordination.idling import (
    EXPIRY,
    IDLE_AFTER,
    OWN,
    PACE,
    SILENT_AFTER,
    STALE_FOR,
    IdlingSimulation,
    IdlingWorker,
    Stream,
)
from tests.unit.coordination.simulation import HELLO, Task
from tests.unit.coordination.test_state_machine import machine_settings

WORKERS = st.integers(0, 2)
PHASES = st.sampled_from([DrainPhase.DRAINING, DrainPhase.STOPPING])
HELD_FOR = st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0])
SOAK = int(os.environ.get("SCALEZERO_SOAK", "200"))


class Idle(RuleBasedStateMachine):
    """Requests come and go, threads take their turns in any order, other writers change the function, but
    nobody dies."""

    CALM = True

    @initialize(
        delay=st.sampled_from([0.0, 0.05, 1.0]),
        lag=st.sampled_from([0.0, 0.3, LEASE + 0.5]),
        latency=st.sampled_from([0.0, 0.01]),
        used=st.booleans(),
    )
    def begin(self, delay: float, lag: float, latency: float, used: bool) -> None:
        self.world = IdlingSimulation(delay, lag, latency)
        self.world.calm = self.CALM
        for _ in range(3):
            self.world.worker()
        self.go_on(NEWLY_LED + 0.5)
        if used:
            for index in range(3):
                self.alive(index).ask(0.0)
            self.go_on(delay + lag + 1.0)

    def alive(self, index: int) -> IdlingWorker:
        worker = self.world.workers[index % len(self.world.workers)]
        assert isinstance(worker, IdlingWorker)
        return worker

    def go_on(self, seconds: float) -> None:
        self.world.run(lambda: False, seconds)

    @rule(index=WORKERS, duration=st.sampled_from([0.0, 0.05, 1.0]))
    def a_request_comes(self, index: int, duration: float) -> None:
        if len(self.world.requests) < 6:
            self.alive(index).ask(duration)

    @rule(index=WORKERS, duration=st.sampled_from([1.5, math.inf]))
    def a_stream_comes(self, index: int, duration: float) -> None:
        if len(self.world.requests) < 6:
            worker = self.alive(index)
            worker.send(Stream(worker, duration))

    @rule(index=WORKERS)
    def a_silent_stream_carries_a_byte(self, index: int) -> None:
        silent = self.silent_streams()
        if silent:
            silent[index % len(silent)].byte = True

    def silent_streams(self) -> list[Stream]:
        return [each for each in self.world.requests if isinstance(each, Stream) and each.is_silent()]

    @rule(phase=PHASES, index=WORKERS)
    def a_request_comes_in_that_phase(self, phase: DrainPhase, index: int) -> None:
        if self.world.run(lambda: self.is_in(phase), 2.0) and len(self.world.requests) < 6:
            self.alive(index).ask(0.05)

    def is_in(self, phase: DrainPhase) -> bool:
        drain = self.world.store.drains().get(HELLO)
        return drain is not None and drain.phase is phase

    @rule(duration=st.sampled_from([0.05, 1.0]))
    def a_worker_joins(self, duration: float) -> None:
        if len(self.world.workers) < 4:
            self.world.worker().ask(duration)

    @rule(index=WORKERS, seconds=st.sampled_from([0.3, 0.6, 1.0]))
    def a_worker_joins_whose_own_threads_do_not_get_to_run(self, index: int, seconds: float) -> None:
        """And its first request does, for longer than the function takes to go to zero."""
        if len(self.world.workers) < 4 and len(self.world.requests) < 6:
            worker = self.world.worker()
            worker.late = True
            worker.ask(1.0)
            self.go_on(seconds)
            worker.late = False

    @rule(index=WORKERS, other=WORKERS, seconds=st.sampled_from([0.3, 0.6, 1.0]))
    def a_workers_own_threads_do_not_get_to_run(self, index: int, other: int, seconds: float) -> None:
        """From when it has acknowledged a drain, which another worker undoes; then a request comes to it."""
        worker = self.alive(index)
        if (
            not self.world.run(lambda: HELLO in worker.gate._acknowledged, 2.0)
            or len(self.world.requests) > 4
        ):
            return
        worker.late = True
        self.alive(other).ask(0.0)
        self.world.run(lambda: not self.is_in(DrainPhase.DRAINING), 0.2)
        worker.ask(1.0)
        self.go_on(seconds)
        worker.late = False

    @rule(count=st.sampled_from([1, 3]), phase=st.none() | st.just(DrainPhase.DRAINING))
    def another_writer_changes_it(self, count: int, phase: DrainPhase | None) -> None:
        if phase is None or self.world.run(lambda: self.is_in(phase), 2.0):
            self.world.engine.change(count)

    @rule(index=WORKERS, steps=st.integers(1, 12))
    def a_request_is_held_back(self, index: int, steps: int) -> None:
        """Until it is let go, whatever happens meanwhile."""
        if len(self.world.requests) < 6 and not any(task.held for task in self.world.tasks):
            self.alive(index).ask(0.05)
            request = self.world.tasks[-1]
            self.step(request, steps)
            request.held = True

    @rule(phase=st.none() | PHASES)
    def it_is_let_go(self, phase: DrainPhase | None) -> None:
        held = [task for task in self.world.tasks if task.held]
        if held and (phase is None or self.world.run(lambda: self.is_in(phase), 2.0)):
            held[0].held = False

    @rule(
        index=WORKERS,
        steps=st.lists(st.integers(0, 8), max_size=4),
        duration=st.sampled_from([0.0, 1.0]),
        held_for=HELD_FOR,
        until=st.none() | PHASES,
    )
    def a_request_meets_a_drain(
        self,
        index: int,
        steps: list[int],
        duration: float,
        held_for: float,
        until: DrainPhase | None = None,
    ) -> None:
        """In one worker: the two take turns, then the request is held up while all others go on.

        :param until: it is held up until the next drain has come that far.
        """
        if not self.world.run(lambda: self.is_in(DrainPhase.DRAINING), 2.0) or len(self.world.requests) > 6:
            return
        worker = self.alive(index)
        worker.ask(duration)
        request = self.world.tasks[-1]
        self.world.clock.advance(PACE)  # the idler's next turn is due
        idler = next(task for task in self.world.tasks if task.worker is worker and task.name == "idler")
        for task, count in zip([idler, request] * 2, steps, strict=False):
            self.step(task, count)
        request.held = True
        self.go_on(held_for)
        if until is not None:
            self.world.run(lambda: self.is_in(until), 1.0)
        request.held = False

    @rule(index=WORKERS, steps=st.integers(0, 12), held_for=HELD_FOR, others=st.lists(WORKERS, max_size=2))
    def a_request_is_held_up(
        self, index: int, steps: int, held_for: float, others: Sequence[int] = ()
    ) -> None:
        """On its way, while the function goes to zero behind it, and others start it again."""
        if len(self.world.requests) > 6:
            return
        self.alive(index).ask(0.05)
        request = self.world.tasks[-1]
        self.step(request, steps)
        request.held = True
        self.go_on(held_for)
        if others and self.world.run(lambda: self.world.engine.replicas == 0, 1.0):
            for other in others:
                self.alive(other).ask(0.05)
            self.go_on(held_for)
        request.held = False

    @rule(turns=st.lists(st.integers(0, 15), min_size=1, max_size=30))
    def some_go_on(self, turns: list[int]) -> None:
        for turn in turns:
            tasks = self.world.runnable()
            if tasks:
                self.world.step(tasks[turn % len(tasks)])

    @rule(index=st.integers(0, 15), steps=st.integers(1, 12))
    def one_goes_on(self, index: int, steps: int) -> None:
        tasks = self.world.runnable()
        if tasks:
            self.step(tasks[index % len(tasks)], steps)

    def step(self, task: Task, steps: int) -> None:
        for _ in range(steps):
            if task in self.world.runnable():
                self.world.step(task)

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.06, 0.2]))
    def time_passes(self, seconds: float) -> None:
        self.workers_keep_going()
        self.world.clock.advance(seconds)

    def workers_keep_going(self) -> None:
        """The threads that keep leases and report are not held up while time passes."""
        for _ in range(10_000):
            tasks = [task for task in self.world.runnable() if self.is_own(task)]
            if not tasks:
                return
            self.world.step(tasks[0])
        raise AssertionError("they turn in a circle")

    def is_own(self, task: Task) -> bool:
        return task.name in OWN

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0]))
    def all_go_on(self, seconds: float) -> None:
        self.go_on(seconds)

    @invariant()
    def no_request_is_lost_cut_or_passed_to_nobody(self) -> None:
        assert self.world.ledger.wrong == [], self.world.story()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.all_are_served_and_it_goes_to_zero(0.0)

    def all_are_served_and_it_goes_to_zero(self, extra: float) -> None:
        world = self.world
        for task in world.tasks:
            task.held = False
        served = world.run(lambda: len(self.silent_streams()) == len(world.requests), 10.0 + extra)
        assert served, [(task.worker.name, task.name) for task in world.tasks]
        self.no_request_is_lost_cut_or_passed_to_nobody()
        idle = 2 * (IDLE_AFTER + ACKNOWLEDGE) + SILENT_AFTER
        at_zero = world.run(lambda: world.engine.replicas == 0, idle + 6.0 + extra)
        assert at_zero, (world.store.drains(), world.store.workers())
        self.no_request_is_lost_cut_or_passed_to_nobody()


class StormyIdle(Idle):
    """The same, and processes die and hang, the store goes and comes, forgets everything."""

    CALM = False
    forgot_at = -math.inf

    @rule(index=WORKERS)
    def a_worker_dies(self, index: int) -> None:
        self.world.crash(self.alive(index))
        self.world.worker()

    @rule(phase=PHASES, steps=st.integers(0, 20), seconds=st.sampled_from([0.0, LEASE + NEWLY_LED + 1.0]))
    def who_stops_it_dies(self, phase: DrainPhase, steps: int, seconds: float = 0.0) -> None:
        if self.world.run(lambda: self.is_in(phase), 2.0):
            for _ in range(steps):
                drains = [task for task in self.world.runnable() if task.name == "drain"]
                if drains:
                    self.world.step(drains[0])
            drains = [task for task in self.world.tasks if task.name == "drain"]
            if drains:
                self.world.crash(drains[0].worker)
                self.world.worker()
                self.go_on(seconds)

    @rule(index=WORKERS, seconds=st.sampled_from([1.0, 4.0, 10.0]))
    def a_worker_hangs(self, index: int, seconds: float) -> None:
        # Right after the store has forgotten its report it would be a second fault: nobody knows of its use.
        self.go_on(max(0.0, self.forgot_at + REPORT_EVERY + 3 * PACE - self.world.clock()))
        worker = self.alive(index)
        worker.stopped = True
        self.go_on(seconds)
        worker.stopped = False
        self.go_on(0.2)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def the_store_is_lost(self, seconds: float) -> None:
        begun, reported_again = self.world.clock(), self.forgot_at + REPORT_EVERY + 3 * PACE
        self.world.down = True
        self.go_on(seconds)
        self.world.down = False
        if begun < reported_again:  # nobody could tell the store again what it has forgotten
            self.forgot_at = self.world.clock()

    # While the function is being stopped it would be a second fault: nobody could know that it is to end.
    @precondition(lambda self: not self.is_in(DrainPhase.STOPPING))
    @rule()
    def the_store_forgets(self) -> None:
        self.world.forget()
        self.forgot_at = self.world.clock()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            extra = (
                VANISHED_IN_USE
                + EXPIRY
                + STALE_FOR
                + 2 * LEASE
                + NEWLY_LED
                + SETTLE
                + TAKE_EFFECT
                + LIST_EVERY
            )
            self.all_are_served_and_it_goes_to_zero(extra + HEARTBEAT + PROVIDER_PATIENCE + PACE)


TestIdle = Idle.TestCase
TestIdle.settings = machine_settings(5)
TestStormyIdle = StormyIdle.TestCase
TestStormyIdle.settings = machine_settings(5)


def test_a_worker_that_has_never_reported_does_not_rely_on_a_provider_that_lags() -> None:
    """Its store is lost before it could, while the others have stopped the function."""
    state = StormyIdle()
    state.begin(delay=0.0, used=False, latency=0.0, lag=2.5)
    state.a_worker_dies(index=0)
    state.the_store_forgets()
    state.the_store_is_lost(seconds=0.5)
    state.a_worker_joins(duration=0.05)
    state.a_request_meets_a_drain(duration=0.0, held_for=0.0, index=0, steps=[])
    state.a_worker_joins(duration=0.05)
    state.a_request_meets_a_drain(duration=0.0, held_for=0.3, index=0, steps=[])
    state.a_request_comes(duration=0.0, index=2)
    state.the_store_is_lost(seconds=0.5)
    state.no_request_is_lost_cut_or_passed_to_nobody()


def test_a_silent_stream_is_let_go_and_one_that_carries_again_is_not() -> None:
    state = Idle()
    state.begin(delay=0.0, lag=0.0, latency=0.0, used=False)
    world, worker = state.world, state.alive(0)
    stream = Stream(worker, math.inf)
    worker.send(stream)
    for _ in range(10):
        state.go_on(0.9 * SILENT_AFTER)
        assert stream.served
        stream.byte = True
    state.go_on(SILENT_AFTER + IDLE_AFTER + 5 * PACE)
    assert stream.cut
    assert world.engine.replicas == 0
    state.teardown()


def test_who_has_stopped_it_dies_and_the_provider_lags() -> None:
    """For longer than others take to notice; a request waits meanwhile. They must not believe it at once."""
    state = StormyIdle()
    state.begin(delay=0.0, used=False, latency=0.0, lag=LEASE + NEWLY_LED + 1.0)
    state.alive(0).ask(0.0)
    assert state.world.run(lambda: state.world.engine.replicas, 30.0)
    assert state.world.run(lambda: not state.world.engine.replicas, 30.0)
    (drain,) = [task for task in state.world.tasks if task.name == "drain"]
    state.world.crash(drain.worker)
    state.alive(0).ask(0.05)
    state.go_on(2 * LEASE + NEWLY_LED + SETTLE)
    state.teardown()


def test_a_request_that_undid_a_drain_and_is_held_up_does_not_open_the_next() -> None:
    state = Idle()
    state.begin(delay=0.0, used=False, latency=0.0, lag=LEASE + 0.5)
    world = state.world
    worker = next(state.alive(index) for index in range(3) if state.alive(index).idler._lead is None)
    worker.ask(0.0)
    assert world.run(lambda: HELLO in worker.gate.closed, 10.0)
    worker.ask(0.05)
    request = world.tasks[-1]
    for _ in range(20):
        if state.is_in(DrainPhase.DRAINING):
            state.step(request, 1)
    assert not state.is_in(DrainPhase.DRAINING)
    request.held = True
    assert world.run(lambda: state.is_in(DrainPhase.STOPPING), 5.0)
    request.held = False
    state.go_on(1.0)
    state.teardown()


def test_an_entry_of_an_earlier_start_is_not_used() -> None:
    """The function was stopped and started elsewhere, while a request was on its way to it."""
    state = Idle()
    state.begin(delay=0.0, used=False, latency=0.0, lag=0.0)
    state.alive(0).ask(0.0)
    assert state.world.run(lambda: state.world.engine.replicas and not state.world.requests, 5.0)
    state.a_request_is_held_up(index=0, steps=1, held_for=0.1, others=[0])
    assert len(state.world.engine.history) == 4
    state.go_on(0.1)
    state.teardown()


def test_another_writers_change_stands() -> None:
    """Made while the function drains, it counts as a use."""
    state = Idle()
    state.begin(delay=0.0, used=False, latency=0.0, lag=0.0)
    world = state.world
    state.alive(0).ask(0.0)
    assert world.run(lambda: state.is_in(DrainPhase.DRAINING), 5.0)
    world.engine.change(3)
    changed_at = world.clock()
    assert world.run(lambda: world.engine.replicas == 0, 5.0)
    assert world.clock() >= changed_at + IDLE_AFTER
    state.teardown()


@pytest.mark.soak
@pytest.mark.parametrize("machine", [Idle, StormyIdle])
def test_soak(machine: type[Idle]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=machine_settings(5 * SOAK))
