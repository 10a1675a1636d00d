"""Stores that do some of what they should: the fleet does without them, and does no harm."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scalezero_wsgi import Function, NotAvailable, ReplicaStatus, SettingError
from scalezero_wsgi.coordination import CoordinationError, default
from scalezero_wsgi.coordination.base import Changes, Lease, SharedStatus, WorkerReport
from scalezero_wsgi.coordination.heartbeat import HEARTBEAT
from scalezero_wsgi.coordination.leadership import Leadership
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import FOLLOWER_POLL, STEADY, Peers
from scalezero_wsgi.coordination.redis import RedisCoordination
from scalezero_wsgi.events import CoordinationLost, CoordinationRestored, Event, Reporter
from tests.support.clock import Clock
from tests.support.waiting import until

HELLO = Function("hello")


class TakesLeasesBack(MemoryCoordination):
    def renew(self, lease: Lease, ttl: float) -> bool:
        return False


class TakesReportsOnly(MemoryCoordination):
    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        raise CoordinationError("NOPERM")


class FailsAtTheEnd(MemoryCoordination):
    @contextlib.contextmanager
    def changes(self, function: Function) -> Iterator[Changes]:
        with super().changes(function) as changes:
            yield changes
        raise ValueError("not subscribed")


class Filled(MemoryCoordination):
    """A store that can be full: it is read then, and not written."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        lease = super().acquire(function, worker, ttl)
        if lease is not None:
            self._check()
        return lease

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        self._check()
        return super().publish(lease, known)

    def report(self, row: WorkerReport, ttl: float) -> None:
        self._check()
        super().report(row, ttl)

    def _check(self) -> None:
        if self.full:
            raise CoordinationError("full")


def nothing(known: SharedStatus, is_update: bool) -> None:
    return None


def test_a_leader_that_loses_each_lease_at_once_does_not_spin() -> None:
    leads: list[Leadership] = []

    def lead(lead: Leadership) -> None:
        leads.append(lead)
        lead.confirm()

    peers = Peers(TakesLeasesBack(), Reporter())
    until = time.monotonic() + 10 * FOLLOWER_POLL
    with pytest.raises(NotAvailable):
        peers.run_once(HELLO, lambda: until, nothing, lead)
    assert 2 <= len(leads) <= 12
    assert not peers.leaderships


def test_a_store_that_takes_reports_only_does_not_come_and_go_for_ever() -> None:
    clock, events = Clock(), list[Event]()
    peers = Peers(TakesReportsOnly(clock), Reporter([events.append]), clock)
    for _ in range(int(600 / HEARTBEAT)):
        assert peers.run_once(HELLO, lambda: 1e9, nothing, lambda lead: "led") == "led"
        peers.heartbeat()
        clock.advance(HEARTBEAT)
    lost = [event for event in events if isinstance(event, CoordinationLost)]
    assert 5 <= len(lost) <= 20  # of 900


def test_but_is_tried_again_once_a_minute_at_least() -> None:
    clock, found_at = Clock(), list[float]()

    def note(event: Event) -> None:
        if isinstance(event, CoordinationRestored):
            found_at.append(clock())

    peers = Peers(TakesReportsOnly(clock), Reporter([note]), clock)
    for _ in range(int(600 / HEARTBEAT)):
        peers.run_once(HELLO, lambda: 1e9, nothing, lambda lead: "led")
        peers.heartbeat()
        clock.advance(HEARTBEAT)
    pauses = [later - earlier for earlier, later in itertools.pairwise(found_at)]
    assert max(pauses) == pytest.approx(STEADY, abs=2 * HEARTBEAT)


def test_what_can_only_be_read_does_not_count_as_found() -> None:
    store = Filled()
    happened: list[Event] = []
    peers = Peers(store, Reporter([happened.append]))
    lease = store.acquire(HELLO, "another", 60.0)
    assert lease is not None
    looks = 0

    def follow(known: SharedStatus, is_update: bool) -> ReplicaStatus | None:
        nonlocal looks
        looks += 1
        return known.status

    def lead(lead: Leadership) -> ReplicaStatus | None:
        raise AssertionError("another one leads")

    ended = time.monotonic() + 20.0
    run_once: Callable[[], object] = lambda: peers.run_once(HELLO, lambda: ended, follow, lead)  # noqa: E731
    follower = threading.Thread(target=run_once, daemon=True)
    assert store.publish(lease, SharedStatus(None))
    follower.start()
    until(lambda: looks > 1)
    store.full = True
    peers.heartbeat()
    before = looks
    until(lambda: looks > before + 3)
    assert [type(each) for each in happened] == [CoordinationLost]
    peers.heartbeat()
    assert [type(each) for each in happened] == [CoordinationLost]
    store.full = False
    peers.heartbeat()
    assert [type(each) for each in happened] == [CoordinationLost, CoordinationRestored]
    assert store.publish(lease, SharedStatus(ReplicaStatus(1, 1)))
    follower.join()


def test_one_that_is_lost_now_and_then_is_found_at_once() -> None:
    clock, events = Clock(), list[Event]()
    peers = Peers(TakesReportsOnly(clock), Reporter([events.append]), clock)
    for _ in range(5):
        peers.run_once(HELLO, lambda: 1e9, nothing, lambda lead: "led")
        peers.heartbeat()
        clock.advance(100.0)
    assert [type(event) for event in events] == [CoordinationLost, CoordinationRestored] * 5


def test_a_subscription_that_cannot_be_ended_fails_nothing_and_keeps_no_lead() -> None:
    store = FailsAtTheEnd()
    peers, other = Peers(store, Reporter()), store.acquire(HELLO, "another", 0.2)
    assert other is not None
    until = time.monotonic() + 10.0
    assert peers.run_once(HELLO, lambda: until, nothing, lambda lead: "led") == "led"
    assert not peers.leaderships


@pytest.mark.parametrize("prefix", ["a{b}", "{", "}", ""])
def test_a_prefix_that_would_part_the_keys_of_a_cluster_is_refused(prefix: str) -> None:
    with pytest.raises(SettingError, match=r"prefix: .* is not allowed"):
        RedisCoordination("redis://localhost", prefix=prefix)


def test_what_another_container_has_left_is_removed_after_a_day(tmp_path: Path) -> None:
    long_ago = time.time() - 2 * default.ABANDONED
    for name in ("gunicorn-1-7-9-0.db", "gunicorn-1-7-9-0.db-shm", "gunicorn-2-7-9-0.db-shm"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / "gunicorn-2-7-9-0.db").touch()  # whose index seems to be old
    (tmp_path / "somebody-elses.db").touch()
    default._sweep(tmp_path, "3")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"gunicorn-2-7-9-0.db", "gunicorn-2-7-9-0.db-shm", "somebody-elses.db"}
