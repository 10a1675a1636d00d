from __future__ import annotations

import threading
import time
from collections.abc import Callable

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.coordination import CoordinationError
from scalezero_wsgi.coordination.base import Known, Lease, Row
from scalezero_wsgi.coordination.fleet import Fleet, Lead
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import CoordinationLost, CoordinationRestored, Event, Reporter
from scalezero_wsgi.function_cache import FunctionCache
from scalezero_wsgi.scaler import FunctionScaler
from tests import fakes
from tests.servers.harness import until

HELLO = Function("hello")


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

    def publish(self, lease: Lease, known: Known) -> bool:
        self._check()
        return super().publish(lease, known)

    def report(self, row: Row, ttl: float) -> None:
        self._check()
        super().report(row, ttl)

    def _check(self) -> None:
        if self.full:
            raise CoordinationError("full")


def test_what_can_only_be_read_does_not_count_as_found() -> None:
    store = Filled()
    happened: list[Event] = []
    fleet = Fleet(store, Reporter([happened.append]))
    lease = store.acquire(HELLO, "another", 60.0)
    assert lease is not None
    looks = 0

    def follow(known: Known, news: bool) -> ReplicaStatus | None:
        nonlocal looks
        looks += 1
        return known.status

    def lead(lead: Lead) -> ReplicaStatus | None:
        raise AssertionError("another one leads")

    ended = time.monotonic() + 20.0
    fly: Callable[[], object] = lambda: fleet.fly(HELLO, lambda: ended, follow, lead)  # noqa: E731
    follower = threading.Thread(target=fly, daemon=True)
    assert store.publish(lease, Known(None))
    follower.start()
    until(lambda: looks > 1)
    store.full = True
    fleet.beat()
    before = looks
    until(lambda: looks > before + 3)
    assert [type(each) for each in happened] == [CoordinationLost]
    fleet.beat()
    assert [type(each) for each in happened] == [CoordinationLost]
    store.full = False
    fleet.beat()
    assert [type(each) for each in happened] == [CoordinationLost, CoordinationRestored]
    assert store.publish(lease, Known(ReplicaStatus(1, 1)))
    follower.join()


def test_what_another_worker_has_started_again_has_been_woken_for_this_one_too() -> None:
    """So that a request which met the old replica is passed down once more."""
    store, provider, nobody = MemoryCoordination(), fakes.Fleet(time.monotonic), Reporter()
    one, other = (
        FunctionScaler(provider, FunctionCache(30.0), report=nobody, fleet=Fleet(store, nobody))
        for _ in range(2)
    )
    metas = [each.ensure_available(HELLO, time.monotonic() + 20.0) for each in (one, other)]
    provider.set_replicas(*HELLO, 0)
    for scaler, meta in zip((one, other), metas, strict=True):
        passed_at = time.monotonic()
        assert scaler.doubt(meta)
        renewed = scaler.ensure_available(HELLO, time.monotonic() + 20.0, since=time.monotonic())
        assert renewed.usage.woken_at > passed_at
    assert [replicas for _, replicas in provider.sets] == [1, 0, 1]
