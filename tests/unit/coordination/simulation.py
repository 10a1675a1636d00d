"""Several workers over one store, in simulated time: each stops before and after every call that leaves
it, and goes on when it is told to.

What runs is the package's own code, in greenlets; replaced are the clock, the pauses, the heartbeat's
thread, and the wires to the store and the provider, which may break.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import greenlet

from scalezero_wsgi import (
    Function,
    FunctionCache,
    FunctionScaler,
    ProviderError,
    ReplicaStatus,
    ScaleZeroError,
)
from scalezero_wsgi.activation.single_flight import Flight
from scalezero_wsgi.activation.state import FunctionMeta, FunctionState
from scalezero_wsgi.coordination import CoordinationError
from scalezero_wsgi.coordination.base import Changes, Lease, SharedStatus, WorkerReport
from scalezero_wsgi.coordination.heartbeat import HEARTBEAT
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.events import Event, Reporter
from tests.support.clock import Clock
from tests.support.fakes import STARTING, UP, ZERO

HELLO = Function("hello")
FOREVER = 10_000.0


class Crash(BaseException):
    """The worker's process is gone."""


def always() -> bool:
    return True


@dataclass(eq=False)
class Task:
    """A thread of a worker.

    :ivar call: of the store, before or after which it has stopped.
    :ivar held: whether it does not go on, however ready it is.
    :ivar looks: what it has seen of the engine, see there.
    """

    worker: Worker
    name: str
    call: str = ""
    ready: Callable[[], bool] = always
    changes: SimulatedChanges | None = None
    confirmed: Lease | None = None
    body: greenlet.greenlet | None = None
    held: bool = False
    looks: list[int] = field(default_factory=list)


class Simulation:
    """
    :param delay: seconds that a function takes to start.
    :param lag: seconds that the provider takes to show the count that was set.
    :param latency: seconds that it takes to answer.
    """

    def __init__(self, delay: float = 0.5, lag: float = 0.0, latency: float = 0.0) -> None:
        self.clock = Clock()
        self.store = MemoryCoordination(clock=self.clock)
        self.engine = Engine(self, delay, lag)
        self.latency = latency
        self.ledger = Ledger(self.clock)
        self.workers: list[Worker] = []
        self.tasks: list[Task] = []
        self.events: list[Event] = []
        self.down = False
        self._numbers = itertools.count(1)
        self.running: Task | None = None
        self._scheduler = greenlet.getcurrent()

    def worker(self) -> Worker:
        worker = Worker(self, f"w{next(self._numbers)}")
        self.workers.append(worker)
        return worker

    # Tasks

    def spawn(self, worker: Worker, name: str, call: Callable[[], object]) -> None:
        task = Task(worker, name)

        def run() -> None:
            try:
                call()
            except Crash:
                pass
            finally:
                self.tasks.remove(task)

        task.body = greenlet.greenlet(run, parent=self._scheduler)
        self.tasks.append(task)

    def runnable(self) -> list[Task]:
        return [task for task in self.tasks if not (task.held or task.worker.stopped) and task.ready()]

    def step(self, task: Task) -> None:
        """Let a task go on to its next stop."""
        assert task.body is not None
        self.running = task
        task.body.switch()
        self.running = None

    def stop(self, ready: Callable[[], bool] = always) -> None:
        """Stop here, and go on later."""
        task = self.task()
        task.ready = ready
        self._scheduler.switch()
        task.ready = always
        if task.worker.dead:
            raise Crash

    def task(self) -> Task:
        """The one that runs, for the calls that it makes."""
        task = self.running
        assert task is not None
        if task.worker.dead:
            raise Crash
        return task

    def sleep(self, duration: float) -> None:
        until = self.clock() + duration
        self.stop(lambda: self.clock() >= until)

    def crash(self, worker: Worker) -> None:
        worker.dead = True
        self.workers.remove(worker)
        for task in [task for task in self.tasks if task.worker is worker]:
            assert task.body is not None
            if task.body:
                self.running = task
                task.body.throw(Crash)
                self.running = None
            else:  # it has not begun
                self.tasks.remove(task)

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Let all go on as they would by themselves; whether ``until`` came within so many seconds."""
        deadline = self.clock() + seconds
        turns = 0
        while not until():
            if self.clock() > deadline:
                return False
            turns += 1
            assert turns < 100_000, "they turn in a circle"
            tasks = self.runnable()
            for task in tasks:
                if task in self.tasks:
                    self.step(task)
            if not tasks:
                self.clock.advance(0.005)
        return True


class Worker:
    """A process: its threads, and what they have in common.

    :ivar stopped: whether it is suspended.
    :ivar late: whether its own threads do not get to run, and its requests do.
    """

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.dead = self.stopped = self.late = False
        self.flights: list[Flight[FunctionMeta]] = []
        self.waiting: dict[Function, int] = {}  # as it reports them
        clock = simulation.clock
        report = Reporter([simulation.events.append])
        self.peers = SimulatedFleet(self, Wire(self), report, clock)
        self.cache = FunctionCache(0.25, stale_for=5.0, clock=clock)
        self.scaler = FunctionScaler(
            EngineWire(self),
            self.cache,
            report=report,
            peers=self.peers,
            clock=clock,
            sleep=simulation.sleep,
            jitter=lambda: 0.5,
        )

    @property
    def state(self) -> FunctionState:
        """What it remembers of the function."""
        return self.cache.state(HELLO)

    @property
    def failures(self) -> int:
        """How many starts in a row have failed, as far as it knows."""
        failure = self.state.failure
        return 0 if failure is None else failure.count

    def wake(self, *, wanted: bool = True) -> None:
        """A request comes, and waits; or leaves at once."""
        flight: Flight[FunctionMeta] = Flight(self.simulation.clock(), FOREVER)
        if not wanted:
            flight.wanted_until = self.simulation.clock()
        self.flights.append(flight)

        def call() -> None:
            flight.lead(lambda flight: self.scaler.activate(HELLO, -math.inf, flight))
            if not self.dead:
                flight.land()
                self._look_at(flight)

        self.simulation.spawn(self, "wake", call)

    def _look_at(self, flight: Flight[FunctionMeta]) -> None:
        try:
            flight.result()
        except ScaleZeroError:
            return
        if not self.simulation.engine.is_up(self.simulation.clock()):
            self.simulation.ledger.wrong.append(f"{self.name} passed a request to nobody")

    def refresh(self) -> None:
        flight: Flight[None] = Flight(self.simulation.clock(), FOREVER)
        self.simulation.spawn(self, "refresh", lambda: self.scaler.query(HELLO, flight))

    def busy(self, name: str) -> bool:
        return any(task.worker is self and task.name == name for task in self.simulation.tasks)


class SimulatedFleet(Peers):
    def __init__(self, worker: Worker, wire: Wire, report: Reporter, clock: Clock) -> None:
        super().__init__(wire, report, clock, row=lambda name: WorkerReport(name, waiting=worker.waiting))
        self._simulated = worker
        self._heartbeat_runs = False

    def pause(self, seconds: float) -> None:  # type: ignore[override]
        self._simulated.simulation.sleep(seconds)

    def _start_heartbeat(self) -> None:
        if not self._heartbeat_runs:
            self._heartbeat_runs = True
            self._simulated.simulation.spawn(self._simulated, "heartbeat", self._run_heartbeat)

    def _run_heartbeat(self) -> None:
        while True:
            self.heartbeat()
            self._simulated.simulation.sleep(HEARTBEAT)


class Wire:
    """A worker's way to the store."""

    def __init__(self, worker: Worker) -> None:
        self._simulation = worker.simulation

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        lease: Lease | None = self._call("acquire", function, worker, ttl)
        return lease

    def renew(self, lease: Lease, ttl: float) -> bool:
        done: bool = self._call("renew", lease, ttl)
        self._simulation.task().confirmed = lease if done else None
        return done

    def release(self, lease: Lease) -> None:
        self._call("release", lease)

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        done: bool = self._call("publish", lease, known)
        return done

    def known(self, function: Function) -> SharedStatus | None:
        known: SharedStatus | None = self._call("known", function)
        return known

    def report(self, row: WorkerReport, ttl: float) -> None:
        self._call("report", row, ttl)

    def leave(self, worker: str) -> None:
        self._call("leave", worker)

    def workers(self) -> list[WorkerReport]:
        rows: list[WorkerReport] = self._call("workers")
        return rows

    @contextmanager
    def changes(self, function: Function) -> Iterator[Changes]:
        self._simulation.stop()
        self._check()
        with self._simulation.store.changes(function) as changes:
            yield SimulatedChanges(self._simulation, changes, self._check)

    def _call(self, method: str, *arguments: Any) -> Any:
        simulation = self._simulation
        task = simulation.task()
        task.confirmed, task.call = None, method
        simulation.stop()
        self._check()
        result = getattr(simulation.store, method)(*arguments)
        simulation.ledger.note(method, arguments, result)
        simulation.stop()
        task.call = ""
        return result

    def _check(self) -> None:
        if self._simulation.down:
            self._simulation.ledger.failed = True
            raise CoordinationError("down")


class SimulatedChanges:
    """Tells of a change, unless that is lost on the way."""

    def __init__(self, simulation: Simulation, changes: Changes, check: Callable[[], None]) -> None:
        self._simulation = simulation
        self._changes = changes
        self._check = check
        self._changed = False

    def wait(self, timeout: float) -> bool:
        until = self._simulation.clock() + timeout
        task = self._simulation.task()
        task.changes = self
        self._simulation.stop(lambda: self._look() or self._simulation.clock() >= until)
        task.changes = None
        self._check()
        changed, self._changed = self._changed, False
        return changed

    def lose(self) -> None:
        self._changes.wait(0)
        self._changed = False

    def _look(self) -> bool:
        self._changed = self._changes.wait(0) or self._changed
        return self._changed


@dataclass
class Ledger:
    """What the store has agreed to, and whether that was right.

    :ivar lapses: leases that their holders did not give back.
    :ivar failed: whether a call has failed.
    """

    clock: Clock
    lease: Lease | None = None
    expires: float = 0.0
    tokens: int = 0
    lapses: int = 0
    failed: bool = False
    wrong: list[str] = field(default_factory=list)

    def valid(self, lease: Lease) -> bool:
        return lease == self.lease and self.clock() < self.expires

    def note(self, method: str, arguments: tuple[Any, ...], result: Any) -> None:
        of = (
            arguments[0].function
            if arguments and isinstance(arguments[0], Lease)
            else next(iter(arguments), HELLO)
        )
        if of != HELLO:
            return
        if method == "acquire":
            self._acquired(result, arguments[2])
        elif method in ("renew", "publish"):
            lease = arguments[0]
            if result != self.valid(lease):
                self.wrong.append(f"{method} by {lease} was {'taken' if result else 'refused'}")
            if result and method == "renew":
                self.expires = self.clock() + arguments[1]
        elif method == "release" and arguments[0] == self.lease:
            self.lease = None

    def _acquired(self, lease: Lease | None, ttl: float) -> None:
        held = self.lease is not None and self.valid(self.lease)
        if (lease is None) != held:
            self.wrong.append(f"{lease} was given while {self.lease} was {'valid' if held else 'over'}")
        if lease is None:
            return
        if self.lease is not None:
            self.lapses += 1
        if lease.token <= self.tokens:
            self.wrong.append(f"{lease} has a token that is not new")
        self.lease, self.expires, self.tokens = lease, self.clock() + ttl, lease.token


class Engine:
    """A function that starts when it is told to."""

    def __init__(self, simulation: Simulation, delay: float, lag: float) -> None:
        self._simulation = simulation
        self._delay = delay
        self._lag = lag
        self.set_at: float | None = None
        self.sets: list[Lease | None] = []
        self.failing = 0
        self.failed = False

    def get(self) -> ReplicaStatus:
        self._fail()
        if self.is_up(self._simulation.clock()):
            return UP
        return STARTING if self._age(self._simulation.clock()) >= 0 else ZERO

    def is_up(self, now: float) -> bool:
        return self._age(now) >= self._delay

    def _age(self, now: float) -> float:
        return -math.inf if self.set_at is None else now - self.set_at - self._lag

    def set(self, confirmed: Lease | None) -> None:
        self._fail()
        self.sets.append(confirmed)
        if self.set_at is None:
            self.set_at = self._simulation.clock()

    def zero(self) -> None:
        self.set_at = None
        self.sets = []
        self._simulation.ledger.lapses = 0

    def _fail(self) -> None:
        if self.failing:
            self.failing -= 1
            self.failed = True
            raise ProviderError("500")


class EngineWire:
    """A worker's way to the provider."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        simulation = self._worker.simulation
        simulation.stop()
        status = simulation.engine.get()
        simulation.sleep(simulation.latency)
        return status

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        simulation = self._worker.simulation
        confirmed = simulation.task().confirmed
        if confirmed is None and self._worker.peers.joined:
            simulation.ledger.wrong.append(f"{self._worker.name} sets without having made sure of its lead")
        simulation.stop()
        simulation.engine.set(confirmed)
        simulation.sleep(simulation.latency)
