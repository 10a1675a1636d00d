from __future__ import annotations

from collections.abc import Callable

from scalezero_wsgi import Function, ProviderError
from scalezero_wsgi.activation.outages import (
    FIRST_PAUSE,
    FORGOTTEN,
    LONGEST_PAUSE,
    RECENT,
    SILENT,
    WORKING,
    Outages,
)
from scalezero_wsgi.activation.state import FunctionState
from scalezero_wsgi.events import Event, OutageBegan, OutageEnded, Reporter
from scalezero_wsgi.model import ProviderSilent
from tests.support.clock import Clock

HELLO, OTHER = Function("hello"), Function("other")
DOWN = ProviderError("down")


class Bench:
    def __init__(self, jitter: Callable[[], float] = lambda: 0.5) -> None:
        self.clock = Clock()
        self.events: list[Event] = []
        self.state = FunctionState(HELLO)
        self.outages = Outages(self.clock, Reporter([self.events.append]), jitter)


def test_nothing_is_known_of_a_function_at_first() -> None:
    bench = Bench()
    assert bench.outages.error(bench.state) is None
    assert not bench.outages.resting(bench.state)
    bench.outages.answered(bench.state, 0.0)
    assert bench.events == []


def test_the_pauses_double_up_to_the_longest() -> None:
    bench = Bench()
    pauses = []
    for _ in range(8):
        bench.outages.failed(bench.state, DOWN)
        failed_at = bench.clock()
        while bench.outages.resting(bench.state):
            bench.clock.advance(0.125)
        pauses.append(bench.clock() - failed_at)
    assert pauses == [FIRST_PAUSE * 2**step for step in range(5)] + [LONGEST_PAUSE] * 3


def test_they_differ_by_a_quarter_so_that_not_all_ask_at_once() -> None:
    for jitter, pause in ((0.0, 0.75), (1.0, 1.25)):
        bench = Bench(lambda jitter=jitter: jitter)  # type: ignore[misc]
        bench.outages.failed(bench.state, DOWN)
        bench.clock.advance(pause * FIRST_PAUSE - 0.01)
        assert bench.outages.resting(bench.state)
        bench.clock.advance(0.02)
        assert not bench.outages.resting(bench.state)


def test_functions_are_apart() -> None:
    bench = Bench()
    bench.outages.failed(bench.state, DOWN)
    assert bench.outages.error(FunctionState(OTHER)) is None


def test_an_answer_ends_it() -> None:
    bench = Bench()
    bench.outages.failed(bench.state, DOWN)
    bench.clock.advance(1.0)
    bench.outages.answered(bench.state, bench.clock())
    assert bench.outages.error(bench.state) is None


def test_not_one_to_a_question_from_before_it_nor_a_slow_one() -> None:
    bench = Bench()
    bench.clock.advance(1.0)
    bench.outages.failed(bench.state, DOWN)
    bench.outages.answered(bench.state, 0.5)
    assert bench.outages.error(bench.state) is not None
    bench.clock.advance(10.0)
    bench.outages.answered(bench.state, bench.clock() - SILENT - 0.1)
    assert bench.outages.error(bench.state) is not None
    bench.outages.answered(bench.state, bench.clock() - SILENT)
    assert bench.outages.error(bench.state) is None


def test_it_is_told_once_and_only_if_the_function_was_served_meanwhile() -> None:
    bench = Bench()
    other = FunctionState(OTHER)
    bench.outages.failed(other, DOWN)
    bench.outages.failed(bench.state, DOWN)
    bench.clock.advance(5.0)
    bench.outages.serve(bench.state)
    bench.outages.serve(bench.state)
    (began,) = bench.events
    assert isinstance(began, OutageBegan)
    assert (began.function, str(began.error)) == (HELLO, "down")
    assert began.error.__traceback__ is None  # it would keep what a request holds
    bench.clock.advance(7.0)
    for state in (bench.state, other):
        bench.outages.answered(state, bench.clock())
    assert bench.events == [began, OutageEnded(HELLO, 12.0)]


def test_one_that_answers_slowly_is_not_given_up_and_its_outage_goes_on() -> None:
    bench = Bench()
    bench.outages.failed(bench.state, DOWN)
    assert bench.outages.lasts(bench.state)
    bench.clock.advance(5.0)
    bench.outages.answered(bench.state, bench.clock() - SILENT - 0.1)
    assert bench.outages.error(bench.state) is not None
    assert not bench.outages.lasts(bench.state)
    bench.outages.failed(bench.state, DOWN)
    assert bench.outages.lasts(bench.state)
    bench.outages.answered(bench.state, bench.clock() - 0.1)  # from before an error
    assert bench.outages.lasts(bench.state)
    bench.outages.failed(bench.state, ProviderSilent("it does not answer"))
    bench.outages.answered(bench.state, bench.clock() - 0.1)  # what was owed when it was silent
    assert not bench.outages.lasts(bench.state)
    bench.outages.failed(bench.state, ProviderSilent("it does not answer"))
    bench.clock.advance(WORKING + 0.1)
    bench.outages.answered(bench.state, bench.clock() - WORKING - 0.1)  # too slow for anybody to wait for it
    assert bench.outages.lasts(bench.state)


def test_an_answer_that_took_too_long_counts_as_the_next_failure() -> None:
    bench = Bench()
    bench.outages.failed(bench.state, ProviderSilent("it does not answer"))
    for _ in range(20):
        bench.clock.advance(RECENT - 4.0)
        bench.outages.answered(bench.state, bench.clock() - RECENT + 4.0 + FIRST_PAUSE)
        assert bench.outages.lasts(bench.state)
    bench.clock.advance(LONGEST_PAUSE)
    bench.outages.answered(bench.state, bench.clock())
    assert bench.outages.error(bench.state) is None


def test_what_was_not_heard_of_for_long_is_forgotten() -> None:
    bench = Bench()
    for _ in range(3):
        bench.outages.failed(bench.state, DOWN)
    bench.clock.advance(2.0 + RECENT + 1.0)
    assert not bench.outages.lasts(bench.state)
    assert bench.outages.error(bench.state) is not None
    bench.clock.advance(FORGOTTEN)
    assert bench.outages.error(bench.state) is None
    bench.outages.failed(bench.state, DOWN)
    assert bench.outages.pause(bench.state) == 2 * FIRST_PAUSE
