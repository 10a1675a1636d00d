"""A worker that exits leaves nothing that would hold up the others."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi.coordination.base import Lease
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.coordination.sqlite import SQLiteCoordination
from scalezero_wsgi.events import Reporter
from tests.servers.harness import ROOT

HELLO = Function("hello")


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
    path = tmp_path / "private" / "fleet.db"
    code = f"from {__name__} import *; leave_while_a_flight_begins(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
    store = SQLiteCoordination(path)
    assert store.workers() == []
    assert store.acquire(HELLO, "other", 1.0) is not None
