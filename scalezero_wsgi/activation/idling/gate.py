"""This worker's part in the way back to zero: it counts use, passes nothing more down when it is asked not
to, and acknowledges that. See "Back to zero" in ``ARCHITECTURE.md``.

A request joins those in flight and *then* looks whether its function is closed; :meth:`Gate.turn` closes it
and *then* reads what is in flight. So one of the two always sees the other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, ParamSpec, TypeVar

from ..._lib.per_process import PerProcess
from ...coordination.base import (
    CoordinationError,
    Drain,
    DrainingCoordination,
    DrainPhase,
    WorkerReport,
)
from ...coordination.heartbeat import APART
from ...coordination.leadership import LEASE
from ...coordination.peers import Peers
from ...events import DrainCancelled, Reporter
from ...model import Function
from ..function_cache import FunctionCache
from ..state import NEVER, SETTLE, FunctionMeta, FunctionState
from .keep_alive import KeepAlive
from .uses import Uses

P = ParamSpec("P")
T = TypeVar("T")

KEEP_DRAIN = 3600.0
"""Seconds for which a drain is remembered that is under way."""

KEEP_ENDED = 30.0
"""Seconds for which it is remembered how a drain ended: a worker that is still there looks much sooner."""

REPORT_EVERY = 1.0
"""Seconds between two reports without a change."""

VANISHED = 15.0
"""Seconds for which a worker that says no more still counts, beyond the time in which its entries can be
used. A process that is suspended for a while comes back within them."""

VANISHED_IN_USE = 60.0
"""The same of a worker that had requests in flight: it may be suspended, and its requests still be served."""

SUFFIX = "/use"
"""What the name of a worker's report of its use ends with: it is one beside that of the heartbeat, and lasts
longer."""

ALONE = LEASE + SETTLE
"""Seconds without the store after which a function that may be about to be stopped is asked for anew."""

ASIDE = APART + SUFFIX
"""What the name of such a report ends with if its worker serves nothing."""

UNKNOWN = -1
"""Instead of an epoch, of a function that is closed because the store cannot be asked for its drain."""

PAUSE = 0.05
"""Seconds before a request looks again that can neither be passed down nor wait for a start."""


class Stopping(NamedTuple):
    """Since when this worker knows that a function is being stopped, and by the drain of which epoch."""

    epoch: int
    since: float


class Gate:
    """Keeps requests from functions that are being stopped. Safe for threads; a fork must :meth:`begin` anew.

    :param cache: what is known of the functions, and which requests are in flight.
    :param waiting: returns how many requests wait in this process, for each function.
    :param report: is told of drains that requests undo.
    :param pace: seconds between two turns of the worker's own thread.
    :param clock: monotonic seconds.
    :param sleep: pauses a request.
    :param stream_idle_after: seconds without a byte after which a stream does not count as use any more.
    :param keep_alive: for how long clients ask that functions stay up.
    :ivar closed: the functions to which nothing may be passed down, each with its drain's epoch. Requests
        look into it without a lock.
    """

    def __init__(
        self,
        store: DrainingCoordination,
        peers: Peers,
        cache: FunctionCache,
        waiting: Callable[[], Mapping[Function, int]],
        report: Reporter,
        pace: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        stream_idle_after: float | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self.closed: dict[Function, int] = {}
        self._store = store
        self._peers = peers
        self._cache = cache
        self.keep_alive = keep_alive
        self._uses = Uses(cache, waiting, clock, stream_idle_after, keep_alive)
        self._report = report
        self._use_every = min(REPORT_EVERY, 2 * pace)
        self._usable = cache.usable
        self._clock = clock
        # Looked up late: gevent may replace both after this line has run.
        self._sleep = sleep or (lambda duration: time.sleep(duration))
        self._turning = PerProcess(lambda: threading.Lock())
        self._changing = PerProcess(lambda: threading.Lock())
        self.begin()

    def begin(self) -> None:
        """Start as a worker that has reported nothing yet, after a fork as well."""
        self.closed.clear()
        self._stopping: dict[Function, Stopping] = {}
        self._reported_at = self._expires_at = NEVER
        self._reported: object = None
        self._acknowledged: Mapping[Function, int] = {}
        self._alone_since = math.inf
        self._uses.begin()

    @property
    def name(self) -> str:
        """Under which this worker reports its use."""
        return self._peers.worker + SUFFIX

    # What a request asks

    def is_open(self, state: FunctionState, meta: FunctionMeta) -> bool:
        """Return whether a request that has joined those in flight may be passed down by ``meta``."""
        if state.function in self.closed:
            return False
        now = state.meta
        if now is meta:
            return True
        # Or it was stopped and has been started again since, elsewhere perhaps.
        return now is not None and now.available and now.status.endpoint == meta.status.endpoint

    def enter(self, function: Function) -> bool:
        """Undo a drain of the function, for a request that came.

        :return: ``False``: it is being stopped. The request has to wait for that, and start it again.
        """
        try:
            self._join()
            while True:
                epoch = self.closed.get(function)
                drain = self._drains().get(function)
                if drain is None or drain.phase in (DrainPhase.ZERO, DrainPhase.READY):
                    if epoch is not None:
                        self._open(function, epoch, drain)
                    return True
                if drain.phase is DrainPhase.STOPPING:
                    return self._wait_out(function, drain.epoch)
                if self.cancel(function, drain, "a request came"):
                    if epoch is not None:
                        self._open(function, epoch, Drain(DrainPhase.READY, drain.epoch))
                    return True
        except CoordinationError:
            return self._enter_alone(function)

    def _wait_out(self, function: Function, epoch: int) -> bool:
        """Return ``False``; after a pause if others than whoever stops the function have asked for it: then
        that worker has died, and until it is noticed a request would turn in a circle."""
        since, meta = self._note_stopping(function, epoch), self._cache.find(function)
        if meta is not None and meta.available and meta.last_refresh >= since:
            self._sleep(PAUSE)
        return False

    def _note_stopping(self, function: Function, epoch: int) -> float:
        """Note that the function is being stopped by that drain; return since when this worker knows it."""
        since = self._stopping_since(function, epoch)
        if since is None:
            since = self._clock()
            self._stopping[function] = Stopping(epoch, since)
        return since

    def _stopping_since(self, function: Function, epoch: int) -> float | None:
        """Return since when this worker knows that the drain stops the function, if it has seen that.

        A request may see what the worker's own thread misses, and nobody notes that it has ended: then an
        earlier drain is left here.
        """
        stopping = self._stopping.get(function)
        return stopping.since if stopping is not None and stopping.epoch == epoch else None

    def _enter_alone(self, function: Function) -> bool:
        """Go on without the store.

        While this worker's report counts, nothing is stopped that it has not acknowledged. Otherwise somebody
        may be about to stop the function, but makes sure of its lease right before. Once ``ALONE`` has
        passed, it has done so and the provider shows it, or it never will.
        """
        epoch, now = self.closed.get(function), self._clock()
        if epoch is None:
            if now <= self._expires_at or now > self._alone_since + ALONE:
                return True
            epoch = self.closed.setdefault(function, UNKNOWN)
        self._alone_since = min(self._alone_since, now)
        if now <= self._alone_since + ALONE:
            self._sleep(PAUSE)
            return False
        self._open(function, epoch, None)
        return True

    # What the worker's own thread does

    def turn(self) -> None:
        """Close and open functions as the store's drains say, acknowledge them, and report what is in use.

        :raises CoordinationError: the store cannot be used.
        """
        with self._turning.get():
            self._turn()

    def leave(self) -> None:
        """Report no more: the worker ends."""
        self._peers.leave(self.name)

    def _join(self) -> None:
        """Report before the first request is passed down: nothing is stopped behind this worker's back."""
        if self._clock() <= self._expires_at - VANISHED / 2:
            return
        with self._turning.get():
            if self._clock() > self._expires_at - VANISHED / 2:
                self._turn()

    def _turn(self) -> None:
        now = self._clock()
        if now > self._expires_at:
            if self._expires_at != NEVER:
                # It counted as gone, for it was suspended or cut off: anything may have been stopped since.
                for state in self._cache.states():
                    self._cache.mark_suspect(state.function)
            # First: a drain that begins from now on waits for this worker.
            self._send(WorkerReport(self.name), VANISHED)
            self._acknowledged = {}
        drains = self._drains()
        self._alone_since = math.inf
        self._follow(drains)
        self._look()  # after the functions were closed
        for function, epoch in list(self.closed.items()):
            draining = Drain(DrainPhase.DRAINING, epoch)
            if function in self._uses.in_use and drains.get(function) == draining:
                if self.cancel(function, draining, "it is in use"):
                    self._open(function, epoch, Drain(DrainPhase.READY, epoch))
        self._tell()

    def _follow(self, drains: Mapping[Function, Drain]) -> None:
        for function, drain in drains.items():
            if drain.phase is DrainPhase.STOPPING:
                self._note_stopping(function, drain.epoch)
            if drain.phase in (DrainPhase.DRAINING, DrainPhase.STOPPING):
                with self._changing.get():
                    before = self.closed.get(function)
                    self.closed[function] = drain.epoch
                if before not in (None, drain.epoch):  # how that one ended is not known
                    self._cache.mark_suspect(function)
        for function, epoch in list(self.closed.items()):
            ended = drains.get(function)
            if ended is None or ended.phase in (DrainPhase.ZERO, DrainPhase.READY):
                self._open(function, epoch, ended)

    def _open(self, function: Function, epoch: int, ended: Drain | None) -> None:
        """Let requests go down again, unless the function was closed anew.

        :param epoch: of the drain for which it was closed.
        :param ended: how a drain of it has ended.
        """
        if ended != Drain(DrainPhase.READY, epoch):
            # It may have been stopped: only an answer counts that nobody but its next starter can have got.
            # If that drain was not the last one, it may even have been started and stopped again since.
            since = self._stopping_since(function, epoch) if ended == Drain(DrainPhase.ZERO, epoch) else None
            meta = self._cache.find(function)
            if since is None or meta is None or meta.last_refresh <= since:
                self._cache.mark_suspect(function)
        with self._changing.get():
            if self.closed.get(function) == epoch:
                del self.closed[function]
                self._stopping.pop(function, None)

    def _look(self) -> None:
        self._uses.look()

    def _tell(self) -> None:
        """Report, if there is something new or the last report is old."""
        now = self._clock()
        acknowledged = {
            function: epoch for function, epoch in self.closed.items() if not self._is_used(function, epoch)
        }
        use = set(self._uses.in_use), dict(self._uses.ended_at)
        is_due = now >= self._reported_at + (REPORT_EVERY if use == self._reported else self._use_every)
        if acknowledged == self._acknowledged and not is_due:
            return
        report = WorkerReport(
            self.name,
            in_flight=self._uses.in_use,
            unused_for=self._uses.unused_for(now),
            acknowledged=acknowledged,
            kept_for=self._uses.kept_for(now),
        )
        self._send(report, VANISHED_IN_USE if self._uses.in_use else VANISHED)
        self._reported, self._acknowledged = use, acknowledged

    def _is_used(self, function: Function, epoch: int) -> bool:
        """Return whether a closed function is in use. While it is being stopped who waits does not count: a
        function that is replaced (:mod:`.replacing`) is closed before its requests have ended."""
        is_stopping = self._stopping_since(function, epoch) is not None
        return function in (self._uses.in_flight if is_stopping else self._uses.in_use)

    # The store

    def _send(self, report: WorkerReport, vanished: float) -> None:
        now, ttl = self._clock(), self._usable + vanished
        self._use(self._store.report, report, ttl)
        self._reported_at, self._expires_at = now, now + ttl

    def _drains(self) -> Mapping[Function, Drain]:
        return self._use(self._store.drains)

    def cancel(self, function: Function, draining: Drain, reason: str) -> bool:
        """Undo a drain, and return whether it was still to be undone.

        :raises CoordinationError: the store cannot be used.
        """
        ready = Drain(DrainPhase.READY, draining.epoch)
        if not self._use(self._store.change_drain, function, draining, ready, KEEP_ENDED):
            return False
        self._report(DrainCancelled(function, reason))
        return True

    def _use(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._peers.joined:  # it is tried by the heartbeat
            raise CoordinationError("the workers' store cannot be used")
        return self._peers.use(call, *args, **kwargs)
