"""The store of a single process: its threads meet in its memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .._lib.per_process import PerProcess
from ..model import Function
from .base import Changes, Drain, Lease, SharedStatus, WorkerReport

SWEEP_EVERY = 1.0
"""Seconds between two removals of expired entries."""


class _Memory:
    """What the store of one process holds. Each value is kept with the time at which it expires."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token = 0
        self.leases: dict[Function, tuple[Lease, float]] = {}
        self.known: dict[Function, tuple[tuple[SharedStatus, float], float]] = {}
        self.reports: dict[str, tuple[WorkerReport, float]] = {}
        self.drains: dict[Function, tuple[Drain, float]] = {}
        self.subscriptions: dict[Function, list[_Changes]] = {}
        self.sweep_at = 0.0


class _Changes:
    def __init__(self) -> None:
        self.changed = threading.Event()

    def wait(self, timeout: float) -> bool:
        if not self.changed.wait(max(0.0, timeout)):
            return False
        self.changed.clear()
        return True


class MemoryCoordination:
    """The store of a single process. It is safe for threads; a forked child starts with an empty one.

    :param clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._memory: PerProcess[_Memory] = PerProcess(_Memory)

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        """See :class:`~scalezero_wsgi.coordination.base.Coordination`, as for all methods."""
        with self._locked() as (memory, now):
            if _unexpired(memory.leases.get(function), now) is not None:
                return None
            memory.token += 1
            lease = Lease(function, worker, memory.token)
            memory.leases[function] = lease, now + ttl
            return lease

    def renew(self, lease: Lease, ttl: float) -> bool:
        """Extend the lease."""
        with self._locked() as (memory, now):
            if _unexpired(memory.leases.get(lease.function), now) != lease:
                return False
            memory.leases[lease.function] = lease, now + ttl
            return True

    def release(self, lease: Lease) -> None:
        """Release the lease."""
        with self._locked() as (memory, now):
            if _unexpired(memory.leases.get(lease.function), now) == lease:
                del memory.leases[lease.function]
                _notify(memory, lease.function)

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        """Replace the shared status."""
        with self._locked() as (memory, now):
            if _unexpired(memory.leases.get(lease.function), now) != lease:
                return False
            memory.known[lease.function] = (known, now), now + known.keep
            _notify(memory, lease.function)
            return True

    def known(self, function: Function) -> SharedStatus | None:
        """Return the shared status."""
        now = self._clock()
        found = _unexpired(self._memory.get().known.get(function), now)
        return None if found is None else found[0].after(now - found[1])

    @contextmanager
    def changes(self, function: Function) -> Iterator[Changes]:
        """Subscribe to changes."""
        changes = _Changes()
        with self._locked() as (memory, _):
            memory.subscriptions.setdefault(function, []).append(changes)
        try:
            yield changes
        finally:
            with memory.lock:
                memory.subscriptions[function].remove(changes)
                if not memory.subscriptions[function]:
                    del memory.subscriptions[function]

    def report(self, row: WorkerReport, ttl: float) -> None:
        """Replace the worker's report."""
        with self._locked() as (memory, now):
            memory.reports[row.worker] = row, now + ttl

    def leave(self, worker: str) -> None:
        """Remove the worker's report."""
        with self._locked() as (memory, _):
            memory.reports.pop(worker, None)

    def workers(self) -> Sequence[WorkerReport]:
        """Return the reports that have not expired."""
        with self._locked() as (memory, now):
            return [row for row, expires in memory.reports.values() if now < expires]

    def drains(self) -> Mapping[Function, Drain]:
        """Return the drains that are remembered."""
        with self._locked() as (memory, now):
            return {function: drain for function, (drain, expires) in memory.drains.items() if now < expires}

    def change_drain(
        self, function: Function, before: Drain | None, after: Drain | None, keep: float
    ) -> bool:
        """Compare and set the function's drain."""
        with self._locked() as (memory, now):
            if _unexpired(memory.drains.get(function), now) != before:
                return False
            memory.drains.pop(function, None)
            if after is not None:
                memory.drains[function] = after, now + keep
            return True

    @contextmanager
    def _locked(self) -> Iterator[tuple[_Memory, float]]:
        memory = self._memory.get()
        with memory.lock:
            now = self._clock()
            if now >= memory.sweep_at:
                memory.sweep_at = now + SWEEP_EVERY
                for entries in (memory.leases, memory.known, memory.reports, memory.drains):
                    _sweep(entries, now)
            yield memory, now


def _unexpired(entry: tuple[Any, float] | None, now: float) -> Any:
    return entry[0] if entry is not None and now < entry[1] else None


def _sweep(entries: dict[Any, tuple[Any, float]], now: float) -> None:
    for key in [key for key, (_, expires) in entries.items() if now >= expires]:
        del entries[key]


def _notify(memory: _Memory, function: Function) -> None:
    for changes in memory.subscriptions.get(function, ()):
        changes.changed.set()
