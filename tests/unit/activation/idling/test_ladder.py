"""What is done to an idle function: it is stopped, or paused, or paused first and stopped later."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from scalezero_wsgi import Function, ProviderError, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi._lib.idle_action import STOP, idle_action
from scalezero_wsgi.activation.idling import drain, listing
from scalezero_wsgi.activation.idling.idleness import Idleness
from scalezero_wsgi.activation.idling.ladder import Ladder, held_since, status_by
from scalezero_wsgi.activation.state import NEVER, FunctionMeta, FunctionState
from scalezero_wsgi.coordination.base import Drain, DrainPhase, SharedStatus, WorkerReport
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import DrainCancelled, Event, FunctionPaused, FunctionStopped, StopRefused
from scalezero_wsgi.providers.base import PausingProvider
from tests.support.fakes import HELLO, UP, ZERO, FakeEngine
from tests.support.waiting import SOON, until
from tests.support.wsgi import App, Visit, ask, usage

ACTION, AFTER = "scalezero.idle-action", "scalezero.idle-after"
PAUSED = replace(ZERO, paused=True)
SHARED = SharedStatus(PAUSED)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, at_once: None) -> None:
    monkeypatch.setattr(listing, "LIST_EVERY", 0.1)
    monkeypatch.setattr(drain, "TAKE_EFFECT", 0.2)


class PausingEngine(FakeEngine):
    """It can pause, and notes what was done to the function in which order."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.paused: set[Function] = set()
        self.done: list[str] = []
        self.labels: dict[str, str] = {}
        self.refusal: Exception | None = None
        self.pausing = threading.Event()
        self.may_pause = threading.Event()
        self.may_pause.set()

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        found = super().get_replicas(name, namespace)
        status = PAUSED if Function(name, namespace) in self.paused else found
        return replace(status, labels=self.labels)

    def list_functions(self) -> list[Function]:
        return [HELLO]

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        paused = Function(name, namespace) in self.paused
        self.done.append("stop" if not replicas else "resume" if paused else "start")
        self.paused.discard(Function(name, namespace))
        super().set_replicas(name, namespace, replicas)

    def pause(self, name: str, namespace: str) -> None:
        self.pausing.set()
        assert self.may_pause.wait(30)
        if self.refusal is not None:
            raise self.refusal
        self.done.append("pause")
        self.paused.add(Function(name, namespace))


class Site:
    def __init__(self, action: str, engine: Any = None, **settings: Any) -> None:
        self.engine = engine or PausingEngine()
        self.events: list[Event] = []
        self.store = settings.setdefault("coordination", MemoryCoordination())
        defaults: dict[str, Any] = {"idle_after": 0.05, "idle_default": "all", "hooks": [self.events.append]}
        self.door = ScaleZeroMiddleware(App(), self.engine, idle_action=action, **(defaults | settings))

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


# When which step is due


def due(setting: str, labels: dict[str, str]) -> tuple[float | None, float | None]:
    """After how long the next step of a function that is up is due, and of one that is paused."""
    keys = {"action": ACTION, "after": AFTER}
    status = replace(UP, labels={keys[key]: text for key, text in labels.items()})
    ladder = Ladder(idle_action(setting), Idleness(900.0, for_all=True), PausingEngine())
    return ladder(HELLO, status), ladder(HELLO, replace(status, paused=True))


@pytest.mark.parametrize(
    ("setting", "labels", "expected"),
    [
        ("stop", {}, (900.0, None)),
        ("pause", {}, (900.0, None)),
        ("pause, stop after 1h", {}, (900.0, 2700.0)),
        ("stop", {"after": "never", "action": "pause"}, (None, None)),
        ("stop", {"action": "pause"}, (900.0, None)),
        ("pause", {"after": "60s"}, (60.0, None)),
        ("pause, stop after 1h", {"after": "60s"}, (60.0, 3540.0)),
        ("pause, stop after 1h", {"after": "1h"}, (3600.0, None)),
        ("stop", {"action": "pause after 5m, stop after 1h"}, (300.0, 3300.0)),
        ("stop", {"action": "pause after 5m, stop after 1h", "after": "60s"}, (300.0, 3300.0)),
        ("pause", {"action": "stop"}, (900.0, None)),
    ],
)
def test_when_the_steps_are_due(
    setting: str, labels: dict[str, str], expected: tuple[float | None, float | None]
) -> None:
    assert due(setting, labels) == expected


@pytest.mark.parametrize(
    ("action", "expected"),
    [("pause", None), ("pause, stop after 1h", 3600.0), ("pause, stop after 60s", 900.0), ("stop", 900.0)],
)
def test_a_step_that_the_provider_cannot_take_is_left_out_and_that_is_said_once(
    action: str, expected: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine(time.monotonic)
    assert not isinstance(engine, PausingProvider)
    ladder = Ladder(idle_action(action), Idleness(900.0, for_all=True), engine)
    with caplog.at_level(logging.WARNING):
        assert [ladder(Function(name), UP) for name in ("a", "b")] == [expected] * 2
    said = [record.getMessage() for record in caplog.records]
    text = "idle_action: FakeEngine cannot pause functions; that step is left out"
    assert said == ([] if action == "stop" else [text])


def test_a_label_opts_in_and_a_wrong_one_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    ladder = Ladder(STOP, Idleness(900.0, for_all=False), PausingEngine())
    assert ladder(HELLO, UP) is None
    assert ladder(HELLO, replace(UP, labels={ACTION: "pause after 5m"})) == 300.0
    with caplog.at_level(logging.WARNING):
        assert [ladder(HELLO, replace(UP, annotations={ACTION: "doze"})) for _ in range(2)] == [900.0] * 2
    [record] = caplog.records
    for word in ("hello", ACTION, "'doze'", "'pause after 5m, stop after 1h'", "stop is taken"):
        assert word in record.getMessage()


def test_a_paused_function_that_was_used_since_is_not_paused_any_more() -> None:
    meta = FunctionMeta(100.0, PAUSED)
    assert status_by(meta, NEVER) is PAUSED
    assert status_by(meta, 101.0) == ZERO


def test_a_function_whose_hours_begin_just_then_is_paused_and_not_stopped() -> None:
    engine = PausingEngine()
    ladder = Ladder(idle_action("pause"), lambda *_: None, engine)
    assert ladder(HELLO, UP) is None
    ladder.take(HELLO, UP)
    assert engine.done == ["pause"]


# What is done


def test_an_idle_function_is_paused_and_goes_on_at_the_next_request() -> None:
    site = Site("pause")
    for count in (1, 2):
        assert ask(site.door)[0] == "200 OK"
        until(lambda count=count: len(site.told(FunctionPaused)) == count)  # type: ignore[misc]
    assert ask(site.door)[0] == "200 OK"
    assert site.engine.done[:5] == ["start", "pause", "resume", "pause", "resume"]
    assert site.told(FunctionStopped) == []


def test_how_long_a_paused_function_takes_to_go_on_is_no_start_time() -> None:
    site = Site("pause")
    ask(site.door)
    before = site.door.scaler.last_starts(HELLO)
    assert len(before) == 1
    until(lambda: site.told(FunctionPaused))
    ask(site.door)
    assert site.engine.done[:3] == ["start", "pause", "resume"]
    assert site.door.scaler.last_starts(HELLO) == before


def test_a_paused_function_is_stopped_in_the_end_without_going_on() -> None:
    site = Site("pause after 50ms, stop after 400ms")
    ask(site.door)
    used_at = time.monotonic()
    until(lambda: site.told(FunctionStopped))
    assert time.monotonic() >= used_at + 0.4
    assert site.engine.done == ["start", "pause", "stop"]
    assert ask(site.door)[0] == "200 OK"
    assert site.engine.done[3] == "start"


def test_a_paused_function_that_is_used_again_begins_anew() -> None:
    site = Site("pause after 50ms, stop after 1h")
    paused_at = NEVER
    for count in (1, 2):
        asked_at = time.monotonic()
        assert ask(site.door)[0] == "200 OK"
        until(lambda count=count: len(site.told(FunctionPaused)) == count)  # type: ignore[misc]
        paused_at = usage(site.door).paused_at
        assert paused_at >= asked_at
    assert site.store.known(HELLO).paused_for <= time.monotonic() - paused_at


@pytest.mark.parametrize(("paused_for", "stops"), [(3000.0, False), (3400.0, True)])
def test_another_worker_goes_on_with_the_ladder(paused_for: float, stops: bool) -> None:
    """It learns from the store how long the function has been paused."""
    site = Site("pause after 5m, stop after 1h")
    site.engine.paused.add(HELLO)
    lease = site.store.acquire(HELLO, "one that has left", 60)
    assert site.store.publish(lease, replace(SHARED, paused_for=paused_for))
    site.store.release(lease)
    site.door._idler.start(multiprocess=False)  # type: ignore[union-attr]
    if stops:
        until(lambda: site.told(FunctionStopped))
    else:
        until(lambda: len(site.engine.queries) >= 3)
    assert site.engine.done == (["stop"] if stops else [])
    shared = site.store.known(HELLO)
    assert shared.paused_for is None if stops else shared.paused_for >= paused_for


def test_what_somebody_else_has_paused_stays_so_where_nothing_is_to_be_paused() -> None:
    site = Site("stop")
    site.engine.paused.add(HELLO)
    site.door._idler.start(multiprocess=False)  # type: ignore[union-attr]
    until(lambda: len(site.engine.queries) >= 3)
    assert site.engine.done == []
    assert ask(site.door)[0] == "200 OK"
    assert site.engine.done[0] == "resume"


def test_a_provider_that_cannot_pause_keeps_it_up() -> None:
    site = Site("pause", FakeEngine(time.monotonic))
    ask(site.door)
    time.sleep(0.15)  # three times as long as it would take
    assert site.engine.sets == [(HELLO, 1)]


def test_a_provider_that_refuses_to_pause_is_told_so_once() -> None:
    site = Site("pause")
    site.engine.refusal = ProviderError("no freezer")
    ask(site.door)
    until(lambda: site.told(StopRefused))
    assert site.told(StopRefused) == [StopRefused(HELLO, "no freezer", 60.0)]
    assert ask(site.door)[0] == "200 OK"


# The hand-shake is the same


def test_a_request_that_comes_while_it_is_being_paused_waits_and_has_it_go_on() -> None:
    site = Site("pause")
    site.engine.may_pause.clear()
    ask(site.door)
    assert site.engine.pausing.wait(30)
    visit = Visit(site.door)
    until(lambda: site.door.queue.waiting() == 1)
    site.engine.may_pause.set()
    assert visit.status == "200 OK"
    assert site.engine.done[:3] == ["start", "pause", "resume"]


def test_a_request_that_undoes_the_drain_is_passed_down_and_nothing_is_paused() -> None:
    site = Site("pause", cache_expiry=0.0)
    site.store.report(WorkerReport("silent/use"), 60)  # it does not acknowledge
    ask(site.door)
    until(lambda: HELLO in site.door._idler.gate.closed)  # type: ignore[union-attr]
    begun = time.monotonic()
    assert ask(site.door)[0] == "200 OK"
    assert time.monotonic() < begun + SOON
    assert [event.reason for event in site.told(DrainCancelled)][:1] == ["a request came"]
    assert site.engine.done == ["start"]


@pytest.mark.parametrize("done", [True, False])
def test_what_a_worker_has_left_that_died_while_it_paused_is_ended(done: bool) -> None:
    site = Site("pause", idle_after=60)
    ask(site.door)
    if done:
        site.engine.pause(*HELLO)
    assert site.store.change_drain(HELLO, None, Drain(DrainPhase.STOPPING, 7), 60)
    assert ask(site.door)[0] == "200 OK"
    until(lambda: site.store.drains().get(HELLO) != Drain(DrainPhase.STOPPING, 7))
    assert site.engine.done == (["start", "pause", "resume"] if done else ["start"])


# What is remembered


def test_since_when_it_is_paused_is_shared() -> None:
    state = FunctionState(HELLO)
    state.observe(PAUSED, 100.0)
    state.observe(PAUSED, 200.0)
    assert (state.paused_at, state.moved_at, held_since(state, 500.0)) == (100.0, 100.0, 100.0)
    shared = state.share(SHARED, 250.0)
    assert shared.paused_for == 150.0
    assert shared.after(10.0).paused_for == 160.0
    other = FunctionState(HELLO)
    assert held_since(other, 500.0) == held_since(None, 500.0) == 500.0
    other.observe(PAUSED, 1240.0)
    other.apply(shared, 1250.0)
    assert other.paused_at == 1100.0
    other.observe(UP, 1260.0)
    assert other.paused_at == NEVER
    assert other.share(SHARED, 1270.0).paused_for is None
