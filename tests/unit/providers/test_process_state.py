"""The states of a function's process, without a process."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from scalezero_wsgi.model import ReplicaStatus
from scalezero_wsgi.providers.process.group import ProcessId
from scalezero_wsgi.providers.process.state import TRANSITIONS, Phase, ProcessState

PROCESS = ProcessId(4711, "99")
STOPPED = ProcessState()
STARTING = STOPPED.launched(PROCESS, 8081, now=100.0)
READY = STARTING.answered()
STOPPING = READY.stopping(kill_at=110.0)
PAUSED = READY.paused()
STATES = {state.phase: state for state in (STOPPED, STARTING, READY, PAUSED, STOPPING)}

WAYS: dict[str, tuple[Callable[[ProcessState], ProcessState], Phase]] = {
    "launched": (lambda state: state.launched(PROCESS, 8081, now=100.0), Phase.STARTING),
    "answered": (ProcessState.answered, Phase.READY),
    "paused": (ProcessState.paused, Phase.PAUSED),
    "resumed": (lambda state: state.resumed(now=130.0), Phase.STARTING),
    "stopping": (lambda state: state.stopping(kill_at=120.0), Phase.STOPPING),
    "exited": (lambda state: state.exited("why"), Phase.STOPPED),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", Phase)
def test_only_the_ways_of_the_table_are_open(phase: Phase, way: str) -> None:
    go, then = WAYS[way]
    if then in TRANSITIONS[phase]:
        assert go(STATES[phase]).phase is then
    else:
        with pytest.raises(ValueError, match=f"is {phase.value} cannot become {then.value}"):
            go(STATES[phase])


def test_what_is_told_of_each() -> None:
    endpoint = "http://127.0.0.1:8081"
    assert STOPPED.status() == STOPPING.status() == ReplicaStatus(0, 0, max_replicas=1)
    assert STARTING.status() == ReplicaStatus(1, 0, max_replicas=1, endpoint=endpoint)
    assert READY.status() == ReplicaStatus(1, 1, max_replicas=1, endpoint=endpoint)
    assert PAUSED.status() == ReplicaStatus(0, 0, max_replicas=1, paused=True)
    assert STARTING.exited("why").status() == ReplicaStatus(0, 0, max_replicas=1, failure="why")


def test_when_something_has_to_happen() -> None:
    assert [state.due(30.0) for state in STATES.values()] == [*(math.inf, 130.0, math.inf, math.inf, 110.0)]


def test_one_that_goes_on_has_its_time_to_answer_anew() -> None:
    assert PAUSED.resumed(now=500.0).due(30.0) == 530.0


def test_a_kill_is_brought_forward_and_never_put_off() -> None:
    assert STOPPING.stopping(105.0).kill_at == 105.0
    assert STOPPING.stopping(math.inf).kill_at == 110.0


def test_the_failure_of_a_late_start_outlives_its_stop_but_not_the_next_launch() -> None:
    late = STARTING.stopping(110.0, "was not ready within 30 s")
    assert late.stopping(105.0).gone() == ProcessState(failure="was not ready within 30 s")
    assert late.gone().launched(PROCESS, 8081, now=100.0) == STARTING


def test_the_file_has_the_form_of_earlier_releases() -> None:
    assert STOPPING.to_file() == {
        "pid": 4711,
        "started": "99",
        "port": 8081,
        "since": 100.0,
        "ready": False,
        "stop_by": 110.0,
        "failure": None,
    }
    for state in (*STATES.values(), STARTING.exited("why")):
        assert ProcessState.from_file(state.to_file()) == state
    assert PAUSED.to_file().keys() - STOPPING.to_file().keys() == {"paused"}
    # Earlier releases leave "ready" as it was when a process is asked to stop.
    assert ProcessState.from_file(STOPPING.to_file() | {"ready": True}) == STOPPING
