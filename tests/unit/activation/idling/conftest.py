from __future__ import annotations

from collections.abc import Iterator

import pytest

from scalezero_wsgi.activation.idling import drain, make, retries
from scalezero_wsgi.activation.idling import idler as idling
from tests.support.idlers import end_idlers


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of a store in memory nothing is forgotten, and here no worker is slow. No idler outlives its test.

    Turns come often, whatever ``idle_after`` is.
    """
    monkeypatch.setattr(idling, "NEWLY_LED", 0.0)
    monkeypatch.setattr(drain, "ACKNOWLEDGE", 0.2)
    monkeypatch.setattr(drain, "SETTLE", 0.1)
    monkeypatch.setattr(make, "PACE", 0.02)
    monkeypatch.setitem(retries.PUT_OFF, drain.Outcome.NOT_IDLE, 0.1)
    yield
    end_idlers()
