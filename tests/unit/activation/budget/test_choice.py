"""Which function goes for another: beside LRU, on traces at random."""

from __future__ import annotations

import math
import os
import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero_wsgi import Function
from scalezero_wsgi.activation.budget.eviction import Candidate, choose, cost
from scalezero_wsgi.activation.budget.limits import Limit, Limits, Need

RUNNING, MEMORY = Limit("max_running", "", 3), Limit("max_memory", "", 8)
SOAK = int(os.environ.get("SCALEZERO_SOAK", "200"))


def candidate(name: str, unused_for: float = 10.0, start: float = 1.0, memory: int = 1) -> Candidate:
    return Candidate(Function(name), Need("", memory), unused_for, start)


def chosen(candidates: list[Candidate], short: dict[Limit, int]) -> list[str]:
    return [function.name for function in choose(candidates, short)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (candidate("a", unused_for=11), candidate("b", unused_for=10)),
        (candidate("a", start=1), candidate("b", start=30)),
        (candidate("a", memory=4), candidate("b", memory=2)),
        (candidate("a", unused_for=11, start=0.9), candidate("b", unused_for=10, start=0.2)),
        (candidate("a", unused_for=math.inf, start=60), candidate("b", unused_for=1e6)),
    ],
    ids=["long unused", "quick to start", "large", "a start is not measured that exactly", "never used"],
)
def test_what_goes_first(first: Candidate, second: Candidate) -> None:
    assert cost(first, {MEMORY: 1}) < cost(second, {MEMORY: 1})
    assert chosen([second, first], {MEMORY: 1}) == ["a"]


def test_where_functions_are_counted_their_memory_does_not_matter() -> None:
    assert chosen([candidate("a", 11, memory=1), candidate("b", 10, memory=8)], {RUNNING: 1}) == ["a"]


def test_none_goes_in_vain() -> None:
    assert chosen([candidate("a", memory=2), candidate("b", memory=1)], {MEMORY: 4}) == []


def test_one_that_frees_nothing_of_what_is_missing_stays() -> None:
    assert chosen([candidate("a", 100, memory=0), candidate("b", memory=1)], {MEMORY: 1}) == ["b"]


def test_a_small_one_is_spared_when_a_large_one_has_to_go_anyway() -> None:
    assert chosen([candidate("a", 100, memory=1), candidate("b", memory=6)], {MEMORY: 6}) == ["b"]


def test_of_two_things_that_are_missing_both_are_freed() -> None:
    found = chosen([candidate("a", 100, memory=0), candidate("b", 50, memory=3)], {RUNNING: 1, MEMORY: 2})
    assert found == ["b"]


class Starts(NamedTuple):
    number: int
    seconds: float


class Trace:
    """Requests at random, some functions more often than others, for a host that cannot hold them all."""

    def __init__(self, seed: int, mixed: bool, kinds: int = 12) -> None:
        chance = random.Random(seed)
        self.sizes = [chance.choice([1, 2, 4, 8]) if mixed else 4 for _ in range(kinds)]
        self.starts = [chance.choice([1, 2, 5, 20, 60]) if mixed else 3 for _ in range(kinds)]
        skew = chance.choice([0.5, 1.0, 1.5])
        weights = [(each + 1) ** -skew for each in range(kinds)]
        chance.shuffle(weights)
        self.uses = [
            (chance.choices(range(kinds), weights)[0], chance.expovariate(1 / 30)) for _ in range(300)
        ]
        self.limits = Limits(memory=24)

    def missing(self, up: dict[int, float], wanted: int) -> dict[Limit, int]:
        return self.limits.shortage([self.need(each) for each in up], self.need(wanted))

    def need(self, each: int) -> Need:
        return Need("", self.sizes[each])

    def run(self, lru: bool) -> Starts:
        up: dict[int, float] = {}
        now, begun = 0.0, []
        for wanted, pause in self.uses:
            now += pause
            if wanted not in up:
                begun.append(self.starts[wanted])
                if lru:
                    while self.missing(up, wanted):
                        del up[min(up, key=lambda each: up[each])]
                elif short := self.missing(up, wanted):
                    for function in choose(self.candidates(up, now), short):
                        del up[int(function.name)]
                assert not self.missing(up, wanted)
            up[wanted] = now
        return Starts(len(begun), sum(begun))

    def candidates(self, up: dict[int, float], now: float) -> list[Candidate]:
        return [
            Candidate(Function(str(each)), self.need(each), now - used_at, self.starts[each])
            for each, used_at in up.items()
        ]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_among_functions_that_are_alike_it_is_lru(seed: int) -> None:
    trace = Trace(seed, mixed=False)
    assert trace.run(lru=False) == trace.run(lru=True)


def beside_lru(seeds: range) -> None:
    traces = [Trace(seed, mixed=True) for seed in seeds]
    ours, lru = [trace.run(lru=False) for trace in traces], [trace.run(lru=True) for trace in traces]
    assert sum(each.number for each in ours) <= sum(each.number for each in lru)
    assert sum(each.seconds for each in ours) <= 0.7 * sum(each.seconds for each in lru)


def test_among_others_fewer_are_started_than_with_lru_and_far_fewer_seconds_are_waited() -> None:
    beside_lru(range(15))


@pytest.mark.soak
def test_that_holds_for_many_traces() -> None:
    beside_lru(range(100, 100 + SOAK))
