from __future__ import annotations

import math
import threading
import time
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scalezero_wsgi import Function, FunctionCache, FunctionMeta, ReplicaStatus
from scalezero_wsgi.model import AT_ZERO
from tests.support.clock import Clock

EXPIRY = 4
MISSING_EXPIRY = 3
MAXSIZE = 3
UP = ReplicaStatus(1, 1)
HELLO = Function("hello")
FUNCTIONS = [Function("a"), Function("b"), Function("a", "dev"), Function("c"), Function("d")]
SOME_FUNCTION = st.sampled_from(FUNCTIONS)
SOME_STATUS = st.builds(ReplicaStatus, st.integers(0, 3), st.integers(0, 3))


class FunctionCacheAgainstDicts(RuleBasedStateMachine):
    """The models are dicts in the order of setting: the entries, and until when a function is missing."""

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.cache = FunctionCache(EXPIRY, maxsize=MAXSIZE, missing_expiry=MISSING_EXPIRY, clock=self.clock)
        self.entries: dict[Function, tuple[float, ReplicaStatus, bool]] = {}
        self.missing: dict[Function, float] = {}
        self.usages: dict[Function, object] = {}

    def _renew(self, function: Function, entry: tuple[float, ReplicaStatus, bool]) -> None:
        self.entries.pop(function, None)
        self.entries[function] = entry
        if len(self.entries) > MAXSIZE:
            del self.entries[next(iter(self.entries))]

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(function=SOME_FUNCTION, status=SOME_STATUS)
    def set(self, function: Function, status: ReplicaStatus) -> None:
        meta = self.cache.set(function.name, status, function.namespace)
        assert (meta.function, meta.status, meta.last_refresh) == (function, status, self.clock())
        self._renew(function, (self.clock(), status, False))
        self.missing.pop(function, None)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), status=SOME_STATUS, age=st.integers(0, 10))
    def set_what_was_asked_a_while_ago(self, data: st.DataObject, status: ReplicaStatus, age: int) -> None:
        function = data.draw(st.sampled_from(sorted(self.entries)))
        asked_at = self.clock() - age
        meta = self.cache.set(function.name, status, function.namespace, asked_at=asked_at)
        assert (meta.status, meta.last_refresh) == (status, asked_at)
        known = self.entries[function]
        self._renew(function, known if known[0] > asked_at else (asked_at, status, False))

    @rule(function=SOME_FUNCTION)
    def doubt(self, function: Function) -> None:
        self.cache.mark_suspect(function)
        if function in self.entries:
            self._renew(function, (self.clock(), self.entries[function][1], True))

    @rule(function=SOME_FUNCTION)
    def set_missing(self, function: Function) -> None:
        self.cache.set_missing(function)
        self.entries.pop(function, None)
        self.missing.pop(function, None)
        self.missing[function] = self.clock() + MISSING_EXPIRY
        if len(self.missing) > MAXSIZE:
            del self.missing[next(iter(self.missing))]

    @invariant()
    def the_use_of_a_function_stays_as_long_as_its_entry(self) -> None:
        usages = {function: meta.state for function in FUNCTIONS if (meta := self.cache.find(function))}
        for function, usage in usages.items():
            assert self.usages.get(function, usage) is usage
        self.usages = dict(usages)

    @invariant()
    def answers_as_the_model_does(self) -> None:
        now = self.clock()
        assert len(self.cache) == len(self.entries) <= MAXSIZE
        for function in FUNCTIONS:
            entry = self.entries.get(function)
            if entry is None:
                assert self.cache.get(*function) == (AT_ZERO, False)
                assert self.cache.find(function) is None
            else:
                last_refresh, status, doubted = entry
                assert self.cache.get(*function) == (status, not doubted and now - last_refresh <= EXPIRY)
                meta = self.cache.find(function)
                assert meta is not None
                assert meta.available == (status.available_replicas > 0 and not doubted)
            assert self.cache.is_missing(function) == (self.missing.get(function, -1) >= now)


FunctionCacheAgainstDicts.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestFunctionCacheAgainstDicts = FunctionCacheAgainstDicts.TestCase


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> FunctionCache:
    return FunctionCache(0.25, missing_expiry=1.0, clock=clock)


def test_an_unknown_function_has_zero_replicas_and_is_a_miss(cache: FunctionCache) -> None:
    status, hit = cache.get("hello")
    assert (status.replicas, status.available_replicas, hit) == (0, 0, False)


def test_a_fresh_entry_is_a_hit_up_to_the_very_moment_of_its_expiry(
    cache: FunctionCache, clock: Clock
) -> None:
    cache.set("hello", UP)
    clock.now = 0.25
    assert cache.get("hello") == (UP, True)
    clock.now = math.nextafter(0.25, 1)
    assert cache.get("hello") == (UP, False)


@given(st.floats(0, 1e6), st.floats(0, 1e3))
def test_an_entry_expires_strictly_later_than_its_last_refresh_and_the_expiry(
    last_refresh: float, expiry: float
) -> None:
    meta = FunctionMeta(last_refresh, UP)
    end = last_refresh + expiry
    assert not meta.expired(expiry, last_refresh)
    assert not meta.expired(expiry, end)
    assert meta.expired(expiry, math.nextafter(end, math.inf))


def test_an_entry_reads_the_present_if_no_moment_is_given() -> None:
    assert FunctionMeta(time.monotonic() - 10, UP).expired(5)
    assert not FunctionMeta(time.monotonic(), UP).expired(3600)


def test_an_entry_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        FunctionMeta(0.0, UP).status = AT_ZERO  # type: ignore[misc]


def test_the_same_name_in_two_namespaces_is_two_entries(cache: FunctionCache) -> None:
    cache.set("hello", UP, "a")
    assert cache.get("hello", "a") == (UP, True)
    assert cache.get("hello", "b") == (AT_ZERO, False)
    assert cache.get("hello") == (AT_ZERO, False)


def test_the_cache_keeps_real_time_by_default() -> None:
    cache = FunctionCache(3600)
    cache.set("hello", UP)
    assert cache.get("hello") == (UP, True)
    assert cache.clock is time.monotonic


@pytest.mark.parametrize("status", [UP, AT_ZERO, ReplicaStatus(1, 0)])
def test_an_entry_is_available_only_with_an_available_replica(
    cache: FunctionCache, status: ReplicaStatus
) -> None:
    assert cache.set("hello", status).available == (status is UP)


def test_a_doubted_entry_keeps_its_status_but_is_neither_hit_nor_available(cache: FunctionCache) -> None:
    cache.set("hello", UP)
    cache.mark_suspect(HELLO)
    meta = cache.find(HELLO)
    assert meta is not None
    assert not meta.available
    assert cache.get("hello") == (UP, False)


def test_an_answer_from_before_the_doubt_does_not_end_it(cache: FunctionCache, clock: Clock) -> None:
    cache.set("hello", UP)
    clock.advance(2)
    cache.mark_suspect(HELLO)
    cache.set("hello", UP, asked_at=1.0)
    assert cache.get("hello") == (UP, False)
    clock.advance(0.1)
    cache.set("hello", UP)
    assert cache.get("hello") == (UP, True)


def test_to_doubt_an_unknown_function_makes_no_entry(cache: FunctionCache) -> None:
    cache.mark_suspect(HELLO)
    assert len(cache) == 0


def test_an_answer_older_than_the_known_one_is_not_taken(cache: FunctionCache, clock: Clock) -> None:
    clock.advance(5)
    cache.set("hello", UP, asked_at=4.9)
    cache.set("hello", AT_ZERO, asked_at=4.8)
    assert cache.get("hello") == (UP, True)


def test_an_answer_counts_from_when_it_was_asked_for(cache: FunctionCache, clock: Clock) -> None:
    clock.advance(5)
    cache.set("hello", UP, asked_at=4.0)
    assert cache.get("hello") == (UP, False)


def test_a_missing_function_is_remembered_apart_and_for_its_own_time(
    cache: FunctionCache, clock: Clock
) -> None:
    cache.set("hello", UP)
    cache.set_missing(HELLO)
    assert cache.get("hello") == (AT_ZERO, False)
    assert len(cache) == 0
    clock.now = 1.0
    assert cache.is_missing(HELLO)
    clock.now = math.nextafter(1.0, 2)
    assert not cache.is_missing(HELLO)


def test_a_function_that_was_never_asked_for_is_not_missing(cache: FunctionCache) -> None:
    assert not cache.is_missing(HELLO)


def test_a_status_ends_being_missing(cache: FunctionCache) -> None:
    cache.set_missing(HELLO)
    cache.set("hello", AT_ZERO)
    assert not cache.is_missing(HELLO)


def test_a_status_asked_for_before_the_function_was_found_missing_is_not_taken(
    cache: FunctionCache, clock: Clock
) -> None:
    clock.advance(5)
    cache.set_missing(HELLO)
    cache.set("hello", UP, asked_at=4.0)
    assert cache.is_missing(HELLO)
    assert cache.find(HELLO) is None


def test_the_use_of_a_function_outlives_its_entries(cache: FunctionCache) -> None:
    usage = cache.set("hello", UP).state
    assert cache.set("hello", AT_ZERO).state is usage
    cache.mark_suspect(HELLO)
    assert cache.set("hello", UP).state is usage
    assert cache.set("hello", UP, asked_at=-1.0).state is usage
    assert cache.set("hello", UP, "elsewhere").state is not usage


def test_the_use_of_a_function_outlives_a_passing_404(cache: FunctionCache) -> None:
    request = object()
    cache.set("hello", UP).state.in_flight.add(request)
    cache.set_missing(HELLO)
    assert request in cache.set("hello", UP).state.in_flight


def test_the_use_of_a_function_stays_however_many_others_come_while_its_entry_is_renewed(
    clock: Clock,
) -> None:
    cache = FunctionCache(0.25, maxsize=2, clock=clock)
    usage = cache.set("hello", UP).state
    for number in range(5):
        cache.set(f"other-{number}", UP)
        assert cache.set("hello", UP).state is usage


def test_a_new_function_was_never_used(cache: FunctionCache) -> None:
    usage = cache.set("hello", UP).state
    assert usage.in_flight == set()
    assert (usage.last_used, usage.came_up_at, usage.confirmed_at) == (-math.inf,) * 3


def test_a_hundred_thousand_invented_names_leave_as_many_as_the_bound_allows(clock: Clock) -> None:
    cache = FunctionCache(60, maxsize=100, missing_expiry=60, clock=clock)
    for number in range(50_000):
        cache.set(f"known-{number}", AT_ZERO)
        cache.set_missing(Function(f"missing-{number}"))
    assert len(cache) == 100
    assert cache.get("known-49899") == (AT_ZERO, False)
    assert cache.get("known-49900") == (AT_ZERO, True)
    assert not cache.is_missing(Function("missing-49899"))
    assert cache.is_missing(Function("missing-49900"))


def test_readers_see_whole_entries_while_writers_replace_them(cache: FunctionCache) -> None:
    cache.set("hello", UP)
    stop = threading.Event()
    torn: list[object] = []

    def read() -> None:
        while not stop.is_set():
            status, _ = cache.get("hello")
            if status.replicas != status.available_replicas or status.replicas == 0:
                torn.append(status)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 5_000):
        cache.set("hello", ReplicaStatus(number, number))
        cache.mark_suspect(HELLO)
    stop.set()
    for reader in readers:
        reader.join()
    assert not torn


def test_what_was_found_missing_does_not_stand_against_a_newer_answer() -> None:
    clock = Clock()
    cache = FunctionCache(0.25, clock=clock)
    clock.advance(1.0)
    cache.set("hello", ReplicaStatus(1, 1))
    cache.set_missing(Function("hello"), 0.5)
    assert not cache.is_missing(Function("hello"))
    assert cache.get("hello") == (ReplicaStatus(1, 1), True)
