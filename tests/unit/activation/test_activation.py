"""The phases of an activation."""

from __future__ import annotations

import pytest

from scalezero_wsgi import ReplicaStatus
from scalezero_wsgi.activation.activation import Phase, next_phase
from tests.support.fakes import STARTING, UP, ZERO

BROKEN_AT_ZERO = ReplicaStatus(0, 0, failure="exited with status 1")
BROKEN = ReplicaStatus(1, 0, failure="exited with status 1")


@pytest.mark.parametrize(
    ("phase", "zero", "starting", "broken_at_zero", "broken"),
    [
        (Phase.QUERYING, Phase.QUERYING, Phase.FOUND, Phase.QUERYING, Phase.FAILED),
        (Phase.FOUND, Phase.QUERYING, Phase.FOUND, Phase.QUERYING, Phase.FAILED),
        (Phase.REQUESTED, Phase.REQUESTED, Phase.STARTING, Phase.FAILED, Phase.FAILED),
        (Phase.STARTING, Phase.STARTING, Phase.STARTING, Phase.FAILED, Phase.FAILED),
    ],
)
def test_each_answer_leads_to_one_phase(
    phase: Phase, zero: Phase, starting: Phase, broken_at_zero: Phase, broken: Phase
) -> None:
    expected = {
        UP: Phase.READY,
        ZERO: zero,
        STARTING: starting,
        BROKEN_AT_ZERO: broken_at_zero,
        BROKEN: broken,
    }
    assert {status: next_phase(phase, status, status is UP) for status in expected} == expected
