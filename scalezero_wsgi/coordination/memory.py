"""One process: its threads meet in its own memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .._lib.per_process import PerProcess
from ..model import Function
from .base import Changes, Lease, SharedStatus, WorkerReport

SWEEP_EVERY = 1.0
"""Seconds between two looks for what has expired."""


class _Memory:
    """Each value has with it the time at which it expires."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token = 0
        self.leases: dict[Function, tuple[Lease, float]] = {}
        self.known: dict[Function, tuple[tuple[SharedStatus, float], float]] = {}
        self.rows: dict[str, tuple[WorkerReport, float]] = {}
        self.waiting: dict[Function, list[_Changes]] = {}
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
    """The store of a single process. Safe for threads; after a fork the child has one of its own.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._memory: PerProcess[_Memory] = PerProcess(_Memory)

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        """See :class:`~scalezero_wsgi.coordination.base.Coordination`, as for all methods."""
        with self._locked() as (memory, now):
            if _alive(memory.leases.get(function), now) is not None:
                return None
            memory.token += 1
            lease = Lease(function, worker, memory.token)
            memory.leases[function] = lease, now + ttl
            return lease

    def renew(self, lease: Lease, ttl: float) -> bool:
        """Keep the lease."""
        with self._locked() as (memory, now):
            if _alive(memory.leases.get(lease.function), now) != lease:
                return False
            memory.leases[lease.function] = lease, now + ttl
            return True

    def release(self, lease: Lease) -> None:
        """Give the lease back."""
        with self._locked() as (memory, now):
            if _alive(memory.leases.get(lease.function), now) == lease:
                del memory.leases[lease.function]
                _wake(memory, lease.function)

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        """Replace what is known."""
        with self._locked() as (memory, now):
            if _alive(memory.leases.get(lease.function), now) != lease:
                return False
            memory.known[lease.function] = (known, now), now + known.keep
            _wake(memory, lease.function)
            return True

    def known(self, function: Function) -> SharedStatus | None:
        """What is known."""
        now = self._clock()
        found = _alive(self._memory.get().known.get(function), now)
        return None if found is None else found[0].after(now - found[1])

    @contextmanager
    def changes(self, function: Function) -> Iterator[Changes]:
        """Subscribe."""
        changes = _Changes()
        with self._locked() as (memory, _):
            memory.waiting.setdefault(function, []).append(changes)
        try:
            yield changes
        finally:
            with memory.lock:
                memory.waiting[function].remove(changes)
                if not memory.waiting[function]:
                    del memory.waiting[function]

    def report(self, row: WorkerReport, ttl: float) -> None:
        """Say what a worker does."""
        with self._locked() as (memory, now):
            memory.rows[row.worker] = row, now + ttl

    def leave(self, worker: str) -> None:
        """Take a row away."""
        with self._locked() as (memory, _):
            memory.rows.pop(worker, None)

    def workers(self) -> Sequence[WorkerReport]:
        """Who lives."""
        with self._locked() as (memory, now):
            return [row for row, expires in memory.rows.values() if now < expires]

    @contextmanager
    def _locked(self) -> Iterator[tuple[_Memory, float]]:
        memory = self._memory.get()
        with memory.lock:
            now = self._clock()
            if now >= memory.sweep_at:
                memory.sweep_at = now + SWEEP_EVERY
                for entries in (memory.leases, memory.known, memory.rows):
                    _sweep(entries, now)
            yield memory, now


def _alive(entry: tuple[Any, float] | None, now: float) -> Any:
    return entry[0] if entry is not None and now < entry[1] else None


def _sweep(entries: dict[Any, tuple[Any, float]], now: float) -> None:
    for key in [key for key, (_, expires) in entries.items() if now >= expires]:
        del entries[key]


def _wake(memory: _Memory, function: Function) -> None:
    for changes in memory.waiting.get(function, ()):
        changes.changed.set()
