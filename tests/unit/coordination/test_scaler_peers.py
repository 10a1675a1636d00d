"""What the scalers of a fleet do together, step by step, in simulated time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from scalezero_wsgi import FunctionFailed, FunctionNotFound, ProviderError, ReplicaStatus
from scalezero_wsgi.activation.activation import LEADER_SILENT, PROVIDER_PATIENCE, UNWANTED_PAUSE
from scalezero_wsgi.activation.outages import FIRST_PAUSE, LONGEST_PAUSE
from scalezero_wsgi.activation.refresh import FOLLOW
from scalezero_wsgi.activation.scaler import HEAD_START, LINGER
from scalezero_wsgi.activation.single_flight import Flight
from scalezero_wsgi.activation.state import SETTLE, STABLE, FunctionMeta
from scalezero_wsgi.coordination import CoordinationError
from scalezero_wsgi.coordination.base import Failure, Lease, ProviderFault, SharedStatus, Start
from scalezero_wsgi.coordination.heartbeat import HEARTBEAT
from scalezero_wsgi.coordination.leadership import LEASE, REPUBLISH
from scalezero_wsgi.events import (
    CoordinationLost,
    CoordinationRestored,
    FunctionReady,
    ScaleRequested,
    StartFailed,
    StatusQueried,
)
from scalezero_wsgi.model import NotAvailable, ProviderSilent
from tests.support.fakes import STARTING, UP, ZERO
from tests.unit.coordination.simulation import HELLO, Engine, Simulation, Worker

EXPIRY = 0.25
BROKEN = replace(STARTING, failure="the image cannot be pulled")


class Told(Engine):
    """A provider that is told what to answer; without that it starts functions."""

    def __init__(self, simulation: Simulation, delay: float = 0.5, lag: float = 0.0) -> None:
        super().__init__(simulation, delay, lag)
        self.queries = 0
        self.answer: Callable[[], ReplicaStatus] | None = None
        self.refusal: Exception | None = None

    def get(self) -> ReplicaStatus:
        self.queries += 1
        return super().get() if self.answer is None else self.answer()

    def set(self, confirmed: object) -> None:
        if self.refusal is not None:
            raise self.refusal
        super().set(confirmed)  # type: ignore[arg-type]


class World(Simulation):
    def __init__(self, workers: int = 4, delay: float = 0.5, lag: float = 0.0, latency: float = 0.0) -> None:
        super().__init__(delay, lag, latency)
        self.provider = self.engine = Told(self, delay, lag)
        for _ in range(workers):
            self.worker()

    def answer(self, answer: ReplicaStatus | Exception) -> None:
        def give() -> ReplicaStatus:
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.provider.answer = give

    def idle(self) -> bool:
        return all(task.name == "heartbeat" for task in self.tasks)

    def all_land(self, seconds: float = 60.0) -> None:
        assert self.run(self.idle, seconds), [(task.worker.name, task.name) for task in self.tasks]

    def until(self, reached: Callable[[], bool], seconds: float = 60.0) -> None:
        assert self.run(reached, seconds)

    def pass_time(self, seconds: float) -> None:
        end = self.clock() + seconds
        self.run(lambda: self.clock() >= end, seconds + 1.0)

    def known(self) -> SharedStatus:
        known = self.store.known(HELLO)
        assert known is not None
        return known

    def told(self, known: SharedStatus) -> None:
        """Let the fleet know something."""
        lease = self.store.acquire(HELLO, "somebody", 1.0)
        assert lease is not None
        assert self.store.publish(lease, replace(known, name=f"{lease.token}"))
        self.store.release(lease)


def outcome(flight: Flight[FunctionMeta]) -> FunctionMeta | type[BaseException]:
    assert flight.wait(0)
    try:
        return flight.result()
    except Exception as error:
        return type(error)


def outcomes(world: World) -> list[FunctionMeta | type[BaseException]]:
    return [outcome(flight) for worker in world.workers for flight in worker.flights]


def wake_all(world: World) -> None:
    for worker in world.workers:
        worker.wake()


class TestOneFlight:
    def test_the_leader_tells_each_step(self) -> None:
        world = World(1)
        told: list[SharedStatus] = []
        publish = world.store.publish

        def note(lease: object, known: SharedStatus) -> bool:
            told.append(known)
            return publish(lease, known)  # type: ignore[arg-type]

        world.store.publish = note  # type: ignore[method-assign]
        wake_all(world)
        world.all_land()
        steps = [(known.status, known.start is not None and known.start.shown) for known in told]
        assert steps == [(ZERO, False), (ZERO, False), (STARTING, True), (UP, True)]
        assert [known.start is None for known in told] == [True, False, False, False]

    def test_a_long_start_is_told_again_and_again(self) -> None:
        world = World(1, delay=5.0)
        wake_all(world)
        world.until(lambda: world.store.known(HELLO) is not None and world.known().status == STARTING)
        while world.clock() < 4.5:
            world.pass_time(0.1)
            assert world.known().age <= REPUBLISH + 0.5

    def test_all_get_the_replica_that_one_has_asked_for(self) -> None:
        alone, world = World(1), World(4)
        for each in (alone, world):
            wake_all(each)
            each.all_land()
        assert all(isinstance(found, FunctionMeta) and found.available for found in outcomes(world))
        assert len(world.provider.sets) == 1
        assert world.provider.queries == alone.provider.queries
        assert len([event for event in world.events if isinstance(event, FunctionReady)]) == 4
        led = [event.led for event in world.events if isinstance(event, StatusQueried)]
        assert sorted(led) == [False, False, False, True]
        assert all(worker.scaler.last_starts(HELLO) for worker in world.workers)

    def test_a_follower_that_sees_the_end_alone_has_waited_for_the_start_all_the_same(self) -> None:
        world = World(1)
        (worker,) = world.workers
        lease = world.store.acquire(HELLO, "leads", 60.0)
        assert lease is not None
        worker.wake()
        world.pass_time(0.5)
        world.store.publish(lease, SharedStatus(UP, start=Start("s", age=0.3, shown=True), name="end"))
        world.all_land()
        assert worker.scaler.last_starts(HELLO)

    def test_a_follower_that_sees_it_come_up_has_waited_for_the_start_though_nobody_told_of_one(self) -> None:
        """As the leader of an earlier release."""
        world = World(1)
        (worker,) = world.workers
        lease = world.store.acquire(HELLO, "leads", 60.0)
        assert lease is not None
        worker.wake()
        world.pass_time(0.5)
        starting = [worker.flights[0].starting]
        world.store.publish(lease, SharedStatus(STARTING, name="first"))
        world.pass_time(0.5)
        starting.append(worker.flights[0].starting)
        world.store.publish(lease, SharedStatus(UP, name="end"))
        world.all_land()
        assert starting == [False, True]
        assert worker.scaler.last_starts(HELLO)
        assert [type(event) for event in world.events] == [StatusQueried, FunctionReady]
        assert world.events[0] == StatusQueried(HELLO, 1, 0, led=False)

    def test_who_comes_when_it_is_up_asks_nobody(self) -> None:
        world = World(2)
        first, second = world.workers
        first.wake()
        world.all_land()
        queries = world.provider.queries
        second.wake()
        world.all_land()
        assert world.provider.queries == queries
        assert second.cache.get("hello") == (UP, True)
        assert [type(event) for event in world.events].count(FunctionReady) == 1  # it waited for no start
        assert second.scaler.last_starts(HELLO) == first.scaler.last_starts(HELLO) != ()

    def test_a_start_whose_leader_died_is_not_asked_for_again(self) -> None:
        world = World(2, lag=SETTLE * 0.5 + LEASE * 0.1)
        first, second = world.workers
        first.wake()
        world.until(lambda: world.store.known(HELLO) is not None and world.known().start is not None)
        world.store.release(world.ledger.lease)  # type: ignore[arg-type]  # a quick one, within SETTLE
        world.ledger.lease = None
        world.crash(first)
        second.wake()
        world.all_land()
        assert len(world.provider.sets) == 1
        assert isinstance(outcome(second.flights[0]), FunctionMeta)

    def test_but_again_if_nothing_comes_of_it(self) -> None:
        world = World(1)
        world.told(SharedStatus(ZERO, start=Start("lost", age=SETTLE * 0.5)))
        wake_all(world)
        world.all_land()
        assert len(world.provider.sets) == 1
        assert SETTLE * 0.5 <= world.clock() <= SETTLE + 1.0

    def test_what_came_of_it_long_after_does_not_stand_against_the_next(self) -> None:
        world = World(1)
        world.told(SharedStatus(ZERO, start=Start("lost", age=2 * SETTLE)))
        world.provider.answer = lambda: UP if world.provider.sets else replace(ZERO, failure="exited with 1")
        wake_all(world)
        world.all_land()
        assert isinstance(outcomes(world)[0], FunctionMeta)

    def test_nor_is_one_waited_for_that_others_have_seen_come_and_go(self) -> None:
        world = World(1)
        (worker,) = world.workers
        world.told(SharedStatus(ZERO, start=Start("gone", age=0.1)))
        worker.refresh()
        world.all_land()
        world.told(SharedStatus(ZERO, age=1.0, start=Start("gone", age=0.1, shown=True)))
        worker.wake()
        world.all_land(1.0)
        assert len(world.provider.sets) == 1

    def test_a_leader_that_was_replaced_takes_what_the_other_tells(self) -> None:
        world = World(2)
        first, second = world.workers
        first.wake()
        world.until(lambda: len(world.provider.sets) == 1)
        first.stopped = True
        second.wake()
        world.until(lambda: second.flights[0].wait(0))
        queries = world.provider.queries
        first.stopped = False
        world.all_land()
        assert isinstance(outcome(first.flights[0]), FunctionMeta)
        assert world.provider.queries <= queries + 1
        assert len(world.provider.sets) == 1
        assert world.ledger.wrong == []

    def test_an_answer_from_before_a_doubt_is_not_taken(self) -> None:
        world = World(2)
        _, second = world.workers
        wake_all(world)
        world.all_land()
        meta = second.cache.find(HELLO)
        assert meta is not None
        world.pass_time(0.05)
        assert world.known().age < EXPIRY
        queries = world.provider.queries
        assert second.scaler.mark_suspect(meta)
        second.wake()
        world.all_land()
        assert world.provider.queries == queries + 1

    def test_not_even_if_it_is_told_after_the_doubt(self) -> None:
        world = World(2, delay=0.0)
        first, second = world.workers
        wake_all(world)
        world.all_land()
        world.pass_time(EXPIRY * 2)
        world.latency = 1.0
        first.refresh()
        world.pass_time(0.5)
        meta = second.cache.find(HELLO)
        assert meta is not None
        assert second.scaler.mark_suspect(meta)
        doubted_at = world.clock()
        second.wake()
        world.all_land()
        found = outcome(second.flights[-1])
        assert isinstance(found, FunctionMeta)
        assert found.last_refresh >= doubted_at


class TestOneLineForAStart:
    """However often it is asked for."""

    @staticmethod
    def lines(world: World) -> int:
        return len([event for event in world.events if isinstance(event, ScaleRequested)])

    def test_of_all_who_wake_the_leader_reports_it(self) -> None:
        world = World(4)
        wake_all(world)
        world.all_land()
        assert (len(world.provider.sets), self.lines(world)) == (1, 1)

    def test_one_that_the_provider_does_not_show_is_asked_for_again_without_a_word(self) -> None:
        world = World(4, lag=3 * SETTLE)
        wake_all(world)
        world.all_land()
        assert len(world.provider.sets) > 1
        assert self.lines(world) == 1

    def test_nor_does_the_next_leader_report_it(self) -> None:
        world = World(2, lag=3 * SETTLE)
        first, second = world.workers
        first.wake()
        world.until(lambda: self.lines(world) == 1)
        world.crash(first)
        second.wake()
        world.all_land()
        assert len(world.provider.sets) > 1
        assert self.lines(world) == 1

    def test_a_leader_that_was_replaced_while_it_asked_leaves_it_to_the_other(self) -> None:
        world = World(2, lag=0.5)
        first, second = world.workers
        first.wake()
        # It has made sure of its lead, and is about to ask.
        world.until(lambda: any(task.worker is first and task.confirmed for task in world.tasks))
        first.stopped = True
        world.pass_time(LEASE + 0.1)
        second.wake()
        world.until(lambda: self.lines(world) == 1)
        first.stopped = False
        world.all_land()
        assert len(world.provider.sets) == 2
        assert self.lines(world) == 1

    def test_each_start_after_one_that_failed_has_its_own(self) -> None:
        world = World(4)
        world.provider.answer = lambda: BROKEN if world.provider.sets else ZERO
        wake_all(world)
        world.all_land()
        world.provider.zero()
        world.pass_time(2.0)
        wake_all(world)
        world.all_land()
        assert self.lines(world) == 2

    def test_and_each_after_one_that_came_up(self) -> None:
        world = World(4)
        for _ in range(3):
            wake_all(world)
            world.all_land()
            world.provider.zero()
            world.pass_time(EXPIRY * 2)
        assert self.lines(world) == 3


class TestMissing:
    def test_one_asks_for_all(self) -> None:
        world = World(4, latency=0.1)
        world.answer(FunctionNotFound("hello"))
        wake_all(world)
        world.all_land()
        assert outcomes(world) == [FunctionNotFound] * 4
        assert world.provider.queries == 1

    def test_it_is_missing_for_an_expiry_and_not_for_two(self) -> None:
        world = World(1)
        (worker,) = world.workers
        world.told(SharedStatus(None))
        world.clock.advance(0.9)
        worker.wake()
        world.all_land()
        assert outcomes(world) == [FunctionNotFound]
        assert worker.cache.is_missing(HELLO)
        world.clock.advance(0.2)
        assert not worker.cache.is_missing(HELLO)
        worker.wake()
        world.all_land()
        assert isinstance(outcomes(world)[-1], FunctionMeta)

    def test_a_refresh_learns_it_too(self) -> None:
        world = World(2)
        world.answer(FunctionNotFound("hello"))
        for worker in world.workers:
            worker.refresh()
        world.all_land()
        assert world.provider.queries == 1
        assert all(worker.cache.is_missing(HELLO) for worker in world.workers)

    def test_a_refusal_to_scale_that_says_so_is_shared(self) -> None:
        world = World(4, latency=0.1)
        world.provider.refusal = FunctionNotFound("hello")
        wake_all(world)
        world.all_land()
        assert outcomes(world) == [FunctionNotFound] * 4


class TestFailure:
    def test_a_failed_start_fails_all_at_once(self) -> None:
        world = World(4, latency=0.05)
        world.provider.answer = lambda: BROKEN if world.provider.sets else ZERO
        wake_all(world)
        world.all_land(5.0)
        assert outcomes(world) == [FunctionFailed] * 4
        assert len(world.provider.sets) == 1
        assert len([event for event in world.events if isinstance(event, StartFailed)]) == 1
        assert world.known().failure is not None

    def test_a_function_in_a_crash_loop_is_tried_once_a_step_by_the_whole_fleet(self) -> None:
        """Each start fails 0.1 s later, and the count falls back to zero."""
        world = World(4)

        def status() -> ReplicaStatus:
            set_at = world.provider.set_at
            if set_at is None:
                return ZERO
            if world.clock() < set_at + 0.1:
                return STARTING
            world.provider.set_at = None
            return replace(ZERO, failure="exited with 1")

        world.provider.answer = status
        tried: list[float] = []
        while world.clock() < 14.0:
            for worker in world.workers:
                if not worker.busy("wake"):
                    worker.wake()
            world.pass_time(0.05)
            tried += [world.clock()] * (len(world.provider.sets) - len(tried))
        gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert [math.floor(gap) for gap in gaps] == [1, 2, 4]
        counts = {worker.failures for worker in world.workers}
        assert counts == {4}

    @pytest.mark.parametrize("blocks", [0.0, LEASE + 1.0], ids=["at-once", "blocks"])
    def test_a_scale_up_that_raises_is_tried_once_a_step_by_the_whole_fleet(self, blocks: float) -> None:
        """With a request in each worker at any time; those in between are refused at once."""
        world = World(4)
        tried: list[float] = []
        ended: list[float] = []

        def scale_up(_: object) -> None:
            tried.append(world.clock())
            world.sleep(blocks)
            ended.append(world.clock())
            raise FunctionFailed("hello", "its licence has expired")

        world.provider.set = scale_up  # type: ignore[method-assign,assignment]
        while world.clock() < 14.0 + 4 * blocks:
            for worker in world.workers:
                if not worker.busy("wake"):
                    worker.wake()
            world.pass_time(0.05)
        gaps = [later - earlier for earlier, later in zip(ended, tried[1:], strict=False)]
        assert [math.floor(gap) for gap in gaps] == [1, 2, 4]
        counts = {worker.failures for worker in world.workers}
        assert counts == {4}
        refused = {outcome(flight) for worker in world.workers for flight in worker.flights if flight.wait(0)}
        assert refused == {FunctionFailed}
        failed = [event for event in world.events if isinstance(event, StartFailed)]
        assert [(event.reason, round(event.retry_after, 6)) for event in failed] == [
            ("its licence has expired", pause) for pause in (1.0, 2.0, 4.0, 8.0)
        ]

    def test_a_get_that_raises_is_a_failed_start_too(self) -> None:
        world = World(3)
        world.answer(FunctionFailed("hello", "its licence has expired"))
        wake_all(world)
        world.all_land(5.0)
        assert outcomes(world) == [FunctionFailed] * 3
        assert (world.provider.queries, world.provider.sets) == (1, [])
        assert world.known().failure is not None

    def test_a_scale_up_that_raises_long_after_the_last_one_is_told_to_all_again(self) -> None:
        world = World(2)
        first, second = world.workers
        wake_all(world)
        world.all_land()
        for _ in range(2):
            world.provider.zero()
            world.provider.refusal = FunctionFailed("hello", "no")
            world.pass_time(STABLE + 10.0)
            first.wake()
            world.all_land()
            world.provider.refusal = None
            second.wake()
            world.all_land()
            assert outcome(second.flights[-1]) is FunctionFailed
            assert world.provider.sets == []

    def test_what_a_replaced_leader_tried_does_not_stand_against_what_another_started(self) -> None:
        world = World(2)
        first, second = world.workers
        world.provider.refusal = FunctionFailed("hello", "no")
        first.wake()
        world.until(lambda: world.ledger.lease is not None and world.provider.queries == 1)
        world.until(lambda: any(task.call == "" and task.confirmed for task in world.tasks))
        first.stopped = True  # on its way into the provider's call
        refusal, world.provider.refusal = world.provider.refusal, None
        world.pass_time(LEASE + 0.1)
        second.wake()
        world.until(lambda: second.flights[0].wait(0))
        world.provider.refusal = refusal
        first.stopped = False
        world.all_land()
        assert isinstance(outcome(first.flights[0]), FunctionMeta)
        assert not [event for event in world.events if isinstance(event, StartFailed)]

    def test_who_sees_that_it_ended_soon_after_its_start_tells_all(self) -> None:
        world = World(2, delay=0.1)
        first, second = world.workers
        first.wake()
        world.all_land()
        world.answer(replace(ZERO, failure="exited with 1"))
        world.pass_time(EXPIRY * 1.5)
        first.wake()
        world.all_land()
        queries = world.provider.queries
        second.wake()
        world.all_land()
        assert [outcome(worker.flights[-1]) for worker in world.workers] == [FunctionFailed] * 2
        assert world.provider.queries == queries

    def test_a_store_that_takes_longer_than_the_rest_hides_no_failed_start(self) -> None:
        world = World(1)
        world.provider.refusal = FunctionFailed("hello", "no")
        publish = world.store.publish

        def publish_slowly(lease: Lease, known: SharedStatus) -> bool:
            world.clock.advance(LEASE * 0.75)
            return publish(lease, known)

        world.store.publish = publish_slowly  # type: ignore[method-assign]
        wake_all(world)
        world.all_land()
        failed = [event for event in world.events if isinstance(event, StartFailed)]
        assert [event.retry_after for event in failed] == [pytest.approx(1.0)]

    def test_who_comes_new_learns_that_the_function_rests(self) -> None:
        world = World(2)
        first, second = world.workers
        world.provider.answer = lambda: BROKEN if world.provider.sets else ZERO
        first.wake()
        world.all_land()
        queries = world.provider.queries
        second.wake()
        world.all_land()
        assert outcome(second.flights[0]) is FunctionFailed
        assert world.provider.queries == queries

    def test_an_old_failure_is_no_longer_told(self) -> None:
        world = World(1)
        world.told(SharedStatus(ZERO, failure=Failure(3, "old", "broken", left=-59.0)))
        wake_all(world)
        world.until(lambda: world.known().start is not None)
        assert world.known().failure is not None
        world.pass_time(3.0)
        world.workers[0].refresh()
        world.all_land()
        assert world.known().failure is None

    def test_what_a_replaced_leader_sees_late_is_no_failed_start(self) -> None:
        world = World(2)
        first, second = world.workers
        world.answer(BROKEN)
        world.latency = 0.1
        first.wake()
        world.until(lambda: world.provider.queries == 1)
        first.stopped = True  # with the answer on its way
        world.answer(UP)
        world.pass_time(LEASE + 0.1)
        second.wake()
        world.until(lambda: second.flights[0].wait(0))
        first.stopped = False
        world.all_land()
        assert isinstance(outcome(first.flights[0]), FunctionMeta)
        assert not [event for event in world.events if isinstance(event, StartFailed)]


class TestTrouble:
    def test_a_provider_that_fails_for_too_long_fails_all(self) -> None:
        world = World(4)
        world.answer(ProviderError("http://10.0.0.1 said 500"))
        wake_all(world)
        world.pass_time(1.0)
        for worker in world.workers:
            assert isinstance(worker.flights[0].trouble, ProviderError)
            assert not isinstance(worker.flights[0].trouble, ProviderSilent)
        world.all_land(PROVIDER_PATIENCE + 2.0)
        assert outcomes(world) == [ProviderError] * 4
        trouble = world.known().trouble
        assert trouble is not None
        assert trouble.final

    def test_one_that_recovers_is_nobodys_trouble(self) -> None:
        world = World(4, delay=5.0)
        world.answer(ProviderError("500"))
        wake_all(world)
        world.pass_time(1.0)
        world.provider.answer = None
        world.pass_time(2.0)
        for worker in world.workers:
            assert worker.flights[0].trouble is None
        assert world.known().trouble is None
        world.all_land()
        assert all(isinstance(found, FunctionMeta) for found in outcomes(world))

    def test_one_that_refuses_to_scale_is_a_trouble_until_it_does(self) -> None:
        world = World(2, delay=5.0)
        world.provider.refusal = ProviderError("507")
        wake_all(world)
        world.pass_time(1.0)
        assert all(isinstance(worker.flights[0].trouble, ProviderError) for worker in world.workers)
        world.provider.refusal = None
        world.pass_time(2.0)
        assert all(worker.flights[0].trouble is None for worker in world.workers)

    def test_meanwhile_no_status_is_told_without_it(self) -> None:
        world = World(1)
        world.provider.refusal = ProviderError("507")
        told: list[SharedStatus] = []
        publish = world.store.publish

        def note(lease: Lease, known: SharedStatus) -> bool:
            told.append(known)
            return publish(lease, known)

        world.store.publish = note  # type: ignore[method-assign]
        wake_all(world)
        (flight,) = world.workers[0].flights
        starting = [flight.starting]
        world.pass_time(1.0)
        starting.append(flight.starting)
        assert starting == [False, True]
        assert told[0].trouble is None
        assert all(known.trouble is not None for known in told[1:])
        assert len(told) > 3

    def test_a_final_trouble_of_an_earlier_flight_ends_no_new_one(self) -> None:
        world = World(1)
        world.told(SharedStatus(None, trouble=ProviderFault(0.1, final=True)))
        wake_all(world)
        world.all_land()
        assert isinstance(outcomes(world)[0], FunctionMeta)

    def test_what_was_known_before_the_trouble_is_no_answer(self) -> None:
        world = World(2)
        world.told(SharedStatus(UP, age=10.0))
        world.answer(ProviderError("500"))
        wake_all(world)
        world.all_land(PROVIDER_PATIENCE + 2.0)
        assert outcomes(world) == [ProviderError] * 2

    def test_an_entry_that_is_doubted_is_not_told(self) -> None:
        world = World(2)
        first, second = world.workers
        first.wake()
        world.all_land()
        world.pass_time(EXPIRY * 2)
        meta = first.cache.find(HELLO)
        assert meta is not None
        assert first.scaler.mark_suspect(meta)
        world.answer(ProviderError("500"))
        first.wake()
        world.until(lambda: world.known().trouble is not None)
        second.wake()
        world.all_land()
        assert world.known().status is None
        assert outcome(second.flights[0]) is ProviderError

    def test_a_trouble_of_long_ago_is_not_that_of_a_leader_who_says_nothing(self) -> None:
        world = World(1)
        (worker,) = world.workers
        age = LEADER_SILENT + 1.0
        world.told(SharedStatus(None, age, trouble=ProviderFault(age, final=True)))
        assert world.store.acquire(HELLO, "hangs", 60.0) is not None
        worker.wake()
        world.pass_time(1.0)
        assert isinstance(worker.flights[0].trouble, ProviderSilent)

    def test_a_leader_that_has_said_nothing_for_long_has_no_answer(self) -> None:
        world = World(1)
        (worker,) = world.workers
        world.told(SharedStatus(STARTING))
        assert world.store.acquire(HELLO, "hangs", 60.0) is not None
        worker.wake()
        world.pass_time(1.0)
        assert worker.flights[0].trouble is None
        world.pass_time(LEADER_SILENT)
        assert isinstance(worker.flights[0].trouble, ProviderSilent)

    def test_who_takes_over_has_had_no_answer_yet(self) -> None:
        world = World(1, latency=100.0)
        (worker,) = world.workers
        lease = world.store.acquire(HELLO, "leads", LEASE)
        assert lease is not None
        assert world.store.publish(lease, SharedStatus(STARTING, name="all"))
        worker.wake()
        world.pass_time(0.5)
        assert worker.flights[0].trouble is None
        world.until(lambda: world.provider.queries == 1)
        assert isinstance(worker.flights[0].trouble, ProviderSilent)

    def test_patience_begins_anew_with_the_lead(self) -> None:
        world = World(1)
        (worker,) = world.workers
        world.provider.refusal = ProviderError("507")
        worker.wake()
        world.until(
            lambda: (
                worker.flights[0].trouble is not None
                and not isinstance(worker.flights[0].trouble, ProviderSilent)
            )
        )
        worker.stopped = True
        world.pass_time(PROVIDER_PATIENCE + LEASE)
        worker.stopped = False
        world.pass_time(0.5)
        world.provider.refusal = None
        world.all_land()
        assert isinstance(outcomes(world)[0], FunctionMeta)


class TestRefresh:
    def test_one_of_the_fleet_asks_once_an_expiry(self) -> None:
        world = World(4)
        world.answer(UP)
        begun = world.clock()
        while world.clock() < begun + 10.0:
            for worker in world.workers:
                meta = worker.cache.find(HELLO)
                stale = meta is None or meta.expired(EXPIRY, world.clock())
                if stale and not worker.busy("refresh"):
                    worker.refresh()
            world.pass_time(0.01)
        assert 10.0 / EXPIRY * 0.8 <= world.provider.queries <= 10.0 / EXPIRY + 1
        for worker in world.workers:
            meta = worker.cache.find(HELLO)
            assert meta is not None
            assert not meta.expired(EXPIRY + 0.1, world.clock())

    def test_who_has_asked_last_asks_again_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then the others find its answer. If it does not ask, for no request comes to it, they do."""
        world = World(2)
        world.answer(UP)
        asking: list[Worker] = []
        for worker in world.workers:
            worker.refresh()
            world.all_land()
            monkeypatch.setattr(worker.scaler, "refresh", lambda _, worker=worker: asking.append(worker))
        assert world.provider.queries == 1
        first, second = world.workers
        for passed, asked in ((EXPIRY + 0.01, [first]), (HEAD_START, [first, second])):
            world.clock.advance(passed)
            asking.clear()
            for worker in world.workers:
                meta = worker.cache.find(HELLO)
                assert meta is not None
                worker.scaler.refresh_stale(meta, world.clock())
            assert asking == asked

    def test_a_slow_answer_serves_all_who_waited(self) -> None:
        world = World(4, latency=2.0)
        world.answer(UP)
        for worker in world.workers:
            worker.refresh()
        world.all_land()
        assert world.provider.queries == 1

    def test_a_status_is_as_old_as_the_question(self) -> None:
        world = World(2, latency=0.2)
        world.answer(UP)
        first, second = world.workers
        first.refresh()
        world.all_land()
        world.clock.advance(0.1)
        assert world.known().age >= 0.3 > EXPIRY
        second.refresh()
        world.all_land()
        assert world.provider.queries == 2

    def test_a_failed_one_is_nobodys_turn_for_a_while(self) -> None:
        world = World(4)
        world.answer(ProviderError("500"))
        for _ in range(5):
            for worker in world.workers:
                if not worker.scaler._outages.resting(worker.state):
                    worker.refresh()
            world.pass_time(FIRST_PAUSE / 10)
        assert world.provider.queries == 1

    def test_the_answer_of_another_worker_ends_an_outage(self) -> None:
        world = World(1)
        (worker,) = world.workers
        world.answer(ProviderError("500"))
        worker.refresh()
        world.all_land()
        assert worker.scaler._outages.error(worker.state) is not None
        world.pass_time(1.0)
        world.told(SharedStatus(UP))
        worker.refresh()
        world.all_land()
        assert worker.scaler._outages.error(worker.state) is None
        assert world.provider.queries == 1

    def test_one_that_failed_another_worker_long_ago_is_asked(self) -> None:
        world = World(1)
        ago = 2 * FIRST_PAUSE
        world.told(SharedStatus(None, ago, trouble=ProviderFault(ago)))
        world.workers[0].refresh()
        world.all_land()
        assert world.provider.queries == 1

    def test_one_that_fails_again_and_again_is_asked_less_and_less_by_the_whole_fleet(self) -> None:
        world = World(4)
        world.answer(ProviderError("500"))
        asked: list[float] = []
        while world.clock() < 120.0:
            for worker in world.workers:
                if not worker.scaler._outages.resting(worker.state) and not worker.busy("refresh"):
                    worker.refresh()
            queries = world.provider.queries
            world.pass_time(0.05)
            asked += [world.clock()] * (world.provider.queries - queries)
        pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert pauses[0] >= FIRST_PAUSE
        assert min(pauses[6:]) >= LONGEST_PAUSE / 2
        assert len(asked) <= 20

    def test_a_fresh_status_is_taken_although_the_leader_has_a_trouble_besides(self) -> None:
        world = World(1)
        world.told(SharedStatus(STARTING, trouble=ProviderFault()))
        world.workers[0].refresh()
        world.all_land()
        assert world.workers[0].cache.get("hello") == (STARTING, True)
        assert world.provider.queries == 0

    def test_one_that_hangs_is_given_up(self) -> None:
        world = World(2, latency=100.0)
        first, second = world.workers
        first.refresh()
        world.until(lambda: world.provider.queries == 1)
        world.latency = 0.0
        second.wake()
        world.until(lambda: second.flights[0].wait(0), FOLLOW + LEASE + 1.5)
        assert isinstance(outcome(second.flights[0]), FunctionMeta)

    def test_who_waits_for_one_that_hangs_gives_up_too(self) -> None:
        world = World(1)
        (worker,) = world.workers
        assert world.store.acquire(HELLO, "hangs", 60.0) is not None
        worker.refresh()
        world.all_land(FOLLOW + 0.5)
        assert world.provider.queries == 0
        assert (
            worker.scaler._outages.error(worker.state) is None
        )  # it may wait for a start, as far as is known
        worker.cache.set("hello", UP)
        worker.cache.stale_if_error = 600.0
        worker.refresh()
        world.all_land(FOLLOW + 0.5)
        assert (
            worker.scaler._outages.error(worker.state) is not None
        )  # as if the provider had failed this worker


def test_a_leader_past_its_flight_is_replaced() -> None:
    world = World(2, latency=100.0)
    first, second = world.workers
    hanging: Flight[FunctionMeta] = Flight(world.clock(), world.clock() + 3.0)
    world.spawn(first, "wake", lambda: hanging.lead(lambda it: first.scaler.activate(HELLO, -math.inf, it)))
    world.until(lambda: world.provider.queries == 1)
    world.latency = 0.0
    second.wake()
    world.until(lambda: second.flights[0].wait(0), 3.0 + LEASE + 1.5)
    assert isinstance(outcome(second.flights[0]), FunctionMeta)


def test_a_follower_ends_with_its_own_flight() -> None:
    world = World(1)
    (worker,) = world.workers
    assert world.store.acquire(HELLO, "leads", 60.0) is not None
    flight: Flight[FunctionMeta] = Flight(world.clock(), world.clock() + 1.0)
    world.spawn(worker, "wake", lambda: flight.lead(lambda it: worker.scaler.activate(HELLO, -math.inf, it)))
    world.all_land(2.0)
    flight.land()
    assert outcome(flight) is NotAvailable


class TestAlone:
    def test_without_the_store_each_wakes_for_itself_and_says_so_once(self) -> None:
        world = World(3)
        world.down = True
        for _ in range(2):
            wake_all(world)
            world.all_land()
            world.pass_time(3 * HEARTBEAT)
        assert all(isinstance(found, FunctionMeta) for found in outcomes(world))
        assert [type(event) for event in world.events].count(CoordinationLost) == 3
        assert all(not worker.peers.joined for worker in world.workers)
        world.down = False
        world.pass_time(2 * HEARTBEAT)
        assert [type(event) for event in world.events].count(CoordinationRestored) == 3
        assert all(worker.peers.joined for worker in world.workers)
        world.provider.zero()
        world.pass_time(EXPIRY * 2)
        wake_all(world)
        world.all_land()
        assert len(world.provider.sets) == 1

    def test_a_start_asked_for_alone_is_not_asked_for_again_when_the_store_is_back(self) -> None:
        world = World(1, lag=1.5)
        world.down = True
        wake_all(world)
        world.until(lambda: len(world.provider.sets) == 1)
        world.down = False
        world.all_land()
        assert len(world.provider.sets) == 1
        assert world.known().start is not None


def test_a_start_that_is_later_than_now_costs_nothing_but_time() -> None:
    world = World(1)
    world.told(SharedStatus(ZERO, start=Start("ahead", age=-5.0)))
    wake_all(world)
    world.all_land()
    assert isinstance(outcomes(world)[0], FunctionMeta)


class TestHowLongStartsTake:
    def test_one_that_leads_for_the_first_time_knows_it(self) -> None:
        world = World(2, delay=3.0)
        first, second = world.workers
        for _ in range(3):
            first.wake()
            world.all_land()
            world.provider.zero()
            world.pass_time(EXPIRY * 2)
        known = first.scaler.last_starts(HELLO)
        assert len(known) == 3
        world.crash(first)
        queries = world.provider.queries
        second.wake()
        world.until(lambda: bool(second.peers.leaderships))
        assert second.scaler.last_starts(HELLO) == known
        world.pass_time(2.5)
        assert world.provider.queries - queries < 10  # it need not ask often yet
        world.all_land()
        assert second.scaler.last_starts(HELLO)[:-1] == known

    def test_it_is_the_leaders_measure_that_counts(self) -> None:
        world = World(2, delay=3.0)
        first, second = world.workers
        first.wake()
        world.pass_time(2.0)
        second.wake()
        world.all_land()
        (took,) = second.scaler.last_starts(HELLO)
        assert took == pytest.approx(3.0, abs=0.2)
        assert first.scaler.last_starts(HELLO) == (took,) == world.known().durations

    def test_a_leader_of_an_earlier_release_does_not_tell(self) -> None:
        world = World(1)
        (worker,) = world.workers
        world.told(SharedStatus(STARTING, durations=(1.0, 2.0)))
        worker.refresh()
        world.all_land()
        world.told(SharedStatus(STARTING))
        worker.refresh()
        world.all_land()
        assert worker.scaler.last_starts(HELLO) == (1.0, 2.0)


class TestNobodyWaits:
    """A leader whose own request has left."""

    def leads(self, workers: int = 1) -> World:
        world = World(workers, delay=20.0)
        world.workers[0].wake(wanted=False)
        world.until(lambda: len(world.provider.sets) == 1)
        return world

    def test_it_asks_rarely(self) -> None:
        world = self.leads()
        queries = world.provider.queries
        world.pass_time(18.0)
        assert world.provider.queries - queries <= 18.0 / UNWANTED_PAUSE + 2

    def test_but_not_while_a_request_waits_in_another_worker(self) -> None:
        world = self.leads(2)
        second = world.workers[1]
        second.waiting = {HELLO: 1}
        second.wake()
        begun = world.clock()
        world.pass_time(10.0)
        queries = world.provider.queries
        world.pass_time(5.0)
        assert world.provider.queries - queries >= 7
        world.all_land()
        assert world.clock() - begun <= 21.0

    def test_one_that_comes_there_later_is_noticed_within_two_heartbeats(self) -> None:
        world = self.leads(2)
        second = world.workers[1]
        second.refresh()  # its heartbeat runs from now on
        world.pass_time(5.0)
        queries = world.provider.queries
        second.waiting = {HELLO: 1}
        world.until(lambda: world.provider.queries > queries + 1, UNWANTED_PAUSE)

    def test_it_looks_there_once_a_beat_at_most(self) -> None:
        world = self.leads(2)
        looks: list[float] = []
        workers = world.store.workers

        def note() -> object:
            looks.append(world.clock())
            return workers()

        world.store.workers = note  # type: ignore[assignment, method-assign]
        world.pass_time(10.0)
        assert looks
        assert all(later - earlier >= HEARTBEAT for earlier, later in itertools.pairwise(looks))

    def test_its_own_row_does_not_count(self) -> None:
        world = self.leads()
        world.workers[0].waiting = {HELLO: 1}  # it has left since the last report
        queries = world.provider.queries
        world.pass_time(9.0)
        assert world.provider.queries - queries <= 9.0 / UNWANTED_PAUSE + 2

    def test_a_store_that_does_not_tell_who_waits_tells_of_nobody(self) -> None:
        world = self.leads(2)

        def fail() -> object:
            raise CoordinationError("a worker's row cannot be read")

        world.store.workers = fail  # type: ignore[assignment, method-assign]
        queries = world.provider.queries
        world.pass_time(9.0)
        assert world.provider.queries - queries <= 9.0 / UNWANTED_PAUSE + 2
        assert world.workers[0].peers.joined
        assert not [event for event in world.events if isinstance(event, CoordinationLost)]

    def test_it_goes_on_as_long_as_a_request_waits_in_another_worker(self) -> None:
        world = World(2, delay=LINGER + 20.0)
        first, second = world.workers
        first.wake(wanted=False)
        world.until(lambda: len(world.provider.sets) == 1)
        second.waiting = {HELLO: 1}
        second.wake()
        world.all_land(LINGER + 30.0)
        assert isinstance(outcome(first.flights[0]), FunctionMeta)

    def test_when_it_ends_one_that_still_waits_takes_over(self) -> None:
        world = World(2, delay=LINGER + 20.0)
        first, second = world.workers
        first.wake(wanted=False)
        world.until(lambda: len(world.provider.sets) == 1)
        second.wake()
        world.until(lambda: first.flights[0].wait(0), LINGER + 5.0)
        world.all_land()
        assert outcome(first.flights[0]) is NotAvailable
        assert isinstance(outcome(second.flights[0]), FunctionMeta)
        assert len(world.provider.sets) == 1
