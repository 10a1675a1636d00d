"""The heartbeat: a thread that keeps this process's leases and reports what the process does."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from .leadership import LEASE, LeasedLeadership
from .worker_name import worker_name

logger = logging.getLogger("scalezero_wsgi")

HEARTBEAT = LEASE / 3
"""Seconds between two heartbeats. Each one renews this worker's leases and reports what it does. The report
also tries a lost store again."""

REPORT_TTL = 3.5
"""Seconds after its last report when a worker counts as gone."""


APART = "/apart"
"""What the name of a worker ends with that serves no requests: nobody has to wait for what it reports."""


class Beating(Protocol):
    """What a worker needs of :class:`.peers.Peers`."""

    def heartbeat(self) -> None:
        """Keep the leases, and report what this worker does."""

    def leave(self, worker: str) -> None:
        """Remove the worker's report from the store."""


class Worker:
    """This process as one of the peers: its name, its leaderships and its heartbeat thread.

    It is safe for threads. A forked child must make one of its own.

    :param serves: whether it serves requests.
    """

    def __init__(self, peers: Beating, serves: bool = True) -> None:
        self._peers = peers
        self._pid = os.getpid()
        self.name = worker_name() + ("" if serves else APART)
        self.leaderships: set[LeasedLeadership] = set()
        self._acquiring: set[object] = set()
        self.lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the heartbeat thread if it does not run yet, and the process does not exit."""
        with self.lock:
            if self._thread is not None or self._stopped.is_set():
                return
            thread = threading.Thread(target=self._run, name="scalezero-heartbeat", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # can't start new thread: the next flight tries again
                return
            self._thread = thread
            atexit.register(self.stop)

    def _run(self) -> None:
        while True:
            try:
                self._peers.heartbeat()
            except Exception:
                logger.exception("a heartbeat failed")
            if self._stopped.wait(HEARTBEAT):
                return

    @contextlib.contextmanager
    def acquiring(self) -> Iterator[bool]:
        """Hold this while acquiring a lease. Yield whether that is allowed: not once the process exits.

        A process that exits waits for the end of the block and releases the lease. Otherwise the others would
        have to wait until it expires.
        """
        acquisition = object()
        self._acquiring.add(acquisition)
        try:
            yield not self._stopped.is_set()
        finally:
            self._acquiring.discard(acquisition)

    def stop(self) -> None:
        """End the heartbeat, release the leases and leave the store. It is called at exit."""
        if os.getpid() != self._pid:  # a forked child inherits the registration at exit
            return
        with self.lock:
            self._stopped.set()
        if self._thread is not None:
            self._thread.join(1.0)  # else it might report once more after leave()
        deadline = time.monotonic() + 1.0
        while self._acquiring and time.monotonic() < deadline:
            time.sleep(0.001)
        for leadership in list(self.leaderships):
            leadership.end()
        self._peers.leave(self.name)
