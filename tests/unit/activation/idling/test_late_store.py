"""A store that cannot be used at first, where no request comes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.coordination import CoordinationError, heartbeat
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import CoordinationLost, CoordinationRestored, Event
from tests.support.fakes import HELLO
from tests.support.waiting import until
from tests.support.wsgi import App
from tests.unit.activation.idling.test_listing import Engine


class Late(MemoryCoordination):
    """Every method fails before it is ``there``."""

    there = False

    def __getattribute__(self, name: str) -> Any:
        if name in {"acquire", "report", "workers", "drains", "known", "change_drain"} and not self.there:

            def fails(*_: object) -> None:
                raise CoordinationError("not there yet")

            return fails
        return super().__getattribute__(name)


@pytest.mark.usefixtures("at_once")
def test_one_that_comes_late_is_found_and_functions_go_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT", 0.05)
    events: list[Event] = []
    engine, store = Engine(), Late()
    engine.put_up("hello")
    door = ScaleZeroMiddleware(
        App(), engine, idle_after=0.05, idle_default="all", coordination=store, hooks=[events.append]
    )
    idler = door._idler
    assert idler is not None
    idler.start(multiprocess=False)
    until(lambda: any(isinstance(event, CoordinationLost) for event in events))
    time.sleep(0.2)
    assert engine.sets == []
    store.there = True
    until(lambda: any(isinstance(event, CoordinationRestored) for event in events))
    until(lambda: (HELLO, 0) in engine.sets)
