"""Start, stop and keep up by hand: no request is lost unless the operator says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from scalezero_wsgi import Function, FunctionNotFound, ProviderError, ScaleZeroError, ScaleZeroMiddleware
from scalezero_wsgi.activation import by_hand
from scalezero_wsgi.activation.by_hand import MARK, Stopped
from scalezero_wsgi.activation.idling import drain, make
from scalezero_wsgi.activation.idling.drain import Outcome
from scalezero_wsgi.coordination.base import WorkerReport
from scalezero_wsgi.coordination.memory import MemoryCoordination
from tests.support.fakes import HELLO, ZERO
from tests.support.idlers import end_idlers
from tests.support.waiting import PATIENCE, until
from tests.support.wsgi import App, Visit, ask, in_flight
from tests.unit.activation.idling.test_idler import Engine


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a store in memory nothing is forgotten, and here no worker is slow."""
    monkeypatch.setattr(by_hand, "NEWLY_LED", 0.0)
    monkeypatch.setattr(by_hand, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(by_hand, "CLOSED_WITHIN", 0.1)
    monkeypatch.setattr(drain, "ACKNOWLEDGE", 0.2)
    monkeypatch.setattr(drain, "SETTLE", 0.1)
    monkeypatch.setattr(make, "PACE", 0.02)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    hurry(monkeypatch)
    yield
    end_idlers()


class Held:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        assert self.go_on.wait(PATIENCE)
        start_response("200 OK", [])
        return [b"ok"]


class Site:
    def __init__(self, app: Any = None, **settings: Any) -> None:
        self.engine = Engine()
        self.store = MemoryCoordination()
        defaults: dict[str, Any] = {"idle_after": 3600, "idle_default": "all", "coordination": self.store}
        self.door = ScaleZeroMiddleware(app or App(), self.engine, **(defaults | settings))

    def stop(self, cut: bool = False) -> Stopped:
        flight = self.door.by_hand.stop(HELLO, cut, multiprocess=False)
        assert flight.wait(PATIENCE)
        return flight.result()

    def can_keep_up(self) -> bool:
        return self.door.by_hand.can_keep_up

    def is_up(self) -> bool:
        return self.engine.get_replicas(*HELLO).replicas > 0


NO_IDLER = {"idle_after": None, "idle_default": "labelled"}


@pytest.mark.parametrize("settings", [{}, NO_IDLER])
def test_a_function_that_nobody_uses_is_stopped_and_its_next_request_starts_it(settings: Any) -> None:
    site = Site(**settings)
    ask(site.door)
    assert site.stop() == Stopped(Outcome.STOPPED, 0)
    assert not site.is_up()
    assert site.stop() == Stopped(Outcome.AT_ZERO, 0)
    assert ask(site.door)[0] == "200 OK"
    assert site.is_up()


@pytest.mark.parametrize("settings", [{}, NO_IDLER])
def test_one_in_use_is_not_stopped_and_it_is_said_by_how_many(settings: Any) -> None:
    app = Held()
    site = Site(app, **settings)
    visits = [Visit(site.door), Visit(site.door)]
    until(lambda: in_flight(site.door) == 2)
    assert site.stop() == Stopped(Outcome.CANCELLED, 2)
    assert site.is_up()
    assert site.stop(cut=True) == Stopped(Outcome.STOPPED, 2)
    assert not site.is_up()
    app.go_on.set()
    assert [visit.status for visit in visits] == ["200 OK"] * 2


def test_what_another_worker_says_counts_once() -> None:
    site = Site()
    for name in ("other", "other/use"):
        site.store.report(WorkerReport(name, in_flight={HELLO: 3}, waiting={HELLO: 1}), 60)
    assert site.door.by_hand.in_use(HELLO) == 4


def test_a_request_that_comes_while_it_is_cut_waits_and_starts_it_again() -> None:
    site = Site()
    ask(site.door)
    site.engine.may_stop.clear()
    flight = site.door.by_hand.stop(HELLO, True, multiprocess=False)
    assert site.engine.stopping.wait(PATIENCE)
    visit = Visit(site.door)
    until(lambda: site.door.queue.waiting() == 1)
    site.engine.may_stop.set()
    assert flight.wait(PATIENCE)
    assert visit.status == "200 OK"
    assert site.engine.sets[-2:] == [(HELLO, 0), (HELLO, 1)]


def test_what_others_have_for_a_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    ask(site.door)
    lease = site.store.acquire(HELLO, "other", 60.0)
    assert lease is not None
    flight = site.door.by_hand.stop(HELLO, False, multiprocess=False)
    until(lambda: site.store.known(MARK))
    assert not flight.landed
    site.store.release(lease)
    assert flight.wait(PATIENCE)
    assert flight.result().outcome is Outcome.STOPPED
    ask(site.door)
    monkeypatch.setattr(by_hand, "BUSY_FOR", 0.05)
    assert site.store.acquire(HELLO, "other", 60.0)
    assert site.stop().outcome is Outcome.BUSY


def test_of_processes_that_do_not_meet_each_stops_at_once_and_keeps_nothing_up() -> None:
    site = Site()
    by = site.door.by_hand
    assert site.can_keep_up()
    with pytest.raises(ScaleZeroError, match="nothing brings idle functions to zero"):
        by.keep_up(HELLO, 60.0, multiprocess=True)
    assert not site.can_keep_up()
    assert ask(site.door)[0] == "200 OK"
    flight = by.stop(HELLO, False, multiprocess=True)
    assert flight.wait(PATIENCE)
    assert flight.result() == Stopped(Outcome.STOPPED, 0)


def test_one_that_is_busy_is_stopped_only_if_its_work_may_be_cut() -> None:
    site = Site(busy=lambda name, namespace: True)
    ask(site.door)
    assert site.stop().outcome is Outcome.VETOED
    assert site.stop(cut=True).outcome is Outcome.STOPPED


def test_a_worker_that_does_not_acknowledge_keeps_it_up() -> None:
    site = Site()
    ask(site.door)
    site.store.report(WorkerReport("deaf/use"), 60)
    stopped = site.stop()
    assert (stopped.outcome, stopped.reason) == (Outcome.UNANSWERED, "no answer of deaf/use")
    assert site.is_up()


def test_a_store_that_has_forgotten_everything_is_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_hand, "NEWLY_LED", 0.05)
    site = Site()
    ask(site.door)
    assert site.stop().outcome is Outcome.STOPPED
    known = site.store.known(MARK)
    assert known is not None
    assert known.age >= 0.05
    monkeypatch.setattr(by_hand, "PATIENCE", 0.05)
    monkeypatch.setattr(site.store, "known", lambda function: None)
    ask(site.door)
    assert site.stop() == Stopped(Outcome.LOST, 0, "the workers' store has just forgotten everything")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(FunctionNotFound("hello"), Outcome.GONE), (ProviderError("it is ill"), Outcome.FAILED)],
)
@pytest.mark.parametrize("settings", [{}, NO_IDLER])
def test_a_provider_that_fails(
    error: Exception, outcome: Outcome, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, namespace: str) -> Any:
        raise error

    site = Site(**settings)
    monkeypatch.setattr(site.engine, "get_replicas", fails)
    stopped = site.stop()
    assert stopped.outcome is outcome
    assert stopped.reason == ("it is ill" if outcome is Outcome.FAILED else "")


@pytest.mark.parametrize("settings", [{}, NO_IDLER])
def test_one_is_started(settings: Any) -> None:
    site = Site(**settings)
    assert site.door.by_hand.start(HELLO, multiprocess=False).wait(PATIENCE)
    assert site.is_up()


def test_one_that_is_kept_up_is_started_and_not_idle() -> None:
    site = Site()
    by = site.door.by_hand
    assert by.keep_up(HELLO, 60.0, multiprocess=False).wait(PATIENCE)
    assert site.is_up()
    assert 59 < by.kept_up()[HELLO] <= 60
    assert by.idle_after(HELLO, ZERO) is None
    assert site.stop().outcome is Outcome.STOPPED
    assert by.kept_up() == {}


def test_without_an_idler_nothing_is_kept_up() -> None:
    by = Site(**NO_IDLER).door.by_hand
    assert (by.can_keep_up, by.kept_up()) == (False, {})
    with pytest.raises(ScaleZeroError, match="nothing brings idle functions to zero"):
        by.keep_up(Function("hello"), 60.0, multiprocess=False)


def test_one_that_is_kept_up_goes_for_no_other() -> None:
    site = Site(**NO_IDLER, max_running=1, max_wait=0.05)
    site.door.by_hand.keep_up(HELLO, 60.0, multiprocess=False).wait(PATIENCE)
    assert ask(site.door, "/function/other")[0].startswith("50")
    assert site.is_up()
