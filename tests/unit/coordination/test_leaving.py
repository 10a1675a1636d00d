"""A worker that exits leaves nothing that would hold up the others."""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scalezero_wsgi import Function, ScaleZeroMiddleware, Settings
from scalezero_wsgi.activation.idling.idler import Idler
from scalezero_wsgi.coordination.base import Lease
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.coordination.sqlite import SQLiteCoordination
from scalezero_wsgi.events import Reporter
from scalezero_wsgi.servers.server import serving
from tests.servers.harness import ROOT
from tests.support.clock import Clock
from tests.support.fakes import FakeEngine

HELLO = Function("hello")


def left_by(leave: Callable[[Path], None], directory: Path) -> SQLiteCoordination:
    """Return the store in a file, after a process of its own has joined and left it."""
    path = directory / "private" / "fleet.db"
    code = f"from {__name__} import *; {leave.__name__}(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
    return SQLiteCoordination(path)


class Slow(SQLiteCoordination):
    """Answers late."""

    asked = threading.Event()

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        lease = super().acquire(function, worker, ttl)
        self.asked.set()
        time.sleep(0.2)
        return lease


def leave_while_a_flight_begins(path: Path) -> None:
    peers = Peers(Slow(path), Reporter())

    def run_once() -> None:
        peers.run_once(
            HELLO,
            lambda: time.monotonic() + 10.0,
            lambda known, is_update: None,
            lambda lead: time.sleep(10.0),
        )

    threading.Thread(target=run_once, daemon=True).start()
    assert Slow.asked.wait(10.0)
    sys.exit()  # which runs what is registered at exit, as the end of gunicorn's workers does


@pytest.mark.soak
@pytest.mark.server
def test_a_lease_that_is_given_to_one_who_leaves_is_given_back(tmp_path: Path) -> None:
    store = left_by(leave_while_a_flight_begins, tmp_path)
    assert store.workers() == []
    assert store.acquire(HELLO, "other", 1.0) is not None


def leave_as_soon_as_it_serves(path: Path) -> None:
    leaving, run = threading.Event(), Idler._run

    def run_late(self: Idler) -> None:
        leaving.wait()
        run(self)

    atexit.register(time.sleep, 0.3)  # the last to be called: what happens too late would be seen
    Idler._run = run_late  # type: ignore[method-assign]
    settings = Settings(coordination=SQLiteCoordination(path), idle_after=60.0)
    provider = FakeEngine(Clock())
    middleware = ScaleZeroMiddleware(lambda environ, start_response: [], provider, settings=settings)
    serving(multiprocess=True)
    atexit.register(leaving.set)
    assert middleware.settings is not None
    sys.exit()


@pytest.mark.soak
@pytest.mark.server
def test_a_worker_that_is_told_to_end_as_soon_as_it_serves_leaves(tmp_path: Path) -> None:
    assert left_by(leave_as_soon_as_it_serves, tmp_path).workers() == []
