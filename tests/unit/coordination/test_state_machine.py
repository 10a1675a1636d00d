"""The protocol under every schedule that hypothesis can think of: see ``simulation``."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scalezero_wsgi import ProviderError
from scalezero_wsgi.activation.activation import PROVIDER_PATIENCE, SLICE
from scalezero_wsgi.activation.refresh import FOLLOW
from scalezero_wsgi.activation.state import SETTLE
from scalezero_wsgi.coordination.heartbeat import HEARTBEAT
from scalezero_wsgi.coordination.leadership import LEASE
from scalezero_wsgi.events import ScaleRequested
from tests.unit.coordination.simulation import FOREVER, Simulation, Task, Worker

WORKERS = st.integers(0, 3)
SOAK = int(os.environ.get("SCALEZERO_SOAK", "200"))


class Calm(RuleBasedStateMachine):
    """Threads take their turns in any order, wake-ups get lost, but nobody dies."""

    @initialize(
        delay=st.sampled_from([0.0, 0.05, 1.0]),
        lag=st.sampled_from([0.0, 0.3, 1.0]),
        latency=st.sampled_from([0.0, 0.01, 0.5]),
    )
    def begin(self, delay: float, lag: float, latency: float) -> None:
        self.world = Simulation(delay, lag, latency)
        # Beyond the start itself: the query before it, the request, a pause, the query that sees it; and once
        # more the first, if a refresh has gone before.
        self.bound = delay + lag + 5 * latency + 0.5
        for _ in range(4):
            self.world.worker()

    def alive(self, index: int) -> Worker:
        return self.world.workers[index % len(self.world.workers)]

    @rule(indices=st.sets(WORKERS, min_size=1))
    def requests_come(self, indices: set[int]) -> None:
        for worker in map(self.alive, indices):
            if not worker.busy("wake"):
                worker.wake()

    @rule(indices=st.sets(WORKERS, min_size=1))
    def entries_are_refreshed(self, indices: set[int]) -> None:
        for worker in map(self.alive, indices):
            if not worker.busy("refresh"):
                worker.refresh()

    @rule(turns=st.lists(st.integers(0, 11), min_size=1, max_size=20))
    def some_go_on(self, turns: list[int]) -> None:
        for turn in turns:
            tasks = self.world.runnable()
            if tasks:
                self.world.step(tasks[turn % len(tasks)])

    @rule(index=st.integers(0, 11), steps=st.integers(1, 12))
    def one_goes_on(self, index: int, steps: int) -> None:
        tasks = self.world.runnable()
        task = tasks[index % len(tasks)] if tasks else None
        for _ in range(steps):
            if task in self.world.runnable():
                assert task is not None
                self.world.step(task)

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.06, 0.2]))
    def time_passes(self, seconds: float) -> None:
        while heartbeats := [task for task in self.world.runnable() if self.is_heartbeat(task)]:
            self.world.step(heartbeats[0])
        self.world.clock.advance(seconds)

    @staticmethod
    def is_heartbeat(task: Task) -> bool:
        return task.name == "heartbeat"

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def all_go_on(self, seconds: float) -> None:
        self.world.run(lambda: not self.busy(), seconds)

    def busy(self) -> bool:
        return any(task.name != "heartbeat" for task in self.world.tasks)

    @rule(indices=st.sets(WORKERS, min_size=1))
    def requests_leave(self, indices: set[int]) -> None:
        for worker in map(self.alive, indices):
            for flight in worker.flights:
                flight.wanted_until = min(flight.wanted_until, self.world.clock())

    @rule()
    def wake_ups_are_lost(self) -> None:
        for task in self.world.tasks:
            if task.changes is not None:
                task.changes.lose()

    @precondition(lambda self: not self.busy())
    @rule()
    def it_goes_to_zero(self) -> None:
        self.check_sets()
        self.world.engine.zero()
        self.world.events.clear()
        for worker in self.world.workers:
            worker.flights.clear()
        self.time_passes(0.2)
        self.time_passes(0.2)

    @invariant()
    def no_two_leaders_have_valid_tokens_and_late_writes_are_refused(self) -> None:
        assert self.world.ledger.wrong == []

    @invariant()
    def there_is_one_request_for_each_lease_at_most(self) -> None:
        leases = [lease for lease in self.world.engine.sets if lease is not None]
        assert len(leases) == len(set(leases))

    @invariant()
    def a_start_is_reported_once_at_most(self) -> None:
        reported = [event for event in self.world.events if isinstance(event, ScaleRequested)]
        assert len(reported) <= 1 or self.world.ledger.failed or self.world.engine.failed

    def check_sets(self) -> None:
        """One request wakes the function, and none is made if nobody asked for it."""
        assert self.world.ledger.lapses == 0
        assert len(self.world.engine.sets) == any(worker.flights for worker in self.world.workers)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.no_waiter_is_left_behind()
            self.no_two_leaders_have_valid_tokens_and_late_writes_are_refused()
            self.there_is_one_request_for_each_lease_at_most()
            self.check_sets()

    def no_waiter_is_left_behind(self) -> None:
        world = self.world
        for worker in world.workers:
            for flight in worker.flights:  # others come for those who have left
                flight.wanted_until = FOREVER
        landed = world.run(lambda: not self.busy(), self.bound + SLICE)
        assert landed, [(task.worker.name, task.name) for task in world.tasks]
        for worker in world.workers:
            for flight in worker.flights:
                assert flight.wait(0)
                try:
                    assert flight.result().available
                except ProviderError:
                    assert world.engine.failed


class Stormy(Calm):
    """The same, and processes die, hang and come back, the store goes and comes, the provider fails."""

    @rule(index=WORKERS)
    def a_worker_dies(self, index: int) -> None:
        self.world.crash(self.alive(index))
        self.world.worker()

    @rule(index=WORKERS)
    def the_leader_dies(self, index: int) -> None:
        leaders = [worker for worker in self.world.workers if worker.peers.leaderships]
        if leaders:
            self.a_worker_dies(self.world.workers.index(leaders[index % len(leaders)]))

    @rule(index=WORKERS)
    def a_worker_hangs_or_goes_on(self, index: int) -> None:
        worker = self.alive(index)
        worker.stopped = not worker.stopped

    @rule(index=WORKERS, call=st.sampled_from(["", "renew", "publish"]), seconds=st.sampled_from([0.01, 0.5]))
    def the_leader_hangs_for_longer_than_its_lease(self, index: int, call: str, seconds: float) -> None:
        leads = [
            task for task in self.world.runnable() if task.worker.peers.leaderships and task.name == "wake"
        ]
        if leads:
            task = leads[index % len(leads)]
            for _ in range(20):
                if task.call != call and task in self.world.runnable():
                    self.world.step(task)
            task.worker.stopped = True
            self.world.clock.advance(LEASE + 0.1)
            self.all_go_on(seconds)
            task.worker.stopped = False

    @rule(seconds=st.sampled_from([0.5, 1.0, LEASE, LEASE + 0.1]))
    def time_jumps(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def the_store_goes_or_comes(self) -> None:
        self.world.down = not self.world.down

    @rule(calls=st.integers(1, 3))
    def the_provider_fails(self, calls: int) -> None:
        self.world.engine.failing = calls

    def check_sets(self) -> None:
        """Each leader that died, or hung for longer than its lease, makes one more at most."""
        world = self.world
        if not (world.ledger.failed or world.engine.failed):
            assert len(world.engine.sets) <= 1 + world.ledger.lapses

    def no_waiter_is_left_behind(self) -> None:
        self.world.down = False
        self.world.engine.failing = 0
        for worker in self.world.workers:
            worker.stopped = False
        self.bound += LEASE + SETTLE + HEARTBEAT + max(FOLLOW, PROVIDER_PATIENCE)
        super().no_waiter_is_left_behind()
        joined = self.world.run(
            lambda: all(worker.peers.joined for worker in self.world.workers), 2 * HEARTBEAT
        )
        assert joined, "somebody stays alone although the store is back"


def machine_settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


TestCalm = Calm.TestCase
TestCalm.settings = machine_settings(15)
TestStormy = Stormy.TestCase
TestStormy.settings = machine_settings(30)


@pytest.mark.soak
@pytest.mark.parametrize("machine", [Calm, Stormy])
def test_soak(machine: type[Calm]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=machine_settings(10 * SOAK))
