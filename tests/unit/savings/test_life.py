"""How a function's life goes on with what is told of it."""

from __future__ import annotations

from scalezero_wsgi.savings.life import (
    RACE,
    UNHEARD,
    Change,
    Life,
    Span,
    State,
    paused,
    ready,
    requested,
    seen,
    stopped,
)

UP = Life(State.UP, 100.0, 150.0, 2)
AT_ZERO = Life(State.AT_ZERO, 100.0, 150.0)


def test_a_start_begins_when_the_provider_was_called() -> None:
    assert requested(UNHEARD, 200.0, 5.0, 2) == Change(Life(State.UP, 195.0, 200.0, 2), [], [195.0])


def test_a_stop_ends_all_that_was_up_although_nobody_looked() -> None:
    assert stopped(UP, 300.0) == Change(
        Life(State.AT_ZERO, 300.0, 300.0, 2), [Span(State.UP, 100.0, 300.0, 2)]
    )
    assert stopped(AT_ZERO, 300.0).spans == []


def test_what_ended_without_a_word_is_known_as_far_as_it_was_seen() -> None:
    change = requested(UP, 300.0, 1.0, 1)
    assert change.spans == [Span(State.UP, 100.0, 150.0, 2), Span(State.UNKNOWN, 150.0, 299.0, 2)]
    assert change.starts == [299.0]
    assert seen(UP, 300.0, State.AT_ZERO, 0).spans == [
        Span(State.UP, 100.0, 150.0, 2),
        Span(State.UNKNOWN, 150.0, 300.0, 2),
    ]


def test_a_start_may_be_seen_before_it_is_told() -> None:
    found = seen(AT_ZERO, 160.0, State.UP, 1)
    assert (found.life, found.starts) == (Life(State.UP, 160.0, 160.0, 1), [160.0])
    told = requested(found.life, 160.0 + RACE, 0.0, 1)
    assert told == Change(Life(State.UP, 160.0, 160.0 + RACE, 1))


def test_a_start_of_which_nobody_could_tell() -> None:
    assert ready(AT_ZERO, 300.0, 4.0, led=True).life == Life(State.UP, 296.0, 300.0, 1)
    assert ready(AT_ZERO, 300.0, 4.0, led=False).life == AT_ZERO
    assert ready(UP, 300.0, 4.0, led=False) == Change(UP._replace(seen_at=300.0))


def test_a_pause() -> None:
    change = paused(UP, 300.0)
    assert change == Change(Life(State.PAUSED, 300.0, 300.0, 2), [Span(State.UP, 100.0, 300.0, 2)])
    assert requested(change.life, 500.0, 0.0, 1).spans == [Span(State.PAUSED, 300.0, 500.0, 2)]
    assert stopped(change.life, 500.0).spans == [Span(State.PAUSED, 300.0, 500.0, 2)]


def test_what_somebody_else_does_is_seen() -> None:
    assert seen(AT_ZERO, 160.0, State.UP, 3).spans == [Span(State.UNKNOWN, 150.0, 160.0, 3)]
    assert seen(UNHEARD, 160.0, State.UP, 1).spans == []
    more = seen(UP, 160.0, State.UP, 3)
    assert more == Change(Life(State.UP, 160.0, 160.0, 3), [Span(State.UP, 100.0, 160.0, 2)])
    assert seen(UP, 160.0, State.UP, 2) == Change(UP._replace(seen_at=160.0))


def test_an_answer_from_before_the_last_change_says_nothing() -> None:
    assert seen(UP, 99.0, State.AT_ZERO, 0) == Change(UP)


def test_a_clock_that_was_put_back_makes_no_time_negative() -> None:
    for change in (stopped(UP, 50.0), paused(UP, 50.0), requested(UP, 50.0, 0.0, 1)):
        assert all(span.begin <= span.end for span in change.spans)
        assert change.life.since >= UP.since


def test_what_is_still_up_is_known_as_far_as_it_was_seen() -> None:
    assert UP.spans(400.0) == [Span(State.UP, 100.0, 150.0, 2), Span(State.UNKNOWN, 150.0, 400.0, 2)]
    assert UP.spans(120.0) == [Span(State.UP, 100.0, 120.0, 2)]
    assert AT_ZERO.spans(400.0) == []
