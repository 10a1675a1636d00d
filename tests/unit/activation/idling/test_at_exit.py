"""At the end of a deployment: what is stopped then, what is not, and how long that takes."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from scalezero_wsgi import Function, ProviderError, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation.idling import at_exit
from scalezero_wsgi.activation.idling.at_exit import EXIT
from scalezero_wsgi.coordination.base import WorkerReport
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import Event, FunctionIdle, FunctionStopped
from scalezero_wsgi.integrations import gunicorn
from scalezero_wsgi.servers import server
from tests.support.fakes import FakeEngine
from tests.support.waiting import SOON
from tests.support.wsgi import App
from tests.unit.activation.idling.test_ladder import PausingEngine

NAMES = ["a", "b"]
WITHIN = 20.0


class Engine(FakeEngine):
    """Of both functions there is one replica; ``labels`` are those of ``b``."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.labels: dict[str, str] = {}
        self.hangs = threading.Event()
        self.hangs.set()
        for name in NAMES:
            self.put_up(name)

    def list_functions(self) -> Iterable[Function]:
        return map(Function, NAMES)

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        status = super().get_replicas(name, namespace)
        return replace(status, labels=self.labels) if name == "b" else status

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        assert self.hangs.wait(30)
        super().set_replicas(name, namespace, replicas)


class Site:
    def __init__(self, engine: Any = None, **settings: Any) -> None:
        self.engine: Any = engine or Engine()
        self.store = MemoryCoordination()
        self.events: list[Event] = []
        defaults: dict[str, Any] = {"idle_after": "15m", "idle_default": "all", "coordination": self.store}
        hooks = [self.events.append]
        self.door = ScaleZeroMiddleware(App(), self.engine, hooks=hooks, **(defaults | settings))

    def end(self, within: float = WITHIN, killed: Iterable[int] = ()) -> list[str]:
        """Return what was stopped."""
        server.ending(within, list(killed))
        return sorted(function.name for function, replicas in self.engine.sets if replicas == 0)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a store in memory nothing is forgotten, and no other test's middleware ends here."""
    monkeypatch.setattr(at_exit, "NEWLY_LED", 0.0)
    monkeypatch.setattr(server, "_when_ending", [])


def test_what_may_go_to_zero_is_stopped_however_little_it_was_idle() -> None:
    site = Site()
    assert site.end() == NAMES
    assert [event.reason for event in site.events if isinstance(event, FunctionStopped)] == ["exit"] * 2
    assert site.store.workers() == []
    assert site.store.acquire(EXIT, "another", 1.0) is not None


def is_b(name: str, namespace: str) -> bool:
    return name == "b"


@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        ({"scalezero.idle-after": "never"}, {}),
        ({"com.openfaas.scale.zero": "false"}, {}),
        ({"scalezero.min": "1"}, {}),
        ({"scalezero.keep-warm": "00:00-24:00"}, {}),
        ({}, {"deny": ["b"]}),
        ({}, {"allow": ["a"]}),
        ({}, {"wake": ["a"]}),
        ({}, {"busy": is_b}),
    ],
    ids=["never", "not opted in", "a least number", "hours", "denied", "not allowed", "not woken", "busy"],
)
def test_what_may_not_stays_up(labels: dict[str, str], settings: dict[str, Any]) -> None:
    site = Site(**settings)
    site.engine.labels = labels
    assert site.end() == ["a"]


def test_a_paused_function_is_stopped_not_paused_again() -> None:
    site = Site(PausingEngine(), idle_action="pause")
    site.engine.paused.add(Function("hello"))
    assert site.end() == ["hello"]
    assert site.engine.done == ["stop"]


def test_where_others_go_on_nothing_is(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    for name in ("other", "other/use"):
        site.store.report(WorkerReport(name), 60)
    with caplog.at_level(logging.INFO):
        assert site.end() == []
    assert caplog.messages == ["no function is stopped at the end, for other workers go on: other"]


def test_an_idler_apart_and_a_worker_that_was_killed_do_not_go_on() -> None:
    site = Site()
    with subprocess.Popen(["sleep", "60"]) as process:
        ours = site.door.scaler.context.peers.worker
        killed = ours.replace(f":{os.getpid()}:", f":{process.pid}:")
        for name in ("host:1:abc/apart", "host:1:abc/apart/use", f"{killed}/use"):
            site.store.report(WorkerReport(name), 60)
        process.kill()
        assert site.end(killed=[process.pid]) == NAMES


def test_with_a_dry_run_it_is_only_said() -> None:
    site = Site(dry_run=True)
    assert site.end() == []
    assert sum(isinstance(event, FunctionIdle) for event in site.events) == 2


def test_it_does_not_take_longer_than_it_may(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.engine.hangs.clear()
    begun = time.monotonic()
    assert site.end(within=0.3) == []
    assert time.monotonic() < begun + 0.3 + SOON
    assert sum("not stopped at the end: there was no more time" in text for text in caplog.messages) == 2
    site.engine.hangs.set()


def test_what_cannot_be_stopped_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Refuses(Engine):
        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            if name == "b":
                raise ProviderError("unreadable")
            return super().get_replicas(name, namespace)

    site = Site(Refuses())
    assert site.end() == ["a"]
    assert [text for text in caplog.messages if text.startswith("b:")] == [
        "b: not stopped at the end: unreadable"
    ]


def test_a_provider_that_lists_nothing_leaves_all(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(FakeEngine(time.monotonic))
    assert site.end() == []
    assert caplog.messages == ["no function is stopped at the end: FakeEngine cannot list them"]


# gunicorn's hook


class Master(SimpleNamespace):
    """What the hook knows of gunicorn's arbiter."""

    def __init__(self, load: Any = lambda: None, **attributes: Any) -> None:
        given = {"reexec_pid": 0, "master_pid": 0, "WORKERS": {}, "app": SimpleNamespace(wsgi=load)}
        super().__init__(**given | attributes)


def test_the_hook_loads_the_application_and_stops_its_functions() -> None:
    sites: list[Site] = []
    gunicorn.stop_functions(Master(lambda: sites.append(Site())))
    assert len(sites[0].engine.sets) == 2


@pytest.mark.parametrize("which", ["reexec_pid", "master_pid"])
def test_a_master_beside_another_does_nothing(which: str) -> None:
    site = Site()
    gunicorn.stop_functions(Master(**{which: os.getppid()}))
    assert site.engine.sets == []


def test_a_new_master_whose_old_one_has_ended_is_alone() -> None:
    site = Site()
    gunicorn.stop_functions(Master(master_pid=os.getppid() + 1))
    assert len(site.engine.sets) == 2


def test_an_application_that_cannot_be_loaded_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> None:
        raise ImportError("no such module")

    gunicorn.stop_functions(Master(load))
    assert caplog.messages == ["no function is stopped at the end, for the application could not be loaded"]


def test_it_is_not_among_the_hooks_that_a_star_brings() -> None:
    assert "stop_functions" not in gunicorn.__all__


def test_one_whose_thread_ends_harms_no_other_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Exits(Engine):
        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            if name == "a":
                raise SystemExit(3)
            return super().get_replicas(name, namespace)

    site = Site(Exits())
    with caplog.at_level(logging.INFO):
        assert site.end() == ["b"]
    assert "at the end 1 functions were stopped" in caplog.text
    assert "a: not stopped at the end: 3" in caplog.text


def test_several_middlewares_have_the_time_together() -> None:
    class Slow:
        def stop(self, within: float, killed: object) -> None:
            given.append(within)
            time.sleep(0.02)

    given: list[float] = []
    both = Slow(), Slow()
    for each in both:
        server.when_ending(each.stop)
    server.ending(WITHIN)
    assert given[0] <= WITHIN
    assert given[1] <= given[0] - 0.02
