"""What is remembered of a function's starts, and what an answer or another worker changes of it."""

from __future__ import annotations

import pytest

from scalezero_wsgi import FunctionCache
from scalezero_wsgi.activation.state import NEVER, STABLE, FunctionMeta, FunctionState, LastStart
from scalezero_wsgi.coordination.base import Failure, SharedStatus, Start
from scalezero_wsgi.model import FunctionFailed, ReplicaStatus
from tests.support.clock import Clock
from tests.support.fakes import HELLO, STARTING, UP, ZERO


def started(at: float = 10.0) -> FunctionState:
    state = FunctionState(HELLO)
    state.begin_start(at)
    return state


def see(state: FunctionState, status: ReplicaStatus, at: float) -> None:
    """As a refresh does: the answer becomes the entry afterwards."""
    state.observe(status, at)
    state.meta = FunctionMeta(at, status, state)


def start(state: FunctionState) -> LastStart:
    assert state.start is not None
    return state.start


class TestObserve:
    def test_an_answer_to_a_question_from_before_the_start_says_nothing_of_it(self) -> None:
        state = started(at=10.0)
        see(state, UP, 9.0)
        assert (start(state).shown, start(state).up_at) == (False, None)

    def test_it_came_up_when_it_was_first_seen_up(self) -> None:
        state = started(at=10.0)
        see(state, STARTING, 11.0)
        assert (start(state).shown, start(state).up_at) == (True, None)
        see(state, UP, 12.0)
        see(state, UP, 13.0)
        assert state.came_up_at == 12.0

    def test_what_was_shown_once_stays_shown(self) -> None:
        state = started()
        see(state, STARTING, 11.0)
        see(state, ZERO, 12.0)
        assert start(state).shown

    def test_a_start_by_somebody_else_is_one_too(self) -> None:
        state = FunctionState(HELLO)
        see(state, UP, 1.0)
        assert state.start is None  # it may have been up for long
        see(state, ZERO, 2.0)
        see(state, UP, 3.0)
        assert (start(state).at, state.came_up_at) == (3.0, 3.0)

    def test_but_not_as_seen_from_an_entry_that_is_older_than_the_start(self) -> None:
        state = FunctionState(HELLO)
        see(state, ZERO, 2.0)
        state.start = told = LastStart("another worker's", 3.0, shown=True, up_at=4.0)
        see(state, UP, 5.0)
        assert state.start is told


class TestUnseenStart:
    def test_it_is_pending_until_it_shows_or_fails_or_some_time_has_passed(self) -> None:
        state = started(at=10.0)
        assert state.unseen_start(11.9, within=2.0) is state.start
        assert state.unseen_start(12.0, within=2.0) is None
        state.fail_start("no", 11.0)
        assert state.unseen_start(11.0, within=2.0) is None
        state = started(at=10.0)
        see(state, STARTING, 11.0)
        assert state.unseen_start(11.0, within=2.0) is None


class TestFailures:
    def test_each_in_a_row_doubles_the_rest_which_ends(self) -> None:
        state = started()
        now = 10.0
        for rest in (1.0, 2.0, 4.0):
            state.fail_start("no", now)
            with pytest.raises(FunctionFailed) as caught:
                state.refuse_while_resting(now)
            assert caught.value.retry_after == rest
            now += rest
            state.refuse_while_resting(now)
        now += STABLE + 0.1
        state.fail_start("no", now)
        assert state.failure is not None
        assert (state.failure.count, state.failure.retry_at) == (1, now + 1.0)

    def test_one_is_that_of_the_last_start(self) -> None:
        state = started()
        state.fail_start("no", 11.0)
        assert state.failure is not None
        assert state.failure.start == start(state).name
        assert not state.note_end("no", 12.0)

    def test_an_end_soon_after_the_start_is_one_once_and_rests_from_the_start_on(self) -> None:
        assert not FunctionState(HELLO).note_end("no", 10.0)
        assert not started(at=10.0).note_end("no", 10.1 + STABLE)
        state = started(at=10.0)
        assert state.note_end("no", 10.0 + STABLE)
        assert not state.note_end("no", 10.0 + STABLE)
        assert state.failure is not None
        assert (state.failure.count, state.failure.retry_at) == (1, 11.0)


class TestShared:
    def test_a_start_a_failure_and_the_durations_are_told_and_learned(self) -> None:
        state, other = started(at=10.0), FunctionState(HELLO)
        see(state, UP, 11.0)
        state.fail_start("no", 12.0)
        state.durations = (1.0,)
        shared = state.share(SharedStatus(ZERO), 12.5)
        assert shared.durations == (1.0,)
        other.apply(shared, 112.5)  # by a clock of its own
        assert other.start == LastStart(start(state).name, 110.0, shown=True, up_at=111.0)
        with pytest.raises(FunctionFailed) as caught:
            other.refuse_while_resting(112.5)
        assert caught.value.retry_after == 0.5

    def test_an_old_failure_is_told_no_longer(self) -> None:
        state = started()
        state.fail_start("no", 10.0)
        assert state.share(SharedStatus(ZERO), 11.0 + STABLE).failure is not None
        assert state.share(SharedStatus(ZERO), 11.1 + STABLE).failure is None

    def test_of_two_failures_the_one_that_rests_longer_counts(self) -> None:
        state = started()
        state.fail_start("mine", 10.0)
        mine = state.failure
        state.apply(SharedStatus(ZERO, failure=Failure(1, "other", "earlier", left=0.5)), 10.0)
        assert state.failure is mine
        assert mine is not None
        state.apply(SharedStatus(ZERO, failure=Failure(1, mine.start, "the same, late", left=5.0)), 10.0)
        assert state.failure is mine
        state.apply(SharedStatus(ZERO, failure=Failure(2, "other", "later", left=5.0)), 10.0)
        assert (state.failure.reason, state.failure.retry_at) == ("later", 15.0)

    def test_of_two_starts_the_later_counts(self) -> None:
        state = started(at=10.0)
        mine = state.start
        state.apply(SharedStatus(ZERO, start=Start("earlier", age=3.0)), 11.0)
        assert state.start is mine
        state.apply(SharedStatus(ZERO, start=Start("later", age=0.5)), 11.0)
        assert start(state).name == "later"

    def test_of_the_same_start_it_is_learned_that_it_was_shown_and_when_it_came_up(self) -> None:
        state = started(at=10.0)
        name = start(state).name
        state.apply(SharedStatus(ZERO, start=Start(name, age=1.0, shown=True)), 11.0)
        state.apply(SharedStatus(ZERO, start=Start(name, age=1.0)), 11.0)
        assert (start(state).shown, state.came_up_at) == (True, NEVER)
        state.apply(SharedStatus(ZERO, start=Start(name, age=4.0, shown=True, up_for=1.0)), 14.0)
        assert state.came_up_at == 13.0
        state.apply(SharedStatus(ZERO, start=Start(name, age=5.0, shown=True, up_for=None)), 15.0)
        assert state.came_up_at == 13.0


def test_each_start_has_a_name_of_its_own() -> None:
    assert start(started()).name != start(started()).name


def test_an_entry_that_became_suspect_was_seen_when_it_was_answered() -> None:
    """However often: who used the function after the answer knows more of it than the entry does."""
    clock = Clock()
    cache = FunctionCache(1.0, clock=clock)
    assert cache.set("hello", ZERO, asked_at=0.0).seen_at == 0.0
    for now in (5.0, 6.0):
        clock.now = now
        cache.mark_suspect(HELLO)
        meta = cache.find(HELLO)
        assert meta is not None
        assert (meta.last_refresh, meta.seen_at) == (now, 0.0)
    assert cache.set("hello", UP).seen_at == 6.0
