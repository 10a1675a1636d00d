"""A waking page's questions that reach another worker than the one that sent it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from scalezero_wsgi import FunctionNotFound, ProviderError, ScaleZeroMiddleware
from scalezero_wsgi.activation.activation import LEADER_SILENT, PROVIDER_PATIENCE
from scalezero_wsgi.coordination.base import CoordinationError, SharedStatus
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.model import Function
from tests.support.clock import MovingClock
from tests.support.fakes import HELLO, STARTING, UP, ZERO, Gate, ScriptedProvider
from tests.support.waiting import until
from tests.support.wsgi import BROWSER, STATUS, App, ask, begin, state


class Workers:
    """Two workers that meet in one store. The first has the start, the second is asked for it."""

    def __init__(self, provider: Any, **settings: Any) -> None:
        self.clock = MovingClock()
        self.store = MemoryCoordination(self.clock)
        self.first, self.second = (
            ScaleZeroMiddleware(
                App(), provider, coordination=self.store, clock=self.clock, page_after=0.1, **settings
            )
            for _ in range(2)
        )

    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(ask(self.second, STATUS + "hello")[2])
        return told

    def is_told(self, state: str) -> bool:
        return bool(self.told()["state"] == state)

    def tell(self, known: SharedStatus) -> None:
        lease = self.store.acquire(HELLO, "somebody", 1.0)
        assert lease is not None
        assert self.store.publish(lease, known)
        self.store.release(lease)


def test_the_other_worker_tells_how_far_it_has_come_and_keeps_nothing() -> None:
    gate = Gate()
    workers = Workers(gate)
    assert ask(workers.first, headers=BROWSER)[0] == "503 SERVICE UNAVAILABLE"
    threads = set(threading.enumerate())
    assert [workers.told()["state"] for _ in range(50)] == ["starting"] * 50
    new = {thread.name for thread in set(threading.enumerate()) - threads}
    assert new <= {"scalezero-heartbeat"}  # which reports that somebody asks here
    gate.opened.set()
    until(lambda: workers.is_told("ready"))
    second = workers.second
    assert second.scaler.started_at(HELLO) is None
    assert (len(second.cache), len(second._segments)) == (0, 0)
    assert ask(second, headers=BROWSER)[0] == "200 OK"


def test_who_asks_there_is_counted_among_those_who_wait() -> None:
    """So the worker that has the start goes on asking the provider as often as for a request."""
    workers = Workers(gate := Gate())
    begin(workers.first)
    until(lambda: workers.is_told("starting"))
    until(lambda: any(row.waiting.get(HELLO) for row in workers.store.workers()))
    gate.opened.set()
    until(lambda: workers.is_told("ready"))


def test_a_failure_is_told_there_too() -> None:
    workers = Workers(ScriptedProvider(replace(STARTING, failure="crash loop")))
    assert ask(workers.first)[0] == "503 SERVICE UNAVAILABLE"
    assert workers.told()["state"] == "failed"
    assert workers.told()["detail"] == json.loads(ask(workers.first, STATUS + "hello")[2])["detail"]
    assert json.loads(ask(workers.second, STATUS + "hello")[2])["state"] == "failed"
    workers.clock.advance(3600)
    assert workers.told()["state"] == "unknown"


def test_a_provider_that_fails_is_told_without_its_words() -> None:
    workers = Workers(provider := ScriptedProvider(STARTING))
    begin(workers.first)
    until(lambda: workers.is_told("starting"))
    provider.script[:] = [ProviderError("http://admin:secret@10.0.0.1")]
    until(lambda: workers.told()["detail"] != "")
    assert workers.told()["state"] == "starting"
    assert workers.told()["detail"] == "The function's state cannot be told at the moment."

    def is_given_up_later() -> bool:
        workers.clock.advance(PROVIDER_PATIENCE / 6)
        return workers.is_told("unknown")  # the leader has given up: a request has to ask again

    until(is_given_up_later, pause=0.02)
    provider.script[:] = [UP]
    assert ask(workers.second, headers=BROWSER)[0] == "200 OK"


def test_a_name_that_does_not_exist_is_no_more_than_one_that_nobody_asked_for() -> None:
    workers = Workers(ScriptedProvider(FunctionNotFound("hello")))
    assert workers.told() == {**workers.told(), "state": "unknown", "detail": ""}
    before = workers.told()
    assert ask(workers.first)[0] == "404 NOT FOUND"
    assert workers.store.known(HELLO) is not None
    assert workers.told() == before


def test_what_is_told_must_be_of_now() -> None:
    workers = Workers(ScriptedProvider(ZERO))
    for known, of_now in (
        (SharedStatus(UP), "ready"),
        (SharedStatus(STARTING), "starting"),
        (SharedStatus(ZERO), "starting"),
    ):
        workers.tell(known)
        assert workers.told()["state"] == of_now
        workers.clock.advance(LEADER_SILENT + 1)
        assert workers.told()["state"] == "unknown"


@pytest.mark.parametrize("settings", [{"deny": ["hello"]}, {"allow": ["other"]}])
def test_the_fence_stands_there_too(settings: Any) -> None:
    workers = Workers(ScriptedProvider(ZERO), **settings)
    workers.tell(SharedStatus(UP))
    assert workers.told()["state"] == "unknown"


def test_without_a_store_that_can_be_used_nothing_is_known_and_a_request_helps() -> None:
    class Lost(MemoryCoordination):
        calls = 0

        def known(self, function: Function) -> SharedStatus | None:
            Lost.calls += 1
            raise CoordinationError("lost")

    door = ScaleZeroMiddleware(App(), gate := Gate(), coordination=Lost())
    assert [state(door) for _ in range(20)] == ["unknown"] * 20
    assert Lost.calls == 1
    begin(door)
    assert state(door) == "starting"
    gate.opened.set()
    until(lambda: state(door) == "ready")


def test_invented_names_leave_nothing_in_the_store() -> None:
    workers = Workers(ScriptedProvider(ZERO))
    threads = set(threading.enumerate())
    for number in range(200):
        assert state(workers.second, f"invented-{number}") == "unknown"
    memory = workers.store._memory.get()
    assert (memory.leases, memory.known, memory.reports, memory.subscriptions) == ({}, {}, {}, {})
    new = {thread.name for thread in set(threading.enumerate()) - threads}
    assert new <= {"scalezero-heartbeat"}  # which reports that somebody asks here
