"""How this process works with its peers: it leads a function's flight, or follows the worker that does.

If the store cannot be used, the process goes on without it, reports that once, and joins again by itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Generic, ParamSpec, TypeVar

from .._lib.per_process import PerProcess
from ..events import CoordinationLost, CoordinationRestored, Event, Reporter
from ..model import Function, NotAvailable
from .base import Changes, Coordination, CoordinationError, SharedStatus, WorkerReport
from .heartbeat import HEARTBEAT, REPORT_TTL, Worker
from .leadership import LEASE, Leadership, LeadershipLost, LeasedLeadership

P = ParamSpec("P")
T = TypeVar("T")

_ALONE = Leadership()

FOLLOWER_POLL = 0.05
"""Seconds after which a follower tries again without a change: nothing notifies it when a lease expires. One
for whose flight nobody waits does not look for changes in between, which costs more than a warm request."""

STEADY = 60.0
"""Seconds for which a store must work after a loss before it counts as steady. Also the longest back-off
for a store that is not steady."""


class Peers:
    """The other workers, as this process reaches them through a store.

    It is safe for threads and after a fork: a child is a worker of its own.

    :param store: the store; ``None`` if this process works alone.
    :param report: receives an event when the store is lost and when it is found again.
    :param clock: returns monotonic seconds.
    :param row: given this worker's name, makes its report; used from the first flight on.
    :param serves: whether this worker serves requests.
    """

    def __init__(
        self,
        store: Coordination | None,
        report: Reporter,
        clock: Callable[[], float] = time.monotonic,
        row: Callable[[str], WorkerReport] = WorkerReport,
        serves: bool = True,
    ) -> None:
        self.clock = clock
        self._store = store
        self._report = report
        self._row = row
        self._worker = PerProcess(lambda: Worker(self, serves))
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
        is_urgent: Callable[[], bool] = lambda: True,
    ) -> T:
        """Lead a function's flight, or follow it until its outcome is known.

        :param deadline: returns the monotonic seconds at which to give up; called repeatedly.
        :param on_update: called with the shared status, and whether it was published since this call began.
            It returns the outcome or raises it; it returns ``None`` if the flight goes on.
        :param lead: runs the flight as its leader. Any earlier status went to ``on_update`` first.
        :param is_urgent: returns whether a follower should learn of the outcome at once, and not only within
            ``FOLLOWER_POLL`` seconds; called repeatedly.
        :raises NotAvailable: the deadline passed without an outcome.
        """
        if self._store is None:
            return lead(_ALONE)
        while True:
            found = self._join(function, deadline, on_update, is_urgent)
            if not isinstance(found, Leadership):
                return found
            started_at = self.clock()
            with contextlib.suppress(LeadershipLost), found:
                return lead(found)
            if self.clock() > deadline():
                raise NotAvailable(function, self.clock() - started_at)
            self.pause(FOLLOWER_POLL)  # do not spin if the store takes each lease back at once

    @staticmethod
    def pause(seconds: float) -> None:
        """Pause a follower."""
        time.sleep(seconds)

    @property
    def joined(self) -> bool:
        """Whether there is a store, and it works as far as is known."""
        return self._store is not None and not self._lost

    @property
    def worker(self) -> str:
        """This process's name in the store."""
        return self._worker.get().name

    @property
    def leaderships(self) -> set[LeasedLeadership]:
        """The leaderships that this process holds."""
        return self._worker.get().leaderships

    def attempt(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a method of the store and return its answer; ``None`` if the store cannot be used."""
        if self._lost:
            return None
        with contextlib.suppress(CoordinationError):
            return self.use(call, *args, **kwargs)
        return None

    def use(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the store and return its answer; if it fails, report that the store is lost.

        :raises CoordinationError: the store cannot be used.
        """
        switches = self._switches
        try:
            return call(*args, **kwargs)
        except CoordinationError as error:
            self._switch(True, switches, CoordinationLost(error))
            raise
        except Exception as error:  # a user's store may raise anything: no request must fail because of it
            failed = CoordinationError(f"{type(error).__name__}: {error}")
            self._switch(True, switches, CoordinationLost(failed))
            raise failed from error

    def shared_status(self, function: Function) -> SharedStatus | None:
        """Return a function's shared status; ``None`` if there is none, or the store cannot be used.

        If there is one, this worker's heartbeat starts.
        """
        if self._store is None:
            return None
        shared = self.attempt(self._store.known, function)
        if shared is not None:
            self._start_heartbeat()
        return shared

    def begin(self) -> None:
        """Start this worker's heartbeat, which also finds out when a store can be used that comes late."""
        if self._store is not None:
            self._start_heartbeat()

    def lead(self, function: Function, deadline: Callable[[], float]) -> LeasedLeadership | None:
        """Take the function's lease, and do not wait for it; ``None``: it is held, or this process exits.

        :param deadline: returns the monotonic seconds up to which the lease is kept.
        :raises CoordinationError: the store cannot be used, or there is none.
        """
        if self._store is None or self._lost:
            raise CoordinationError("the workers' store cannot be used")
        self._start_heartbeat()
        worker = self._worker.get()
        with worker.acquiring() as may_acquire:
            lease = self.use(self._store.acquire, function, worker.name, LEASE) if may_acquire else None
            if lease is None:
                return None
            return LeasedLeadership(self, self._store, lease, deadline, worker.leaderships)

    def others_wait(self, function: Function) -> bool:
        """See :meth:`Leadership.others_wait`."""
        if self._store is None or self._lost:
            return False
        try:  # not use(): an unreadable report of a later release is no loss of the store
            reports = self._store.workers()
        except Exception:  # noqa: BLE001  a user's store may raise anything
            return False
        return any(report.waiting.get(function) for report in reports if report.worker != self.worker)

    def close(self) -> None:
        """End this process's heartbeat, release its leases and leave the store. It is called at exit."""
        self._worker.get().stop()

    def leave(self, worker: str) -> None:
        """Remove a worker's report from the store."""
        if self._store is not None:
            self.attempt(self._store.leave, worker)

    def heartbeat(self) -> None:
        """Keep the leases, and report what this worker does.

        The report also finds out whether a lost store works again. It is a write: by reads alone a full or
        read-only store would flip between lost and found.
        """
        worker = self._worker.get()
        for leadership in list(worker.leaderships):
            leadership.keep()
        if self._store is not None:
            switches, report = self._switches, self._row(worker.name)
            with contextlib.suppress(CoordinationError):
                self.use(self._store.report, report, REPORT_TTL)
                if self.clock() >= self._switched_at + self._rest:
                    self._switch(False, switches, CoordinationRestored())

    def _join(
        self,
        function: Function,
        deadline: Callable[[], float],
        on_update: Callable[[SharedStatus, bool], T | None],
        is_urgent: Callable[[], bool] = lambda: True,
    ) -> Leadership | T:
        if self._store is None:
            return _ALONE
        self._start_heartbeat()
        if self._lost:
            return Leadership(self)
        try:
            search = _Search(self, self._store, self._worker.get(), function, deadline, on_update)
            return search.run(is_urgent)
        except CoordinationError:
            return Leadership(self)

    def _start_heartbeat(self) -> None:
        self._worker.get().start()

    def _switch(self, lost: bool, switches: int, event: Event) -> None:
        """Change whether the store counts as lost, and report it.

        :param switches: ``_switches`` when the call to the store began; if it has changed since, the outcome
            is ignored.
        """
        with self._worker.get().lock:
            if self._lost == lost or self._switches != switches:
                return
            now = self.clock()
            if lost:  # it may accept reports and still fail: back off, so that it does not come and go
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
        worker: Worker,
        function: Function,
        deadline: Callable[[], float],
        on_update: Callable[[SharedStatus, bool], T | None],
    ) -> None:
        self._peers = peers
        self._store = store
        self._worker = worker
        self._function = function
        self._deadline = deadline
        self._on_update = on_update
        self._started_at = peers.clock()
        self._looked = False
        self._before: str | None = None  # the name of the publication that the first look found

    def run(self, is_urgent: Callable[[], bool]) -> Leadership | T:
        """Return the leadership, or the outcome.

        :raises NotAvailable: the deadline passed before there was either.
        :raises CoordinationError: the store cannot be used.
        """
        found = self._try()
        while found is None and not is_urgent():
            self._check_deadline()
            self._peers.pause(FOLLOWER_POLL)
            found = self._try()
        if found is not None:
            return found
        with self._subscribed() as changes:
            while True:
                found = self._try()
                if found is not None:
                    return found
                self._check_deadline()
                self._peers.use(changes.wait, FOLLOWER_POLL)

    def _check_deadline(self) -> None:
        now = self._peers.clock()
        if now > self._deadline():
            raise NotAvailable(self._function, now - self._started_at)

    @contextlib.contextmanager
    def _subscribed(self) -> Iterator[Changes]:
        """Subscribe to the function's changes for the length of the block.

        The store is lost if the subscription cannot be begun or ended, but not if the block raises.
        """
        subscription = contextlib.ExitStack()
        changes = self._peers.use(lambda: subscription.enter_context(self._store.changes(self._function)))
        try:
            yield changes
        finally:
            with contextlib.suppress(CoordinationError):
                self._peers.use(subscription.close)

    def _try(self) -> Leadership | T | None:
        """Look for the outcome, then acquire the lease and look again: the last leader may just have ended.

        :return: the outcome, or the leadership; ``None`` while another worker leads.
        """
        outcome = self._look()
        if outcome is not None:
            return outcome
        worker = self._worker
        with worker.acquiring() as may_acquire:
            if not may_acquire:
                return None
            lease = self._peers.use(self._store.acquire, self._function, worker.name, LEASE)
            if lease is None:
                return None
            leadership = LeasedLeadership(self._peers, self._store, lease, self._deadline, worker.leaderships)
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
        """Give the shared status to ``on_update``, and return what it returns."""
        asked_at = self._peers.clock()
        shared = self._peers.use(self._store.known, self._function)
        name = None if shared is None else shared.name
        if not self._looked:
            self._looked, self._before = True, name
        if shared is None:
            return None
        return self._on_update(shared.after(self._peers.clock() - asked_at), name != self._before)
