"""The whole way, from requests to functions that go, beside LRU: by a clock that stands still."""

from __future__ import annotations

import os
from collections import OrderedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.activation.budget.simulated import Fleet

SOAK = int(os.environ.get("SCALEZERO_SOAK", "200"))
NAMES = "abcde"

traces = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 1), st.sampled_from([1.5, 3.0, 20.0])), max_size=25
)


def lru_starts(names: str, running: int) -> int:
    """Return how many starts LRU needs for a trace."""
    up: OrderedDict[str, None] = OrderedDict()
    starts = 0
    for name in names:
        if name not in up:
            starts += 1
            while len(up) >= running:
                up.popitem(last=False)
        up[name] = None
        up.move_to_end(name)
    return starts


def test_the_oracle() -> None:
    assert lru_starts("abac", 2) == 3
    assert lru_starts("abaca", 2) == 3
    assert lru_starts("abcabc", 2) == 6


def keeps_the_bounds(trace: list[tuple[str, int, float]], running: int) -> None:
    fleet = Fleet(NAMES, running)
    for name, worker, pause in trace:
        fleet.workers[worker].use(name)
        fleet.sleep(pause)  # longer than the workers need to tell each other of the use
    assert len(fleet.host.starts) <= lru_starts("".join(name for name, _, _ in trace), running)
    assert fleet.host.most <= running
    assert fleet.host.cut == []


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traces, st.integers(1, 3))
def test_no_more_starts_than_with_lru_and_never_more_up(
    trace: list[tuple[str, int, float]], running: int
) -> None:
    keeps_the_bounds(trace, running)


@pytest.mark.soak
@settings(max_examples=SOAK, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traces, st.integers(1, 3))
def test_that_holds_for_many_traces(trace: list[tuple[str, int, float]], running: int) -> None:
    keeps_the_bounds(trace, running)


@pytest.mark.parametrize("names", ["abac", "abacabac", "aabbcc", "abcdeabcde"])
def test_traces_by_name(names: str) -> None:
    keeps_the_bounds([(name, number % 2, 2.0) for number, name in enumerate(names)], 2)


def test_one_in_use_does_not_go_though_it_is_the_one_used_longest_ago() -> None:
    fleet = Fleet("abc", 2)
    first, second = fleet.workers

    def meanwhile() -> None:
        fleet.sleep(2.0)
        second.use("b")
        fleet.sleep(2.0)
        second.use("c")

    first.use("a", 5.0, meanwhile)
    assert fleet.host.starts == ["a", "b", "c"]
    assert set(fleet.host.up) == {"a", "c"}
    assert fleet.host.cut == []


def test_none_goes_before_it_was_up_for_its_time() -> None:
    fleet = Fleet("ab", 1, min_uptime=30.0)
    fleet.workers[0].use("a")
    up_at = fleet.host.up["a"]
    fleet.sleep(2.0)
    fleet.workers[1].use("b")
    assert up_at + 30.0 <= fleet.host.up["b"] <= up_at + 33.0


def test_uses_of_functions_that_are_at_zero_are_forgotten() -> None:
    fleet = Fleet("abcdef", running=2)
    worker = fleet.workers[0]
    for name in "abcdef":
        worker.use(name, 1.0)
        fleet.sleep(5.0)
    remembered = worker.budget._notes.get().uses.used_at
    assert {function.name for function in remembered} <= {"d", "e", "f"}
