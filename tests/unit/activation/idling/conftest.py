from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from scalezero_wsgi.activation.idling import drain
from scalezero_wsgi.activation.idling import idler as idling


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of a store in memory nothing is forgotten, and here no worker is slow. No idler outlives its test."""
    monkeypatch.setattr(idling, "NEWLY_LED", 0.0)
    monkeypatch.setattr(drain, "ACKNOWLEDGE", 0.4)
    monkeypatch.setattr(drain, "SETTLE", 0.2)
    yield
    for idler in list(idling._idlers):
        idler.stop(os.getpid())
