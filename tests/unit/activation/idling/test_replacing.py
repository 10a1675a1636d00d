"""A function that is to start anew is stopped although it is in use, and no request is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scalezero_wsgi.activation.idling import drain, replacing, retries
from scalezero_wsgi.events import DrainCancelled, FunctionStopped
from tests.support.fakes import HELLO, UP
from tests.support.waiting import until
from tests.support.wsgi import Visit, ask, in_flight, waiting
from tests.unit.activation.idling.test_idler import Engine, Site, Streams

pytestmark = pytest.mark.usefixtures("at_once", "settled")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "SETTLED", 0.0)
    monkeypatch.setattr(replacing, "LOOK_EVERY", 0.01)
    monkeypatch.setitem(retries.PUT_OFF, drain.Outcome.IN_USE, 0.3)


class Outdated(Engine):
    """It has other settings for its functions than they run with, until they are stopped."""

    tells_outdated = True

    def __init__(self) -> None:
        super().__init__()
        self.change()

    def change(self) -> None:
        self.status = replace(UP, labels={replacing.OUTDATED: "true"})

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        super().set_replicas(name, namespace, replicas)
        if replicas == 0:
            self.status = UP


@pytest.fixture(autouse=True)
def outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.activation.idling.test_idler.Engine", Outdated)


@pytest.mark.parametrize("settings", [{"idle_after": None}, {"idle_after": 3600}, {"max_running": 3}])
def test_one_that_nobody_uses_is_stopped_whatever_the_settings_say(settings: dict[str, float | None]) -> None:
    site = Site(**settings)
    assert ask(site.door)[0] == "200 OK"
    until(lambda: [event.reason for event in site.told(FunctionStopped)] == ["changed"])
    assert ask(site.door)[0] == "200 OK"
    assert site.engine.stops() == 1


def test_who_comes_waits_until_those_that_are_under_way_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "ACKNOWLEDGE", 60.0)
    app = Streams()
    site = Site(app, idle_after=None)
    site.engine.status = UP
    first = Visit(site.door)
    until(lambda: in_flight(site.door))
    site.engine.change()  # type: ignore[attr-defined]

    def closed() -> bool:
        site.door.scaler.refresh(HELLO)  # what was published just now is an answer, too
        return site.door._idler is not None and HELLO in site.door._idler.closed

    until(closed)
    second = Visit(site.door)
    until(lambda: waiting(site.door))
    assert site.engine.stops() == 0
    app.end.set()
    assert first.answer()[2] == b"firstlast"
    assert second.answer()[2] == b"firstlast"
    assert site.engine.stops() == 1


def test_if_they_do_not_end_it_is_opened_again_and_tried_later() -> None:
    app = Streams()
    site = Site(app, idle_after=None)
    first = Visit(site.door)
    until(lambda: len(site.told(DrainCancelled)) == 1)
    second = Visit(site.door)
    until(lambda: in_flight(site.door) == 2)
    assert site.engine.stops() == 0
    app.end.set()
    assert first.status == second.status == "200 OK"
    until(lambda: site.engine.stops() == 1)
