from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine takes long for an example at times. The rest is as hypothesis has it: in CI, without luck.
settings.register_profile(
    "tests", settings.default, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

pytest.register_assert_rewrite("scalezero_wsgi.testing")

SERVERS = Path(__file__).parent / "servers"
ON_DEMAND = {"engine", "soak"}
"""Markers of tests that run only when ``-m`` names one of them."""


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking at all the tests and modules again each time."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before pytest itself looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if SERVERS in item.path.parents:
            item.add_marker("server")
    expression: str = config.option.markexpr
    if ON_DEMAND & set(re.findall(r"\w+", expression)):
        return
    left_out = {item for item in items if any(item.get_closest_marker(name) for name in ON_DEMAND)}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
