"""The simulation, with functions that go back to zero: each worker has its gate and its idler, and requests
take the middleware's steps, with a stop between any two of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from scalezero_wsgi import Function, FunctionCache, FunctionScaler, ReplicaStatus, ScaleZeroError
from scalezero_wsgi.activation.idling.gate import Gate
from scalezero_wsgi.activation.idling.idler import Idler
from scalezero_wsgi.activation.idling.listing import Listing
from scalezero_wsgi.activation.idling.replacing import OUTDATED
from scalezero_wsgi.activation.single_flight import Flight
from scalezero_wsgi.activation.state import FunctionMeta
from scalezero_wsgi.coordination import CoordinationError
from scalezero_wsgi.coordination.base import Drain, DrainPhase, Lease
from scalezero_wsgi.events import Reporter
from tests.support.fakes import STARTING, UP, ZERO
from tests.unit.coordination.simulation import (
    FOREVER,
    HELLO,
    EngineWire,
    SimulatedFleet,
    Simulation,
    Task,
    Wire,
    Worker,
)

IDLE_AFTER = 0.2
PACE = 0.05
EXPIRY, STALE_FOR = 0.1, 1.0
SILENT_AFTER = 0.8
OWN = ("heartbeat", "idler")
"""The threads that a worker has beside its requests'."""


class IdlingSimulation(Simulation):
    """
    :ivar calm: whether nobody dies and nothing is lost, so that each use is known until it is old.
    :ivar outdated: whether the function runs with settings that have been changed since, after each start.
    :ivar used_until: when the last request ended that the function has served.
    """

    def __init__(self, delay: float, lag: float, latency: float) -> None:
        super().__init__(delay, lag, latency)
        self.engine: Any = StoppableEngine(self, delay, lag)
        self.requests: list[Request] = []
        self.calm = self.outdated = False
        self.used_until = -math.inf

    def worker(self) -> IdlingWorker:
        worker = IdlingWorker(self, f"w{next(self._numbers)}")
        self.workers.append(worker)
        return worker

    def runnable(self) -> list[Task]:
        return [task for task in super().runnable() if not (task.name in OWN and task.worker.late)]

    def crash(self, worker: Worker) -> None:
        super().crash(worker)
        self.requests = [request for request in self.requests if request.worker is not worker]

    def story(self) -> str:
        """Return what went before, to be read when something is wrong."""
        return f"{self.ledger.wrong} at {self.clock()}: {self.engine.history}, {self.events[-8:]}"

    def forget(self) -> None:
        """Lose all that the store holds, as a Redis does that is restarted."""
        memory = self.store._memory.get()
        for entries in (memory.leases, memory.known, memory.reports, memory.drains):
            entries.clear()
        self.ledger.lease = None


class StoppableEngine:
    """A function that starts when it is told to, and whose requests are cut when it is stopped. For ``lag``
    seconds it shows what was before.

    :ivar history: when it was started and stopped.
    :ivar changes: how often another writer has changed it, who is seen at once.
    """

    def __init__(self, simulation: IdlingSimulation, delay: float, lag: float) -> None:
        self._simulation = simulation
        self._delay, self._lag = delay, lag
        self.history: list[tuple[float, int]] = [(-math.inf, 0)]
        self.changes = 0
        self._count, self._version = 1, 0

    def set(self, replicas: int) -> None:
        if (replicas > 0) == (self.history[-1][1] > 0):
            return
        simulation = self._simulation
        self.history.append((simulation.clock(), replicas))
        self._count = 1
        if replicas == 0:
            for request in simulation.requests:
                if request.served and not request.may_be_cut():
                    simulation.ledger.wrong.append(f"a request of {request.worker.name} was cut")
                request.cut = request.served
            if simulation.calm and simulation.clock() < simulation.used_until + IDLE_AFTER:
                simulation.ledger.wrong.append("it was stopped soon after its last use")

    def change(self, count: int) -> None:
        """Be another writer, who scales it or rolls a new version out."""
        if self.replicas:
            self.changes += 1
            self._count, self._version = count, self._version + 1

    @property
    def replicas(self) -> int:
        return self.history[-1][1]

    def is_up(self) -> bool:
        since, replicas = self.history[-1]
        return replicas > 0 and self._simulation.clock() >= since + self._delay

    def get(self) -> ReplicaStatus:
        now = self._simulation.clock()
        since, replicas = next(each for each in reversed(self.history) if each[0] + self._lag <= now)
        if not replicas:
            return ZERO
        count, labels = self._count, {"version": str(self._version)}
        if self._simulation.outdated:
            labels[OUTDATED] = "true"
        if now < since + self._delay + self._lag:
            return replace(STARTING, replicas=count, labels=labels)
        address = self.address_of(since)
        return replace(UP, replicas=count, available_replicas=count, labels=labels, endpoint=address)

    @staticmethod
    def address_of(started_at: float) -> str:
        """Return where the function is reached: after each start somewhere else."""
        return f"http://{started_at}"

    def serves(self, meta: FunctionMeta) -> bool:
        """Return whether a request that is sent by this entry gets an answer."""
        return self.is_up() and meta.status.endpoint == self.address_of(self.history[-1][0])


class SimulatedLock:
    """Of one worker, whose threads are greenlets."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._held = False

    def get(self) -> SimulatedLock:
        return self

    def __enter__(self) -> None:
        if self._held:
            self._simulation.stop(lambda: not self._held)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class SimulatedGate(Gate):
    def __init__(self, worker: IdlingWorker, wire: DrainingWire, report: Reporter) -> None:
        simulation = worker.simulation
        super().__init__(
            wire,
            worker.peers,
            worker.cache,
            lambda: worker.waiting,
            report,
            PACE,
            simulation.clock,
            simulation.sleep,
            stream_idle_after=SILENT_AFTER,
        )
        self._turning: Any = SimulatedLock(simulation)
        self._simulation = simulation

    def _look(self) -> None:
        self._simulation.stop()
        super()._look()


class SimulatedIdler(Idler):
    worker: IdlingWorker

    def _drain(self, function: Function, now: float, idle_for: float | None) -> bool:
        if not self.worker.busy("drain"):
            simulation = self.worker.simulation
            simulation.spawn(self.worker, "drain", lambda: self._stop(function, idle_for))
        return True

    def _replace(self, function: Function, now: float) -> None:
        if now >= self._retries.not_before(function) and not self.worker.busy("drain"):
            simulation = self.worker.simulation
            simulation.spawn(self.worker, "drain", lambda: self._stop_outdated(function))

    def _read(self, function: Function) -> None:
        super()._read(function)
        self.worker.simulation.task().looks.clear()  # it is none of the drain's looks


class SimulatedListing(Listing):
    def __init__(self, worker: IdlingWorker) -> None:
        super().__init__(worker.scaler.context, processor_time=lambda: 0.0)
        self._worker = worker

    def _begin(self, now: float) -> bool:
        if self._worker.busy("list"):
            return False
        self._worker.simulation.spawn(self._worker, "list", self.look)
        return True


class IdlingWorker(Worker):
    simulation: IdlingSimulation

    def __init__(self, simulation: IdlingSimulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.dead = self.stopped = self.late = False
        self.flights = []
        self.waiting = {}
        clock = simulation.clock
        report = Reporter([simulation.events.append])
        wire = DrainingWire(self)
        self.peers = SimulatedFleet(self, wire, report, clock)
        self.cache = FunctionCache(EXPIRY, stale_for=STALE_FOR, clock=clock)
        self.scaler = FunctionScaler(
            StoppingWire(self),
            self.cache,
            report=report,
            peers=self.peers,
            clock=clock,
            sleep=simulation.sleep,
            jitter=lambda: 0.5,
        )
        self.gate = SimulatedGate(self, wire, report)
        self.idler = SimulatedIdler(
            self.scaler.context, wire, self.gate, lambda *_: IDLE_AFTER, pace=PACE, shared=True
        )
        self.idler.worker = self
        self.idler._listing = SimulatedListing(self)
        simulation.spawn(self, "idler", self._idle)

    def _idle(self) -> None:
        while True:
            try:
                self.gate.turn()
                self.idler.turn()
            except CoordinationError:
                pass
            self.simulation.sleep(PACE)

    def ask(self, duration: float) -> None:
        """A request comes that the function serves for so many seconds."""
        self.send(Request(self, duration))

    def send(self, request: Request) -> None:
        self.simulation.requests.append(request)
        self.simulation.spawn(self, "request", request.run)


class Request:
    """The middleware's steps.

    :ivar served: whether the function has it.
    :ivar cut: whether the function was stopped meanwhile.
    """

    def __init__(self, worker: IdlingWorker, duration: float) -> None:
        self.worker = worker
        self.duration = duration
        self.served = self.cut = False

    def may_be_cut(self) -> bool:
        return False

    def serve(self) -> None:
        self.worker.simulation.sleep(self.duration)

    def run(self) -> None:
        simulation = self.worker.simulation
        meta = self._fast()
        for _ in range(500):
            try:
                meta = meta or self._slow()
            except ScaleZeroError as error:
                simulation.ledger.wrong.append(f"a request of {self.worker.name} was lost: {error!r}")
                break
            if self._pass_down(meta):
                break
            meta = None
        else:
            simulation.ledger.wrong.append(f"a request of {self.worker.name} turns in a circle")
        if self in simulation.requests:
            simulation.requests.remove(self)

    def _fast(self) -> FunctionMeta | None:
        cache, clock = self.worker.cache, self.worker.simulation.clock
        state = cache.find_state(HELLO)
        meta = None if state is None else state.meta
        self.worker.simulation.stop()
        if meta is None or not meta.available or clock() > meta.last_refresh + cache.usable:
            return None
        if clock() > meta.last_refresh + cache.expiry and not self.worker.busy("refresh"):
            self.worker.refresh()
        return meta

    def _slow(self) -> FunctionMeta:
        worker, clock = self.worker, self.worker.simulation.clock
        since = -math.inf
        if worker.gate.enter(HELLO):
            meta = worker.cache.find(HELLO)
            if meta is not None and meta.available and clock() <= meta.last_refresh + worker.cache.usable:
                return meta
        else:
            since = clock()
        flight: Flight[FunctionMeta] = Flight(clock(), FOREVER)
        with self._waiting():
            while True:
                meta = worker.scaler.activate(HELLO, since, flight)
                if meta.last_refresh >= since:
                    return meta

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        waiting = self.worker.waiting
        waiting[HELLO] = waiting.get(HELLO, 0) + 1
        try:
            yield
        finally:
            waiting[HELLO] -= 1
            if not waiting[HELLO]:
                del waiting[HELLO]

    def _pass_down(self, meta: FunctionMeta) -> bool:
        simulation, state = self.worker.simulation, meta.state
        simulation.stop()
        state.last_used = simulation.clock()
        state.in_flight.add(self)
        simulation.stop()
        if not self.worker.gate.is_open(state, meta):
            state.in_flight.discard(self)
            simulation.stop()
            return False
        simulation.stop()
        if not simulation.engine.serves(meta):
            simulation.ledger.wrong.append(
                f"{self.worker.name} passed a request to a function at zero at {simulation.clock()},"
                f" by {meta}, closed {self.worker.gate.closed}, {simulation.store.drains()}"
            )
        self.served = True
        self.serve()
        self.served = False
        simulation.used_until = simulation.clock()
        state.in_flight.discard(self)
        return True


class Stream(Request):
    """It carries a byte now and then until its time is over, or one whenever it is told to."""

    EVERY = 0.05

    def __init__(self, worker: IdlingWorker, duration: float) -> None:
        super().__init__(worker, duration)
        self.byte = self._in_drain = False
        self.silent_since = math.inf

    def is_silent(self) -> bool:
        return self.served and not self.byte and self.duration == math.inf

    def may_be_cut(self) -> bool:
        """It has been silent for long enough, or has carried something again when it was too late."""
        return self._in_drain or self.worker.simulation.clock() >= self.silent_since + SILENT_AFTER

    def serve(self) -> None:
        simulation, until = self.worker.simulation, self.worker.simulation.clock() + self.duration
        while not self.cut and simulation.clock() < until:
            drain = simulation.store.drains().get(HELLO)
            self._in_drain = drain is not None and drain.phase in (DrainPhase.DRAINING, DrainPhase.STOPPING)
            self.silent_since = simulation.clock()
            self.byte = False
            if self.duration == math.inf:
                simulation.stop(lambda: self.cut or self.byte)
            else:
                simulation.sleep(self.EVERY)


class DrainingWire(Wire):
    def renew(self, lease: Lease, ttl: float) -> bool:
        task = self._simulation.task()
        if task.name != "drain":
            return super().renew(lease, ttl)
        # Between a renewal and the call to the provider nothing stops it: no lease could help against that.
        self._simulation.stop()
        self._check()
        done = self._simulation.store.renew(lease, ttl)
        self._simulation.ledger.note("renew", (lease, ttl), done)
        task.confirmed = lease if done else None
        return done

    def drains(self) -> Mapping[Function, Drain]:
        drains: Mapping[Function, Drain] = self._call("drains")
        return drains

    def change_drain(
        self, function: Function, before: Drain | None, after: Drain | None, keep: float
    ) -> bool:
        done: bool = self._call("change_drain", function, before, after, keep)
        return done


class StoppingWire(EngineWire):
    """A worker's way to the provider.

    What another writer changes between a drain's first look and its last must stand.
    """

    @property
    def tells_outdated(self) -> bool:
        return bool(self._worker.simulation.outdated)  # type: ignore[attr-defined]

    def list_functions(self) -> list[Function]:
        return [HELLO]

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        simulation = self._worker.simulation
        simulation.stop()
        task = simulation.task()
        task.looks.append(simulation.engine.changes)  # type: ignore[attr-defined]
        status = simulation.engine.get()
        simulation.sleep(simulation.latency)
        return status

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        simulation = self._worker.simulation
        if replicas:
            simulation.stop()
        elif len(set(simulation.task().looks)) > 1:
            simulation.ledger.wrong.append("another writer's change was undone")
        simulation.engine.set(replicas)  # type: ignore[arg-type]
        simulation.sleep(simulation.latency)
