"""Workers of one fleet under a clock that stands still, in one thread: whoever pauses lets the others go on.

What runs is the package's own code, from the activation to the hand-shake; replaced are the clock, the
threads and the application.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from scalezero_wsgi import Function, FunctionCache, FunctionScaler, ReplicaStatus, Settings
from scalezero_wsgi.activation.budget.budget import Budget
from scalezero_wsgi.activation.budget.ledger import Ledger
from scalezero_wsgi.activation.budget.limits import Limits
from scalezero_wsgi.activation.budget.survey import Survey
from scalezero_wsgi.activation.idling.busy import Busy
from scalezero_wsgi.activation.idling.gate import Gate
from scalezero_wsgi.activation.single_flight import Flight
from scalezero_wsgi.activation.state import FunctionMeta
from scalezero_wsgi.coordination.base import WorkerReport
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.events import Event, Reporter
from tests.support.clock import Clock
from tests.support.fakes import STARTING, UP, ZERO

START = 0.5


class Host:
    """Functions that take ``START`` seconds to start and none to end.

    :ivar up: since when each has been up or is starting.
    :ivar most: how many were at once.
    """

    lists_only_functions = True

    def __init__(self, clock: Clock, names: str, sizes: Mapping[str, int], groups: Mapping[str, str]) -> None:
        self._clock = clock
        self._names = names
        self._labels = {name: {"scalezero.memory": str(size)} for name, size in sizes.items()}
        self._labels |= {name: {"scalezero.budget": group} for name, group in groups.items()}
        self.up: dict[str, float] = {}
        self.most = 0
        self.starts: list[str] = []
        self.in_use: list[str] = []
        self.cut: list[str] = []

    def list_functions(self) -> list[Function]:
        return [Function(name) for name in self._names]

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        since = self.up.get(name)
        status = ZERO if since is None else UP if self._clock() >= since + START else STARTING
        return replace(status, labels=self._labels.get(name, {}))

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        if replicas == 0:
            self.up.pop(name, None)
            self.cut += [each for each in self.in_use if each == name]
        elif name not in self.up:
            self.up[name] = self._clock()
            self.starts.append(name)
            self.most = max(self.most, len(self.up))


class SimulatedPeers(Peers):
    def _start_heartbeat(self) -> None:
        """The fleet has it beat."""


class SimulatedBudget(Budget):
    def _run(self, key: Function, call: Callable[[object], None], timeout: float, wait: float = 0.0) -> None:
        call(None)


class Fleet:
    """
    :param names: of the functions, a letter each.
    :param running: how many may be up at once.
    :param memory: how many bytes they may take together.
    :param sizes: how many each takes.
    :param running_of: how many of a group may be up at once.
    :param groups: in which group each is.
    """

    def __init__(
        self,
        names: str,
        running: int | None = None,
        memory: int | None = None,
        min_uptime: float = 0.0,
        sizes: Mapping[str, int] | None = None,
        running_of: Mapping[str, int] | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self.clock = Clock()
        self.store = MemoryCoordination(clock=self.clock)
        self.host = Host(self.clock, names, sizes or {}, groups or {})
        self.events: list[Event] = []
        self.settings = Settings(
            max_running=running, max_memory=memory, max_running_of=running_of or {}, min_uptime=min_uptime
        )
        self._turning = False
        self.workers = [Worker(self) for _ in range(2)]
        self.sleep(5.0)

    def sleep(self, seconds: float) -> None:
        """Put the clock forward; all workers' threads take their turns meanwhile."""
        if self._turning:
            self.clock.advance(seconds)
            return
        self._turning = True
        end = self.clock() + seconds
        while self.clock() < end:
            self.clock.advance(min(0.25, max(0.0, end - self.clock())))
            for worker in self.workers:
                worker.peers.heartbeat()
                worker.gate.turn()
        self._turning = False


class Worker:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        clock, report = fleet.clock, Reporter([fleet.events.append])
        self.waiting: dict[Function, int] = {}
        self.cache = FunctionCache(0.25, stale_for=1.0, clock=clock)
        self.peers = SimulatedPeers(
            fleet.store, report, clock, row=lambda name: WorkerReport(name, waiting=self.waiting)
        )
        self.scaler = FunctionScaler(
            fleet.host,
            self.cache,
            report=report,
            peers=self.peers,
            clock=clock,
            sleep=fleet.sleep,
            jitter=lambda: 0.5,
        )
        context, settings = self.scaler.context, fleet.settings
        self.gate = Gate(
            fleet.store, self.peers, self.cache, lambda: self.waiting, report, 0.25, clock, fleet.sleep
        )
        limits = Limits(settings.max_running, settings.max_memory, settings.max_running_of)
        ledger = Ledger(fleet.store, self.peers, clock, context.pause)
        self.budget = SimulatedBudget(
            context,
            fleet.store,
            self.gate,
            limits,
            Survey(context, fleet.store, ledger, limits, lambda _: True, True),
            ledger,
            may_go=lambda *_: True,
            busy=Busy(None, 0.0, clock),
            min_uptime=settings.min_uptime,
            shared=True,
        )
        self.scaler.limit(self.budget)

    def use(self, name: str, duration: float = 0.0, meanwhile: Callable[[], Any] = lambda: None) -> None:
        """A request comes, waits for the function if need be, and is served for so many seconds.

        :param meanwhile: what happens while it is.
        """
        function, host = Function(name), self.fleet.host
        meta = self._enter(function)
        meta.state.last_used = self.fleet.clock()
        meta.state.in_flight.add(self)
        host.in_use.append(name)
        meanwhile()
        self.fleet.sleep(max(duration, 0.001))
        host.in_use.remove(name)
        meta.state.in_flight.discard(self)

    def _enter(self, function: Function) -> FunctionMeta:
        since = -math.inf if self.gate.enter(function) else self.fleet.clock()
        flight: Flight[FunctionMeta] = Flight(self.fleet.clock(), math.inf)
        self.waiting[function] = 1
        try:
            return self.scaler.activate(function, since, flight)
        finally:
            del self.waiting[function]

    def claims(self, name: str, *, wanted: bool = True, again: bool = False) -> bool:
        """Return whether a start would find room at once. Call this as the only one who starts it."""
        status = self.fleet.host.get_replicas(name, "")
        return self.budget.claim(Function(name), status, again, lambda: wanted)
