"""What ``serve`` decides before it serves; the rest is in tests/servers/test_serve.py."""

from __future__ import annotations

from typing import Any

import pytest

from scalezero_wsgi import Settings
from scalezero_wsgi.commands.serve import must_meet


@pytest.mark.parametrize(
    ("settings", "meet"),
    [
        ({}, False),
        ({"idle_after": "15m"}, True),
        ({"max_running": 1}, True),
        ({"max_memory_of": {"gpu": "8GiB"}}, True),
    ],
)
def test_workers_meet_where_something_is_stopped(settings: dict[str, Any], meet: bool) -> None:
    assert must_meet(Settings(**settings)) is meet
