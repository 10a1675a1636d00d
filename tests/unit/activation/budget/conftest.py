from __future__ import annotations

from collections.abc import Iterator

import pytest

from scalezero_wsgi.activation.budget import budget, survey
from scalezero_wsgi.activation.idling import drain, make
from scalezero_wsgi.activation.idling import idler as idling
from tests.support.idlers import end_idlers


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of a store in memory nothing is forgotten; workers look often. No idler outlives its test."""
    monkeypatch.setattr(budget, "KNOWN_FOR", 0.0)
    for module in (budget, survey):
        monkeypatch.setattr(module, "JUST_CLAIMED", 0.2)
    monkeypatch.setattr(idling, "NEWLY_LED", 0.0)
    monkeypatch.setattr(budget, "CHECK_EVERY", 0.05)
    monkeypatch.setattr(drain, "SETTLE", 0.2)
    monkeypatch.setattr(make, "PACE", 0.02)
    yield
    end_idlers()
