"""A follower has its outcome because the store wakes it, and not when it happens to look again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi.coordination import make_coordination
from scalezero_wsgi.coordination.base import Changes, Coordination, SharedStatus
from scalezero_wsgi.coordination.leadership import Leadership
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.events import Reporter
from tests.unit.coordination.stores import HELLO, UP, held

FOLLOWER_POLL = 60.0


def check_following(leads: Coordination, follows: Coordination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalezero_wsgi.coordination.peers.FOLLOWER_POLL", FOLLOWER_POLL)
    subscribed = threading.Event()
    changes = follows.changes

    @contextlib.contextmanager
    def note(function: Function) -> Iterator[Changes]:
        with changes(function) as subscription:
            subscribed.set()
            yield subscription

    monkeypatch.setattr(follows, "changes", note)
    outcomes: list[str] = []
    until = time.monotonic() + 2 * FOLLOWER_POLL

    def follow(told: SharedStatus, is_update: bool) -> str | None:
        return told.name if is_update else None

    def lead(lead: Leadership) -> str:
        raise AssertionError("the lease is held")

    peers = Peers(follows, Reporter())
    lease = held(leads)
    follower = threading.Thread(
        target=lambda: outcomes.append(peers.run_once(HELLO, lambda: until, follow, lead)), daemon=True
    )
    follower.start()
    assert subscribed.wait(20)
    assert leads.publish(lease, UP)
    follower.join(FOLLOWER_POLL / 3)
    peers.close()  # or its heartbeat would go on reporting to this store
    assert outcomes == [UP.name]


def test_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryCoordination()
    check_following(store, store, monkeypatch)


def test_on_one_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    url = f"sqlite://{tmp_path}/meet.db"
    check_following(make_coordination(url), make_coordination(url), monkeypatch)
