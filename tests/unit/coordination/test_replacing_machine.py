"""The same as ``test_idling_machine``, of a function that is to start anew whenever it is up. So it is
stopped over and over, be it in use or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis.stateful import run_state_machine_as_test

from scalezero_wsgi.activation.idling import replacing
from scalezero_wsgi.activation.idling.drain import Outcome
from scalezero_wsgi.activation.idling.gate import Gate
from scalezero_wsgi.activation.idling.retries import PUT_OFF
from tests.unit.coordination.test_idling_machine import SOAK, Idle, StormyIdle
from tests.unit.coordination.test_state_machine import machine_settings


@pytest.fixture(autouse=True, scope="module")
def at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replacing, "SETTLED", 0.0)
        patch.setattr(replacing, "LOOK_EVERY", 0.0)
        yield


class Outdated(Idle):
    CALM = False  # it is stopped soon after its last use

    def go_on(self, seconds: float) -> None:
        self.world.outdated = True
        super().go_on(seconds)

    def all_are_served_and_it_goes_to_zero(self, extra: float) -> None:
        super().all_are_served_and_it_goes_to_zero(extra + PUT_OFF[Outcome.IN_USE])


class StormyOutdated(StormyIdle):
    def go_on(self, seconds: float) -> None:
        self.world.outdated = True
        super().go_on(seconds)

    def all_are_served_and_it_goes_to_zero(self, extra: float) -> None:
        super().all_are_served_and_it_goes_to_zero(extra + PUT_OFF[Outcome.IN_USE])


def replaced_in_use() -> Outdated:
    """Have a function replaced while requests of each worker are under way, and come."""
    state = Outdated()
    state.begin(delay=0.05, lag=0.0, latency=0.01, used=True)
    for _ in range(30):
        for index in range(3):
            state.a_request_comes(index, 0.05)
        state.go_on(0.1)
    return state


def test_it_is_stopped_again_and_again_under_load() -> None:
    state = replaced_in_use()
    assert sum(replicas == 0 for _, replicas in state.world.engine.history) > 3
    state.teardown()


def test_without_waiting_for_the_requests_under_way_some_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the machine would notice."""
    monkeypatch.setattr(Gate, "_is_used", lambda *_: False)
    assert any("was cut" in wrong for wrong in replaced_in_use().world.ledger.wrong)


@pytest.mark.soak
@pytest.mark.parametrize("machine", [Outdated, StormyOutdated])
def test_no_schedule_loses_or_cuts_a_request(machine: type[Idle]) -> None:
    run_state_machine_as_test(machine, settings=machine_settings(SOAK))
