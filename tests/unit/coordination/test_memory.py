from __future__ import annotations

import os

import pytest

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.coordination.base import SharedStatus, WorkerReport
from scalezero_wsgi.coordination.memory import SWEEP_EVERY, MemoryCoordination
from scalezero_wsgi.testing import CoordinationBench, CoordinationContract
from tests.support.clock import Clock

HELLO = Function("hello")


class TestContract(CoordinationContract):
    @pytest.fixture
    def bench(self) -> CoordinationBench:
        clock = Clock()
        store = MemoryCoordination(clock)
        return CoordinationBench(
            open=lambda: store, shared=False, pass_time=clock.advance, size=lambda: size(store)
        )


def size(store: MemoryCoordination) -> int:
    memory = store._memory.get()
    return len(memory.leases) + len(memory.known) + len(memory.subscriptions)


def test_rows_of_workers_that_are_gone_are_forgotten() -> None:
    clock = Clock()
    store = MemoryCoordination(clock)
    for number in range(100):
        store.report(WorkerReport(f"worker-{number}"), 3.0)
        clock.advance(1.0)
    assert len(store._memory.get().reports) <= 4


def test_what_expires_has_expired_at_its_end_whether_it_was_removed_or_not() -> None:
    clock = Clock()
    store = MemoryCoordination(clock)
    for _ in range(4):  # the removals are further apart
        assert store.acquire(HELLO, "worker", SWEEP_EVERY / 2) is not None
        clock.advance(SWEEP_EVERY / 2)


def test_a_child_has_a_memory_of_its_own() -> None:
    store = MemoryCoordination()
    lease = store.acquire(HELLO, "parent", 30.0)
    assert lease is not None
    store.publish(lease, SharedStatus(ReplicaStatus(1, 1)))
    pid = os.fork()
    if pid == 0:
        empty = store.known(HELLO) is None and store.acquire(HELLO, "child", 30.0) is not None
        os._exit(0 if empty else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.renew(lease, 30.0)
