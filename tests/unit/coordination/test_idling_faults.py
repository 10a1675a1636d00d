"""Each step of the way back to zero with a fault in it: the model finds it.

A fault is a line of the step as it is, and as it would be wrong. ``UNSEEN`` tells of those that do no harm.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest

from scalezero_wsgi.activation.idling.drain import FunctionDrain
from scalezero_wsgi.activation.idling.gate import Gate
from scalezero_wsgi.activation.idling.idler import Idler
from scalezero_wsgi.coordination.base import DrainPhase
from tests.unit.coordination import test_idling_machine as stories
from tests.unit.coordination.idling import Request
from tests.unit.coordination.test_idling_schedules import (
    RESOLVED,
    a_worker_comes_back_that_counts_as_gone,
    a_worker_hangs_in_use,
    a_worker_in_use_notices_a_drain,
    first_requests_held_up,
    requests_during_a_drain,
    requests_held_up,
    the_end_of_a_drain_is_missed,
    the_store_forgets,
    the_store_is_lost,
    turns_held_up,
    who_decides_dies,
    who_decides_hangs,
)


class Fault(NamedTuple):
    """
    :ivar step: of the table in ``ARCHITECTURE.md``; "after": what a worker that has died leaves.
    :ivar what: in words.
    :ivar of: the function that has the line.
    :ivar right: the text as it is, once in there, which begins at the margin.
    :ivar wrong: the text instead.
    :ivar by: the schedules, or the story, by which it is found.
    """

    step: str
    what: str
    of: Callable[..., Any]
    right: str
    wrong: str
    by: Callable[[], None]


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
        partial(requests_held_up, None, 0),
    ),
    Fault(
        "1",
        "a request does not look at what is closed",
        Gate.is_open,
        "state.function in self.closed",
        "False",
        partial(turns_held_up, 0.3),
    ),
    Fault(
        "1",
        "a request does not look at its entry",
        Gate.is_open,
        "if now is meta:",
        "if True:",
        partial(requests_held_up, None, 1, again=True),
    ),
    Fault(
        "1",
        "a request takes the address of an earlier start",
        Gate.is_open,
        " and now.status.endpoint == meta.status.endpoint",
        "",
        stories.test_an_entry_of_an_earlier_start_is_not_used,
    ),
    Fault(
        "2",
        "the idler does not take the function's lease",
        FunctionDrain.stop,
        "peers.lead(self._function,",
        "peers.lead(self._function._replace(name='.drain'),",
        partial(requests_held_up, DrainPhase.STOPPING, 1),
    ),
    Fault(
        "2",
        "an epoch comes twice",
        FunctionDrain._begin,
        "DrainPhase.DRAINING, self._lease.token",
        "DrainPhase.DRAINING, 1",
        first_requests_held_up,
    ),
    Fault(
        "2",
        "the idler does not make sure that it leads",
        FunctionDrain._begin,
        "if not self._still_leads():",
        "if False:",
        partial(the_store_forgets, 0.3),
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
        partial(turns_held_up, 0.3),
    ),
    Fault(
        "3",
        "a worker acknowledges what it has in use",
        Gate._tell,
        " if not self._is_used(function, epoch)",
        "",
        partial(turns_held_up, 0.3),
    ),
    Fault(
        "3",
        "a worker that has it in use lets it drain",
        Gate._turn,
        "if function in self._uses.in_use and drains.get(function) == draining:",
        "if False:",
        a_worker_in_use_notices_a_drain,
    ),
    Fault(
        "3",
        "a worker passes its first request down, and reports later",
        Gate._join,
        "if self._clock() <= self._expires_at - VANISHED / 2:",
        "if True:",
        first_requests_held_up,
    ),
    Fault(
        "3",
        "a worker reads the drains, and reports then",
        Gate._turn,
        "self._send(WorkerReport(self.name), VANISHED)",
        "pass",
        first_requests_held_up,
    ),
    Fault(
        "3",
        "a worker that was suspended relies on its entries",
        Gate._turn,
        "self._cache.mark_suspect(state.function)",
        "pass",
        a_worker_comes_back_that_counts_as_gone,
    ),
    Fault(
        "3",
        "a worker that says nothing for a moment counts as gone",
        Gate._send,
        "self._use(self._store.report, report, ttl)",
        "self._use(self._store.report, report, 0.5)",
        a_worker_hangs_in_use,
    ),
    Fault(
        "4",
        "a request goes down without undoing the drain",
        Gate.enter,
        'if self.cancel(function, drain, "a request came"):',
        "if True:",
        first_requests_held_up,
    ),
    Fault(
        "4",
        "a request goes down while it is stopped",
        Gate.enter,
        "return self._wait_out(function, drain.epoch)",
        "return True",
        partial(requests_during_a_drain, 1, 0.0),
    ),
    Fault(
        "4",
        "a request opens whatever the epoch",
        Gate._open,
        "if self.closed.get(function) == epoch:",
        "if function in self.closed:",
        stories.test_a_request_that_undid_a_drain_and_is_held_up_does_not_open_the_next,
    ),
    Fault(
        "4",
        "a request goes down at once without the store, though it is closed",
        Gate._enter_alone,
        "if now <= self._alone_since + ALONE:",
        "if False:",
        partial(the_store_is_lost, 0.5, 0.3),
    ),
    Fault(
        "4",
        "a request goes down at once without the store, in a worker that has not reported",
        Gate._enter_alone,
        "if now <= self._expires_at or now > self._alone_since + ALONE:",
        "if True:",
        stories.test_a_worker_that_has_never_reported_does_not_rely_on_a_provider_that_lags,
    ),
    Fault(
        "4",
        "a request that waits takes an old answer",
        Request._slow,
        "since = clock()",
        "pass",
        partial(requests_held_up, DrainPhase.DRAINING, 1, 0.3),
    ),
    Fault(
        "5",
        "not all have acknowledged",
        FunctionDrain._await_acknowledged,
        "here and not missing",
        "here",
        first_requests_held_up,
    ),
    Fault(
        "5",
        "not even this worker is among those who have",
        FunctionDrain._await_acknowledged,
        "here and not missing",
        "not missing",
        partial(the_store_forgets, 0.3),
    ),
    Fault(
        "5",
        "it was used since",
        FunctionDrain._await_acknowledged,
        "return None if max(left) <= 0 else",
        "return None if True else",
        partial(requests_during_a_drain, 0, 0.0),
    ),
    Fault(
        "5",
        "the provider is not asked again",
        FunctionDrain._look_once_more,
        "if self._query().status != status:",
        "if False:",
        stories.test_another_writers_change_stands,
    ),
    Fault(
        "5",
        "STOPPING is written whatever is there",
        FunctionDrain._begin,
        "self._change(draining, stopping, KEEP_DRAIN)",
        "self._change(self._drain_now(), stopping, KEEP_DRAIN)",
        partial(requests_during_a_drain, 1, 0.0),
    ),
    Fault(
        "5",
        "the lease is not renewed before the stop",
        FunctionDrain._stop,
        "if not self._lease.holds():",
        "if False:",
        partial(who_decides_hangs, RESOLVED, is_lost=True),
    ),
    Fault(
        "5",
        "ZERO is written before the provider shows it",
        FunctionDrain._await_zero,
        "if status is not None and not as_before and status.available_replicas == 0:",
        "if status is not None:",
        partial(requests_held_up, DrainPhase.STOPPING, 0, 0.3),
    ),
    Fault(
        "6",
        "an entry from before is good, however it ended",
        Gate._open,
        "if ended != Drain(DrainPhase.READY, epoch):",
        "if False:",
        partial(requests_held_up, None, 1, again=True),
    ),
    Fault(
        "6",
        "an entry is good though the end of one drain was missed",
        Gate._follow,
        "if before not in (None, drain.epoch):",
        "if False:",
        the_end_of_a_drain_is_missed,
    ),
    Fault(
        "after",
        "STOPPING is undone at once",
        FunctionDrain._resolve,
        "self._await_zero(drain, SETTLE)",
        "(self._change(drain, None, KEEP_ENDED), False)[1]",
        stories.test_who_has_stopped_it_dies_and_the_provider_lags,
    ),
    Fault(
        "after",
        "nobody ends what was left",
        Idler.turn,
        "self._drain(function, now, None)",
        "pass",
        partial(who_decides_dies, False),
    ),
    Fault(
        "after",
        "who decides does not wait for the others' reports at first",
        Idler.turn,
        "if now < self._led_since + NEWLY_LED:",
        "if False:",
        partial(the_store_forgets, 0.3),
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


UNSEEN = {
    "a worker acknowledges what it has in use": "it undoes the drain before it reports",
    "a worker reads the drains, and reports then": "a request reads them again, after the report",
}
"""Faults that nothing is seen of, and why: something else makes up for them."""


def test_each_line_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who changes a step sees at once that its fault has to be changed, too."""
    for fault in FAULTS:
        with monkeypatch.context() as patch:
            seed(patch, fault)


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.by()
    seed(monkeypatch, fault)
    if fault.what in UNSEEN:
        fault.by()
        return
    with pytest.raises((AssertionError, ValueError)) as found:
        fault.by()
    print(fault.what, "→", str(found.value)[:200] or found.traceback[-1])
