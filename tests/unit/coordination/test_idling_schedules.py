"""Back to zero by schedules that are gone through one by one: a thread is held up at each of its steps in
turn, while all others go on and something else happens. ``test_idling_machine`` goes further, with luck.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import pytest

from scalezero_wsgi.activation.idling.gate import VANISHED
from scalezero_wsgi.activation.idling.idler import NEWLY_LED
from scalezero_wsgi.activation.state import SETTLE
from scalezero_wsgi.coordination.base import DrainPhase
from scalezero_wsgi.coordination.leadership import LEASE
from tests.unit.coordination.idling import EXPIRY, PACE, STALE_FOR, IdlingWorker
from tests.unit.coordination.simulation import HELLO, Task
from tests.unit.coordination.test_idling_machine import Idle, StormyIdle

STEPS = 16
"""A request that finds the function open takes fewer; so does a worker's turn."""

RESOLVED = LEASE + NEWLY_LED + SETTLE + 1.0
"""Seconds after which others have ended what a worker has left."""


class Schedule:
    """Three workers that know the function, which is up; the first decides.

    :param calm: whether nobody dies and nothing is lost.
    """

    def __init__(self, calm: bool = True, lag: float = 0.0) -> None:
        self.machine = Idle() if calm else StormyIdle()
        self.machine.begin(delay=0.0, lag=lag, latency=0.0, used=False)
        self.world = self.machine.world
        for index in range(3):
            self.machine.alive(index).ask(0.0)
        assert self.world.run(lambda: self.world.engine.replicas > 0 and not self.world.requests, 20.0)
        assert self.worker(0).idler._lead is not None

    def worker(self, index: int) -> IdlingWorker:
        return self.machine.alive(index)

    def until(self, phase: DrainPhase) -> None:
        assert self.world.run(lambda: self.machine.is_in(phase), 20.0)

    def send(self, worker: IdlingWorker, duration: float) -> Task:
        worker.ask(duration)
        return self.world.tasks[-1]

    def serve(self, worker: IdlingWorker, duration: float) -> None:
        """Have the function serve a request, before anything else goes on."""
        task = self.send(worker, duration)
        request = self.world.requests[-1]
        while not request.served:
            assert task in self.world.runnable()
            self.world.step(task)

    def own(self, worker: IdlingWorker, name: str) -> Task | None:
        return next((task for task in self.world.tasks if (task.worker, task.name) == (worker, name)), None)

    def drain(self, steps: int) -> Task | None:
        """Return the thread that brings the function to zero, held at that step; ``None``: it has ended."""
        assert self.world.run(lambda: self.own(self.worker(0), "drain") is not None, 20.0)
        task = self.own(self.worker(0), "drain")
        assert task is not None
        return task if self.hold(task, steps) else None

    def hold(self, task: Task, steps: int) -> bool:
        """Let a thread go so many steps, as soon as it can, and no further; whether it is still there."""
        for _ in range(steps):
            if not self.world.run(lambda: task not in self.world.tasks or task in self.world.runnable(), 5.0):
                break
            if task in self.world.tasks:
                self.world.step(task)
        task.held = True
        return task in self.world.tasks

    def go_on(self, seconds: float) -> None:
        self.machine.go_on(seconds)

    def to_zero(self) -> None:
        """Let all go on until it is there, or for so long that it would be."""
        self.world.run(lambda: not self.world.engine.replicas, 1.0)

    def end(self, *held: Task) -> None:
        for task in held:
            task.held = False
        self.go_on(0.5)
        self.machine.teardown()


def requests_held_up(moment: DrainPhase | None, index: int, lag: float = 0.0, again: bool = False) -> None:
    """A request is held up at each of its steps until the function is at zero, or would be."""
    for steps in range(STEPS):
        site = Schedule(lag=lag)
        if moment is not None:
            site.until(moment)
        request = site.send(site.worker(index), 0.05)
        site.hold(request, steps)
        site.to_zero()
        if again and not site.world.engine.replicas:
            site.send(site.worker(2), 0.0)
            site.go_on(0.1)
        site.end(request)


def first_requests_held_up(lag: float = 0.0) -> None:
    """The same with the first request of a worker whose own threads do not get to run at first."""
    for steps in range(STEPS):
        site = Schedule(lag=lag)
        worker = site.world.worker()
        worker.late = True
        request = site.send(worker, 1.0)
        site.hold(request, steps)
        site.to_zero()
        request.held = False
        site.go_on(1.0)
        worker.late = False
        site.end()


def turns_held_up(duration: float) -> None:
    """A worker's turn and a request in it are held up at each of their steps, while the function drains."""
    for steps in range(8):
        for turn in range(12):
            site = Schedule()
            site.until(DrainPhase.DRAINING)
            worker = site.worker(1)
            idler = site.own(worker, "idler")
            assert idler is not None
            request = site.send(worker, duration)
            site.hold(request, steps)
            site.world.clock.advance(PACE)
            site.hold(idler, turn)
            request.held = False
            site.go_on(0.02)
            request.held = True
            idler.held = False
            site.to_zero()
            site.end(request)


def requests_during_a_drain(index: int, duration: float, lag: float = 0.0) -> None:
    """A request comes at each step of a drain, which waits while it goes on for a moment."""
    for steps in count():
        site = Schedule(lag=lag)
        drain = site.drain(steps)
        if drain is None:
            break
        request = site.send(site.worker(index), duration)
        site.go_on(PACE / 3)
        site.end(drain, request)


def who_decides_dies(asked: bool, lag: float = 0.0) -> None:
    for steps in count():
        site = Schedule(calm=False, lag=lag)
        drain = site.drain(steps)
        if drain is None:
            break
        site.world.crash(drain.worker)
        if asked:
            site.send(site.worker(0), 0.05)
        site.go_on(0.3)
        site.end()


def who_decides_hangs(seconds: float, lag: float = 0.0, is_lost: bool = False) -> None:
    """From each step of a drain on; another worker is asked at once, and is in use when it goes on.

    :param is_lost: whether the store is lost meanwhile.
    """
    for steps in count():
        site = Schedule(calm=False, lag=lag)
        drain = site.drain(steps)
        if drain is None:
            break
        drain.worker.stopped = True
        site.world.down = is_lost
        site.send(site.worker(1), 0.0)
        site.go_on(seconds - 0.5)
        site.send(site.worker(1), 1.0)
        site.go_on(0.5)
        drain.worker.stopped = drain.held = False
        site.go_on(0.5)
        site.world.down = False
        site.end()


def the_store_is_lost(seconds: float, lag: float = 0.0) -> None:
    """From each step of a drain on, while a request comes."""
    for steps in count():
        site = Schedule(calm=False, lag=lag)
        drain = site.drain(steps)
        if drain is None:
            break
        drain.held = False
        site.world.down = True
        request = site.send(site.worker(1), 0.05)
        site.go_on(seconds)
        site.world.down = False
        site.end(request)


def the_store_forgets(seconds: float) -> None:
    """At each step of a drain; another worker serves a request, and does not get to report it at once."""
    for steps in count():
        site = Schedule(calm=False)
        drain = site.drain(steps)
        if drain is None or site.machine.is_in(DrainPhase.STOPPING):
            break
        worker = site.worker(1)
        site.serve(worker, 2.0)
        worker.late = True
        site.world.forget()
        drain.held = False
        site.go_on(seconds)
        worker.late = False
        site.end()


def a_worker_hangs_in_use(seconds: float = 10.0) -> None:
    """It is cut off, and its request is still served."""
    site = Schedule(calm=False)
    site.send(site.worker(1), 1.0)
    site.go_on(0.2)
    site.worker(1).stopped = True
    site.go_on(seconds)
    site.world.workers[1].stopped = False
    site.end()


def a_worker_in_use_notices_a_drain() -> None:
    site = Schedule()
    site.until(DrainPhase.DRAINING)
    site.serve(site.worker(1), 1.0)
    site.go_on(3 * PACE)
    assert site.machine.is_in(DrainPhase.READY)
    site.end()


def a_worker_comes_back_that_counts_as_gone() -> None:
    """With ``stale_if_error`` it could use its entries for very long."""
    site = Schedule(calm=False)
    worker = site.worker(1)
    worker.stopped = True
    site.go_on(EXPIRY + STALE_FOR + VANISHED + 0.1)
    worker.stopped = False
    site.go_on(PACE)
    meta = worker.cache.find(HELLO)
    assert meta is not None
    assert meta.suspect
    site.end()


def the_end_of_a_drain_is_missed() -> None:
    """By a worker that has closed the function for one drain, and looks again during the next."""
    site = Schedule()
    worker = site.worker(1)
    assert site.world.run(lambda: HELLO in worker.gate._acknowledged, 5.0)
    worker.late = True
    site.to_zero()
    site.go_on(0.01)
    site.send(site.worker(2), 0.0)
    site.until(DrainPhase.DRAINING)
    drain = site.drain(0)
    assert drain is not None
    worker.late = False
    site.go_on(2 * PACE)
    site.send(site.worker(2), 0.0)
    site.go_on(2 * PACE)
    assert site.machine.is_in(DrainPhase.READY)
    assert HELLO not in worker.gate.closed
    site.send(worker, 0.0)
    site.end(drain)


SOON = [
    partial(requests_held_up, None, 0, again=True),
    partial(requests_held_up, DrainPhase.STOPPING, 1),
    first_requests_held_up,
    a_worker_hangs_in_use,
    a_worker_in_use_notices_a_drain,
    a_worker_comes_back_that_counts_as_gone,
    the_end_of_a_drain_is_missed,
]
LONG = [
    *(
        partial(requests_held_up, moment, index, lag, again)
        for moment in (None, DrainPhase.DRAINING, DrainPhase.STOPPING)
        for index in (0, 1)
        for lag in (0.0, 0.3)
        for again in (False, True)
    ),
    partial(first_requests_held_up, 0.3),
    partial(turns_held_up, 0.0),
    partial(turns_held_up, 0.3),
    partial(requests_during_a_drain, 0, 0.0),
    partial(requests_during_a_drain, 0, 0.3, 0.3),
    partial(requests_during_a_drain, 1, 0.0),
    partial(requests_during_a_drain, 1, 0.0, 0.3),
    partial(requests_during_a_drain, 1, 0.3),
    partial(who_decides_dies, False),
    partial(who_decides_dies, True, LEASE + 0.5),
    partial(who_decides_hangs, 4.0, 0.3),
    partial(who_decides_hangs, RESOLVED),
    partial(who_decides_hangs, RESOLVED, is_lost=True),
    partial(the_store_is_lost, 0.5, 0.3),
    partial(the_store_is_lost, 3.0),
    partial(the_store_is_lost, 3.0, LEASE + 0.5),
    partial(the_store_forgets, 0.3),
    partial(the_store_forgets, 0.8),
    partial(a_worker_hangs_in_use, 4.0),
]


def name_of(go: Callable[[], None]) -> str:
    if isinstance(go, partial):
        return "-".join([go.func.__name__, *map(str, go.args), *go.keywords])
    return go.__name__


@pytest.mark.parametrize(
    "go", [*SOON, *(pytest.param(go, marks=pytest.mark.soak) for go in LONG)], ids=name_of
)
def test_no_request_is_lost_and_it_goes_to_zero(go: Callable[[], None]) -> None:
    go()
