"""The fleet as one of its workers sees it: to lead a flight, or to follow another's.

If the store cannot be used, the worker goes on alone, says so once, and joins again by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Generic, TypeVar

from .._lib.per_process import PerProcess
from ..events import CoordinationLost, CoordinationRestored, Event, Reporter
from ..model import Function, NotAvailable
from .base import Coordination, CoordinationError, Lease, SharedStatus, WorkerReport

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger("scalezero_wsgi")

LEASE = 2.0
"""Seconds after which a leader that says nothing is replaced."""

LOOK_EVERY = 0.05
"""Seconds between two looks of a follower: a lease that lapses makes no change."""

ACT = 120.0
"""Seconds after which a call that changes something counts as hanging."""

BEAT = LEASE / 3
"""Seconds between two beats, each of which keeps this worker's leases and reports what it does; and between
two tries of a store that is lost."""

ROW = 3.5
"""Seconds after its last report from which on a worker counts as gone."""

STEADY = 60.0
"""Seconds for which a store must do, once found, before it counts as sound; and the longest time for which
one that does not is left alone."""

RETELL = 1.0
"""Seconds after which a leader tells again what has not changed."""


class LeadershipLost(Exception):
    """Another worker leads by now, or one may: look again."""


class Leadership:
    """The lead of one flight, until the block of ``with`` ends; or of one that is nobody else's business.

    :param lease: ``None``: the store cannot be used, or there is none.
    :param until: monotonic seconds up to which the lease is kept; a leader that takes longer hangs.
    """

    def __init__(self, peers: Peers, lease: Lease | None, until: Callable[[], float]) -> None:
        self._peers = peers
        self._lease = lease
        self._until = until
        self._gone = False
        self._acting_until = float("-inf")
        self._told = 0
        self._told_at = float("-inf")
        if lease is not None:
            peers.leads.add(self)

    def __enter__(self) -> Leadership:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def publish(self, known: SharedStatus, *, is_update: bool = True) -> None:
        """Tell the fleet; what a replaced leader tells is not taken.

        :param news: ``False``: it was told before, and is told again only now and then.
        """
        lease, now = self._lease, self._peers.clock()
        if lease is None or not (is_update or now >= self._told_at + RETELL):
            return
        self._told += 1
        self._told_at = now
        named = replace(known, name=f"{lease.token}.{self._told}")
        self._note(self._peers.attempt(lambda store: store.publish(lease, named)))

    @property
    def replaced(self) -> bool:
        """Whether another worker leads, as far as was noticed: what was published last was not taken."""
        return self._gone

    def check(self) -> None:
        """Whether it makes sense to go on.

        :raises LeadershipLost: it does not.
        """
        if self._gone or (self._lease is None and self._peers.joined):
            raise LeadershipLost

    def confirm(self) -> None:
        """Right before something is done that must be done once.

        A process that is stopped after this, for longer than its lease, does it late all the same: nothing
        but the provider itself could prevent that.

        :raises LeadershipLost: it must not be done.
        """
        self.renew()
        self.check()

    def keep(self) -> None:
        """Keep the lease, unless its holder hangs."""
        if self._peers.clock() <= max(self._until(), self._acting_until):
            self.renew()

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Keep the lease for the length of a call that changes something, whoever still wants its outcome:
        another worker would make the same call beside it."""
        self._acting_until = self._peers.clock() + ACT
        try:
            yield
        finally:
            self._acting_until = float("-inf")

    def renew(self) -> None:
        """Make the lease last from now on."""
        if self._lease is not None:
            lease = self._lease
            self._note(self._peers.attempt(lambda store: store.renew(lease, LEASE)))

    def others_wait(self, function: Function) -> bool:
        """Whether requests of other workers wait for the function, as they last reported. A store that fails
        tells of nobody."""
        if self._lease is None:
            return False
        return self._peers.others_wait(function)

    def end(self) -> None:
        """Give it back."""
        if self._lease is not None:
            lease = self._lease
            self._peers.leads.discard(self)
            self._peers.attempt(lambda store: store.release(lease))

    def _note(self, taken: bool | None) -> None:
        if taken is False:  # None: the store cannot be used; then nobody else leads through it
            self._gone = True


class _Worker:
    """What a fleet has in one process: its name there, its leads, and the thread that keeps them."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._pid = os.getpid()
        self.name = f"{socket.gethostname()}:{self._pid}:{uuid.uuid4().hex[:8]}"
        self.leads: set[Leadership] = set()
        self._acquiring: set[object] = set()
        self.lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Let the heart beat, unless it does."""
        with self.lock:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._beat, name="scalezero-heartbeat", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # can't start new thread: another flight will try again
                return
            self._thread = thread
            atexit.register(self._stop)

    def _beat(self) -> None:
        while True:
            try:
                self._peers.heartbeat()
            except Exception:
                logger.exception("a beat failed")
            if self._stopped.wait(BEAT):
                return

    @contextlib.contextmanager
    def acquiring(self) -> Iterator[bool]:
        """While a lease is asked for; whether it may be. A process that exits waits for the answer: a lease
        that it took to its grave would hold up the others until it lapses."""
        one = object()
        self._acquiring.add(one)
        try:
            yield not self._stopped.is_set()
        finally:
            self._acquiring.discard(one)

    def _stop(self) -> None:
        if os.getpid() != self._pid:  # a child inherits what is registered
            return
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(1.0)  # or it would report once more
        deadline = time.monotonic() + 1.0
        while self._acquiring and time.monotonic() < deadline:
            time.sleep(0.001)
        for lead in list(self.leads):
            lead.end()
        self._peers.attempt(lambda store: store.leave(self.name))


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
        self._worker = PerProcess(lambda: _Worker(self))
        self._lost = False
        self._turns = 0
        self._turned_at = float("-inf")
        self._rest = 0.0

    def run_once(
        self,
        function: Function,
        until: Callable[[], float],
        follow: Callable[[SharedStatus, bool], T | None],
        lead: Callable[[Leadership], T],
    ) -> T:
        """Lead a function's flight, or follow it until its outcome is known.

        :param until: monotonic seconds up to which it is worth while; asked for again and again.
        :param follow: makes an outcome of what the fleet knows, or raises it; ``None`` if it is none. It is
            told besides whether that is news: published since the flight began to look.
        :param lead: flies. What the fleet knew before has been shown to ``follow``.
        :raises NotAvailable: ``until`` came first.
        """
        while True:
            found = self._join(function, until, follow)
            if not isinstance(found, Leadership):
                return found
            begun = self.clock()
            with contextlib.suppress(LeadershipLost), found:
                return lead(found)
            if self.clock() > until():
                raise NotAvailable(function, self.clock() - begun)
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
        """To be held while a lease is asked for, until it is a lead; whether it may be."""
        return self._worker.get().acquiring()

    @property
    def leads(self) -> set[Leadership]:
        """The leads that this process holds."""
        return self._worker.get().leads

    def attempt(self, call: Callable[[Coordination], T]) -> T | None:
        """Use the store if it can be used; ``None`` if not."""
        if self._store is None or self._lost:
            return None
        with contextlib.suppress(CoordinationError):
            return self.use(self._store, call)
        return None

    def use(self, store: Coordination, call: Callable[[Coordination], T]) -> T:
        """Use the store, and note it if that cannot be done.

        :raises CoordinationError: it cannot.
        """
        turns = self._turns
        try:
            return call(store)
        except CoordinationError as error:
            self._turn(True, turns, CoordinationLost(error))
            raise
        except Exception as error:  # whatever somebody else's store may raise: no request fails of it
            failed = CoordinationError(f"{type(error).__name__}: {error}")
            self._turn(True, turns, CoordinationLost(failed))
            raise failed from error

    def shared_status(self, function: Function) -> SharedStatus | None:
        """What the others know of a function; what this worker does is reported from then on."""
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

    def heartbeat(self) -> None:
        """Keep the leases, and report what this worker does.

        The report tries a store that is lost. It is a write: one that is full, or read-only, can be read
        all the time, and would seem to come and go.
        """
        worker = self._worker.get()
        for lead in list(worker.leads):
            lead.keep()
        if self._store is not None:
            turns, row = self._turns, self._row(worker.name)
            with contextlib.suppress(CoordinationError):
                self.use(self._store, lambda store: store.report(row, ROW))
                if self.clock() >= self._turned_at + self._rest:
                    self._turn(False, turns, CoordinationRestored())

    def _join(
        self, function: Function, until: Callable[[], float], follow: Callable[[SharedStatus, bool], T | None]
    ) -> Leadership | T:
        if self._store is None:
            return Leadership(self, None, until)
        self._start_heartbeat()
        if self._lost:
            return Leadership(self, None, until)
        try:
            return _Look(self, self._store, function, until, follow).search()
        except CoordinationError:
            return Leadership(self, None, until)

    def _start_heartbeat(self) -> None:
        self._worker.get().start()

    def _turn(self, lost: bool, turns: int, event: Event) -> None:
        """Note that the store is lost, or found; but what began before the last turn says nothing of now."""
        with self._worker.get().lock:
            if self._lost == lost or self._turns != turns:
                return
            now = self.clock()
            if lost:  # it may take a report and yet not do: then it would come and go
                steady = now > self._turned_at + STEADY
                self._rest = 0.0 if steady else min(STEADY, max(BEAT, 2 * self._rest))
            self._lost, self._turned_at = lost, now
            self._turns += 1
        self._report(event)


class _Look(Generic[T]):
    """One flight's search for its outcome, or for the lead."""

    def __init__(
        self,
        peers: Peers,
        store: Coordination,
        function: Function,
        until: Callable[[], float],
        follow: Callable[[SharedStatus, bool], T | None],
    ) -> None:
        self._peers = peers
        self._store = store
        self._function = function
        self._until = until
        self._follow = follow
        self._begun = peers.clock()
        self._looked = False
        self._before: str | None = None  # what was published last before the first look

    def search(self) -> Leadership | T:
        found = self._try()
        if found is not None:
            return found
        subscription = self._use(lambda store: store.changes(self._function))
        changes = self._use(lambda _: subscription.__enter__())
        try:
            while True:
                found = self._try()
                if found is not None:
                    return found
                now = self._peers.clock()
                if now > self._until():
                    raise NotAvailable(self._function, now - self._begun)
                self._use(lambda _: changes.wait(LOOK_EVERY))
        finally:
            with contextlib.suppress(CoordinationError):
                self._use(lambda _: subscription.__exit__(None, None, None))

    def _try(self) -> Leadership | T | None:
        outcome = self._look()
        if outcome is not None:
            return outcome
        lead = self._ask()
        return None if lead is None else self._begin(lead)

    def _ask(self) -> Leadership | None:
        with self._peers.acquiring() as may_ask:
            if not may_ask:
                return None
            lease = self._use(lambda store: store.acquire(self._function, self._peers.worker, LEASE))
            return None if lease is None else Leadership(self._peers, lease, self._until)

    def _begin(self, lead: Leadership) -> Leadership | T:
        try:
            outcome = self._look()  # the last leader may just have ended
        except BaseException:
            lead.end()
            raise
        if outcome is None:
            return lead
        lead.end()
        return outcome

    def _look(self) -> T | None:
        asked_at = self._peers.clock()
        known = self._use(lambda store: store.known(self._function))
        name = None if known is None else known.name
        if not self._looked:
            self._looked, self._before = True, name
        if known is None:
            return None
        return self._follow(known.after(self._peers.clock() - asked_at), name != self._before)

    def _use(self, call: Callable[[Coordination], U]) -> U:
        return self._peers.use(self._store, call)
