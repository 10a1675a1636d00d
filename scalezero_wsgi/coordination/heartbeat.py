"""This process among its peers, with the thread that keeps its leases and reports what it does."""

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
from typing import Protocol, TypeVar

from .base import Coordination
from .leadership import LEASE, LeasedLeadership

logger = logging.getLogger("scalezero_wsgi")

HEARTBEAT = LEASE / 3
"""Seconds between two heartbeats, each of which keeps this worker's leases and reports what it does; and
between two tries of a store that is lost."""

REPORT_TTL = 3.5
"""Seconds after its last report from which on a worker counts as gone."""


T = TypeVar("T")


class Beating(Protocol):
    """What a worker needs of the peers."""

    def heartbeat(self) -> None:
        """Keep the leases, and report what this worker does."""

    def attempt(self, call: Callable[[Coordination], T]) -> T | None:
        """Call the store if it can be used; return ``None`` if not."""


class Worker:
    """This process among its peers: its name, its leaderships, and the thread that keeps them.

    Of one process: not to be used after a fork.
    """

    def __init__(self, peers: Beating) -> None:
        self._peers = peers
        self._pid = os.getpid()
        self.name = f"{socket.gethostname()}:{self._pid}:{uuid.uuid4().hex[:8]}"
        self.leaderships: set[LeasedLeadership] = set()
        self._acquiring: set[object] = set()
        self.lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the heartbeat thread, once."""
        with self.lock:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="scalezero-heartbeat", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # can't start new thread: another flight will try again
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
        """Hold this while a lease is acquired; it says whether one may be.

        A process that exits waits for that: a lease that is never released would hold up the others until it
        lapses.
        """
        one = object()
        self._acquiring.add(one)
        try:
            yield not self._stopped.is_set()
        finally:
            self._acquiring.discard(one)

    def stop(self) -> None:
        """End the heartbeat, release the leases and leave the store. At exit it happens by itself."""
        if os.getpid() != self._pid:  # a child inherits what is registered
            return
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(1.0)  # or it would report once more
        deadline = time.monotonic() + 1.0
        while self._acquiring and time.monotonic() < deadline:
            time.sleep(0.001)
        for leadership in list(self.leaderships):
            leadership.end()
        self._peers.attempt(lambda store: store.leave(self.name))
