"""What the tests of all stores do with them."""

from __future__ import annotations

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.coordination.base import Coordination, Lease, SharedStatus

HELLO = Function("hello")
UP = SharedStatus(ReplicaStatus(1, 1))


def held(store: Coordination, function: Function = HELLO, ttl: float = 30.0) -> Lease:
    lease = store.acquire(function, "a", ttl)
    assert lease is not None
    return lease


def tell(store: Coordination, known: SharedStatus = UP, function: Function = HELLO) -> None:
    lease = held(store, function)
    assert store.publish(lease, known)
    store.release(lease)
