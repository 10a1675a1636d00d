"""The workers of a fleet, as one of them sees it: it leads a function's flight, or follows who does.

If the store cannot be used, the worker goes on alone, says so once, and joins again by itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .._lib.per_process import PerProcess
from ..events import CoordinationLost, CoordinationRestored, Event, Reporter
from ..model import Function, NotAvailable
from .base import Changes, Coordination, CoordinationError, SharedStatus, WorkerReport
from .heartbeat import HEARTBEAT, REPORT_TTL, Worker
from .leadership import LEASE, Leadership, LeadershipLost, LeasedLeadership

T = TypeVar("T")
U = TypeVar("U")

LOOK_EVERY = 0.05
"""Seconds between two looks of a follower: a lease that lapses makes no change."""

STEADY = 60.0
"""Seconds for which a store must do, once found, before it counts as sound; and the longest time for which
one that does not is left alone."""


class Peers:
    """Joins this process to the others. Safe for threads and after a fork: a child is a worker of its own.

    :param store: where they meet; ``None``: nowhere.
    :param report: is told when the store is lost and found.
    :param row: tells what the worker of that name does; it is reported from the first flight on.
    """

    def __init__(
        self,
        store: Coordination | None,
        report: Reporter,
        clock: Callable[[], float] = time.monotonic,
        row: Callable[[str], WorkerReport] = WorkerReport,
    ) -> None:
        self.clock = clock
        self._store = store
        self._report = report
        self._row = row
        self._worker = PerProcess(lambda: Worker(self))
        self._lost = False
        self._switches = 0
        self._switched_at = float("-inf")
        self._rest = 0.0

    def run_once(
        self,
        function: Function,
        deadline: Callable[[], float],
        on_update: Callable[[SharedStatus, bool], T | None],
        lead: Callable[[Leadership], T],
    ) -> T:
        """Lead a function's flight, or follow it until its outcome is known.

        :param deadline: returns the monotonic seconds up to which it is worth while; called again and again.
        :param on_update: makes an outcome of what the workers share, or raises it; returns ``None`` if it is
            none. It is given besides whether that is an update: published since the flight began to look.
        :param lead: makes the call, as the leader. What was shared before has been given to ``on_update``.
        :raises NotAvailable: the deadline came first.
        """
        if self._store is None:
            return lead(Leadership())
        while True:
            found = self._join(function, deadline, on_update)
            if not isinstance(found, Leadership):
                return found
            started_at = self.clock()
            with contextlib.suppress(LeadershipLost), found:
                return lead(found)
            if self.clock() > deadline():
                raise NotAvailable(function, self.clock() - started_at)
            time.sleep(LOOK_EVERY)  # a store that takes each lease back at once must not make this spin

    @property
    def joined(self) -> bool:
        """Whether there is a store that can be used."""
        return self._store is not None and not self._lost

    @property
    def worker(self) -> str:
        """This process's name among the others."""
        return self._worker.get().name

    def acquiring(self) -> contextlib.AbstractContextManager[bool]:
        """Hold this while a lease is acquired; it says whether one may be."""
        return self._worker.get().acquiring()

    @property
    def leaderships(self) -> set[LeasedLeadership]:
        """The leaderships that this process holds."""
        return self._worker.get().leaderships

    def attempt(self, call: Callable[[Coordination], T]) -> T | None:
        """Call the store if it can be used; return ``None`` if not."""
        if self._store is None or self._lost:
            return None
        with contextlib.suppress(CoordinationError):
            return self.use(self._store, call)
        return None

    def use(self, store: Coordination, call: Callable[[Coordination], T]) -> T:
        """Call the store, and note it if it cannot be used.

        :raises CoordinationError: it cannot.
        """
        switches = self._switches
        try:
            return call(store)
        except CoordinationError as error:
            self._switch(True, switches, CoordinationLost(error))
            raise
        except Exception as error:  # whatever somebody else's store may raise: no request fails of it
            failed = CoordinationError(f"{type(error).__name__}: {error}")
            self._switch(True, switches, CoordinationLost(failed))
            raise failed from error

    def shared_status(self, function: Function) -> SharedStatus | None:
        """Return what the workers share of a function, and report what this one does from then on."""
        known = self.attempt(lambda store: store.known(function))
        if known is not None:
            self._start_heartbeat()
        return known

    def others_wait(self, function: Function) -> bool:
        """See :meth:`Leadership.others_wait`."""
        if self._store is None or self._lost:
            return False
        try:  # not use(): a row that cannot be read, as of a later release, is no reason to go on alone
            rows = self._store.workers()
        except Exception:  # noqa: BLE001  whatever somebody else's store may raise
            return False
        return any(row.waiting.get(function) for row in rows if row.worker != self.worker)

    def close(self) -> None:
        """End this process's heartbeat, release its leases and leave the store; done by itself at exit."""
        self._worker.get().stop()

    def heartbeat(self) -> None:
        """Keep the leases, and report what this worker does.

        The report tries a store that is lost. It is a write: one that is full, or read-only, can be read
        all the time, and would seem to come and go.
        """
        worker = self._worker.get()
        for lead in list(worker.leaderships):
            lead.keep()
        if self._store is not None:
            switches, row = self._switches, self._row(worker.name)
            with contextlib.suppress(CoordinationError):
                self.use(self._store, lambda store: store.report(row, REPORT_TTL))
                if self.clock() >= self._switched_at + self._rest:
                    self._switch(False, switches, CoordinationRestored())

    def _join(
        self,
        function: Function,
        deadline: Callable[[], float],
        on_update: Callable[[SharedStatus, bool], T | None],
    ) -> Leadership | T:
        if self._store is None:
            return Leadership()
        self._start_heartbeat()
        if self._lost:
            return Leadership(self)
        try:
            return _Search(self, self._store, function, deadline, on_update).run()
        except CoordinationError:
            return Leadership(self)

    def _start_heartbeat(self) -> None:
        self._worker.get().start()

    def _switch(self, lost: bool, switches: int, event: Event) -> None:
        """Note that the store is lost, or found.

        :param switches: how many there had been when the call began: what began before the last one says
            nothing of now.
        """
        with self._worker.get().lock:
            if self._lost == lost or self._switches != switches:
                return
            now = self.clock()
            if lost:  # it may accept reports and still fail: then it would come and go
                steady = now > self._switched_at + STEADY
                self._rest = 0.0 if steady else min(STEADY, max(HEARTBEAT, 2 * self._rest))
            self._lost, self._switched_at = lost, now
            self._switches += 1
        self._report(event)


class _Search(Generic[T]):
    """One flight's search for its outcome, or for the leadership."""

    def __init__(
        self,
        peers: Peers,
        store: Coordination,
        function: Function,
        deadline: Callable[[], float],
        on_update: Callable[[SharedStatus, bool], T | None],
    ) -> None:
        self._peers = peers
        self._store = store
        self._function = function
        self._deadline = deadline
        self._on_update = on_update
        self._started_at = peers.clock()
        self._looked = False
        self._before: str | None = None  # what was published last before the first look

    def run(self) -> Leadership | T:
        """Return the leadership, or the outcome.

        :raises NotAvailable: the deadline came first.
        :raises CoordinationError: the store cannot be used.
        """
        found = self._try()
        if found is not None:
            return found
        with self._subscribed() as changes:
            while True:
                found = self._try()
                if found is not None:
                    return found
                now = self._peers.clock()
                if now > self._deadline():
                    raise NotAvailable(self._function, now - self._started_at)
                self._use(lambda _: changes.wait(LOOK_EVERY))

    @contextlib.contextmanager
    def _subscribed(self) -> Iterator[Changes]:
        """Subscribe to the function's changes. An error of the subscription counts as the store's."""
        subscription = self._use(lambda store: store.changes(self._function))
        changes = self._use(lambda _: subscription.__enter__())
        try:
            yield changes
        finally:
            with contextlib.suppress(CoordinationError):
                self._use(lambda _: subscription.__exit__(None, None, None))

    def _try(self) -> Leadership | T | None:
        """Look for the outcome; take the leadership; look again, as the last leader may just have ended."""
        outcome = self._look()
        if outcome is not None:
            return outcome
        with self._peers.acquiring() as may_acquire:
            if not may_acquire:
                return None
            lease = self._use(lambda store: store.acquire(self._function, self._peers.worker, LEASE))
            if lease is None:
                return None
            leadership = LeasedLeadership(self._peers, lease, self._deadline)
        try:
            outcome = self._look()
        except BaseException:
            leadership.end()
            raise
        if outcome is None:
            return leadership
        leadership.end()
        return outcome

    def _look(self) -> T | None:
        asked_at = self._peers.clock()
        shared = self._use(lambda store: store.known(self._function))
        name = None if shared is None else shared.name
        if not self._looked:
            self._looked, self._before = True, name
        if shared is None:
            return None
        return self._on_update(shared.after(self._peers.clock() - asked_at), name != self._before)

    def _use(self, call: Callable[[Coordination], U]) -> U:
        return self._peers.use(self._store, call)
