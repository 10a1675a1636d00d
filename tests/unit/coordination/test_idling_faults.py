"""Each step of the way back to zero with a fault in it: the model of ``test_idling_machine`` finds it.

A fault is a line of the step as it is, and as it would be wrong. Of those that the model has not been seen to
find, ``UNSEEN`` tells.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from scalezero_wsgi.activation.idling.drain import FunctionDrain
from scalezero_wsgi.activation.idling.gate import Gate
from scalezero_wsgi.activation.idling.idler import Idler
from tests.unit.coordination.idling import Request
from tests.unit.coordination.test_idling_machine import (
    Idle,
    StormyIdle,
    test_a_request_that_undid_a_drain_and_is_held_up_does_not_open_the_next,
    test_an_entry_of_an_earlier_start_is_not_used,
    test_another_writers_change_stands,
    test_who_has_stopped_it_dies_and_the_provider_lags,
)


class Fault(NamedTuple):
    """
    :ivar step: of the table in ``ARCHITECTURE.md``; "after": what a worker that has died leaves.
    :ivar what: in words.
    :ivar of: the function that has the line.
    :ivar right: the text as it is, once in there, which begins at the margin.
    :ivar wrong: the text instead.
    :ivar machine: which model finds it, or which of its stories.
    """

    step: str
    what: str
    of: Callable[..., Any]
    right: str
    wrong: str
    machine: type[Idle] | Callable[[], None] = Idle


FAULTS = [
    Fault(
        "1",
        "a request looks before it joins",
        Request._pass_down,
        """\
    state.in_flight.add(self)
    simulation.stop()
    if not self.worker.gate.is_open(state, meta):
""",
        """\
    simulation.stop()
    is_open = self.worker.gate.is_open(state, meta)
    simulation.stop()
    state.in_flight.add(self)
    if not is_open:
""",
    ),
    Fault(
        "1",
        "a request does not look at what is closed",
        Gate.is_open,
        "state.function in self.closed",
        "False",
    ),
    Fault("1", "a request does not look at its entry", Gate.is_open, "if now is meta:", "if True:"),
    Fault(
        "1",
        "a request takes the address of an earlier start",
        Gate.is_open,
        " and now.status.endpoint == meta.status.endpoint",
        "",
        test_an_entry_of_an_earlier_start_is_not_used,
    ),
    Fault(
        "2",
        "the idler does not take the function's lease",
        FunctionDrain.stop,
        "peers.lead(self._function,",
        "peers.lead(self._function._replace(name='.drain'),",
    ),
    Fault(
        "2",
        "an epoch comes twice",
        FunctionDrain._begin,
        "DrainPhase.DRAINING, self._lease.token",
        "DrainPhase.DRAINING, 1",
    ),
    Fault(
        "2",
        "the idler does not make sure that it leads",
        FunctionDrain._begin,
        "if not self._still_leads():",
        "if False:",
        StormyIdle,
    ),
    Fault(
        "3",
        "a worker reads what is in use, and closes then",
        Gate._turn,
        """\
    drains = self._drains()
    self._alone_since = math.inf
    self._follow(drains)
    self._look()  # after the functions were closed
""",
        """\
    self._look()
    drains = self._drains()
    self._alone_since = math.inf
    self._follow(drains)
""",
    ),
    Fault(
        "3", "a worker acknowledges what it has in use", Gate._tell, " if function not in self._in_use", ""
    ),
    Fault(
        "3",
        "a worker that has it in use lets it drain",
        Gate._turn,
        "if function in self._in_use and drains.get(function) == draining:",
        "if False:",
    ),
    Fault(
        "3",
        "a worker passes its first request down, and reports later",
        Gate._join,
        "if self._clock() <= self._expires_at - VANISHED / 2:",
        "if True:",
    ),
    Fault(
        "3",
        "a worker reads the drains, and reports then",
        Gate._turn,
        "self._send(WorkerReport(self.name), VANISHED)",
        "pass",
    ),
    Fault(
        "3",
        "a worker that was suspended relies on its entries",
        Gate._turn,
        "self._cache.mark_suspect(state.function)",
        "pass",
        StormyIdle,
    ),
    Fault(
        "3",
        "a worker that says nothing for a moment counts as gone",
        Gate._send,
        "self._use(self._store.report, report, ttl)",
        "self._use(self._store.report, report, 0.5)",
        StormyIdle,
    ),
    Fault(
        "4",
        "a request goes down without undoing the drain",
        Gate.enter,
        'if self.cancel(function, drain, "a request came"):',
        "if True:",
    ),
    Fault(
        "4",
        "a request goes down while it is stopped",
        Gate.enter,
        "return self._wait_out(function)",
        "return True",
    ),
    Fault(
        "4",
        "a request opens whatever the epoch",
        Gate._open,
        "if self.closed.get(function) == epoch:",
        "if function in self.closed:",
        test_a_request_that_undid_a_drain_and_is_held_up_does_not_open_the_next,
    ),
    Fault(
        "4",
        "a request goes down at once without the store, though it is closed",
        Gate._enter_alone,
        "if now <= self._alone_since + ALONE:",
        "if False:",
        StormyIdle,
    ),
    Fault(
        "4",
        "a request goes down at once without the store, in a worker that has not reported",
        Gate._enter_alone,
        "if now <= self._expires_at or now > self._alone_since + ALONE:",
        "if True:",
        StormyIdle,
    ),
    Fault("4", "a request that waits takes an old answer", Request._slow, "since = clock()", "pass"),
    Fault(
        "5", "not all have acknowledged", FunctionDrain._await_acknowledged, "here and not missing", "here"
    ),
    Fault(
        "5",
        "not even this worker is among those who have",
        FunctionDrain._await_acknowledged,
        "here and not missing",
        "not missing",
        StormyIdle,
    ),
    Fault(
        "5",
        "it was used since",
        FunctionDrain._await_acknowledged,
        "return None if min(uses) >= idle_after else",
        "return None if True else",
    ),
    Fault(
        "5",
        "the provider is not asked again",
        FunctionDrain._look_once_more,
        "if self._query().status != status:",
        "if False:",
        test_another_writers_change_stands,
    ),
    Fault(
        "5",
        "STOPPING is written whatever is there",
        FunctionDrain._begin,
        "self._change(draining, stopping, KEEP_DRAIN)",
        "self._change(self._drain_now(), stopping, KEEP_DRAIN)",
    ),
    Fault(
        "5",
        "the lease is not renewed before the stop",
        FunctionDrain._stop,
        "if not self._lease.holds():",
        "if False:",
        StormyIdle,
    ),
    Fault(
        "5",
        "ZERO is written before the provider shows it",
        FunctionDrain._await_zero,
        "if status is not None and status.replicas == status.available_replicas == 0:",
        "if status is not None:",
    ),
    Fault(
        "6",
        "an entry from before is good, however it ended",
        Gate._open,
        "if ended != Drain(DrainPhase.READY, epoch):",
        "if False:",
    ),
    Fault(
        "6",
        "an entry is good though the end of one drain was missed",
        Gate._follow,
        "if before not in (None, drain.epoch):",
        "if False:",
    ),
    Fault(
        "after",
        "STOPPING is undone at once",
        FunctionDrain._resolve,
        "self._await_zero(drain, SETTLE)",
        "(self._change(drain, None, KEEP_ENDED), False)[1]",
        test_who_has_stopped_it_dies_and_the_provider_lags,
    ),
    Fault(
        "after",
        "nobody ends what was left",
        Idler.turn,
        "self._drain(function, now, 0.0)",
        "pass",
        StormyIdle,
    ),
    Fault(
        "after",
        "who decides does not wait for the others' reports at first",
        Idler.turn,
        " or now < self._led_since + NEWLY_LED",
        "",
        StormyIdle,
    ),
]


def seed(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Put the fault in place of the right line."""
    source = textwrap.dedent(inspect.getsource(fault.of))
    assert source.count(fault.right) == 1, (fault.right, source)
    module = sys.modules[fault.of.__module__]
    made: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + source.replace(fault.right, fault.wrong)
    exec(compile(code, f"<{fault.what}>", "exec"), dict(vars(module)), made)
    name = fault.of.__qualname__.split(".")
    monkeypatch.setattr(getattr(module, name[0]), name[1], made[name[1]])


def sought(examples: int) -> settings:
    """Look for a failure always the same way, and do not make it any simpler."""
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


EXAMPLES = 120


UNSEEN = {
    "ZERO is written before the provider shows it": "not within 120 examples",
    "it was used since": "not within 120 examples",
    "a request goes down at once without the store, though it is closed": "not within 120 examples",
    "a request looks before it joins": "not within 120 examples",
    "a worker passes its first request down, and reports later": "not within 120 examples",
    "a worker acknowledges what it has in use": "it undoes the drain before it reports",
    "a worker that was suspended relies on its entries": "not within 120 examples",
    "a worker that says nothing for a moment counts as gone": "not within 120 examples",
    "the idler does not take the function's lease": "not tried at length",
    "the idler does not make sure that it leads": "not tried at length",
    "a worker that has it in use lets it drain": "not tried at length",
    "a worker reads the drains, and reports then": "not tried at length",
    "a request goes down at once without the store, in a worker that has not reported": "not tried at length",
    "a request that waits takes an old answer": "not tried at length",
    "not even this worker is among those who have": "not tried at length",
    "the lease is not renewed before the stop": "not within 120 examples",
    "an entry is good though the end of one drain was missed": "not tried at length",
    "nobody ends what was left": "not tried at length",
    "who decides does not wait for the others' reports at first": "not tried at length",
}
"""Faults that the model has not been seen to find, and why; no test claims anything of them."""


@pytest.mark.soak
@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.what not in UNSEEN], ids=lambda fault: fault.what
)
def test_a_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    seed(monkeypatch, fault)
    look = fault.machine
    if isinstance(look, type):
        look = partial(run_state_machine_as_test, look, settings=sought(EXAMPLES))
    with pytest.raises(AssertionError):
        look()
