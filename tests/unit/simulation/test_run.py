"""One function with one ``idle_after``, by hand."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi._lib.waits import Waits
from scalezero_wsgi.activation.idling.idler import LONGEST_PACE, PACE
from scalezero_wsgi.activation.state import NEVER
from scalezero_wsgi.simulation.in_order import WINDOW, in_order
from scalezero_wsgi.simulation.knee import knee
from scalezero_wsgi.simulation.regularity import Calendar
from scalezero_wsgi.simulation.run import TURN, Run, decided_after, turn_of
from scalezero_wsgi.simulation.simulation import Simulation, Times, total

KEPT = decided_after(60.0) + turn_of(60.0)


def run(*requests: tuple[float, float], stop_takes: float = 0.0) -> Run:
    found = Run(60.0, stop_takes, [10.0])
    found.requests((*request, NEVER) for request in requests)
    return found


def test_turns_are_waited_for() -> None:
    """That a use has ended is noticed half a turn later, on average, and that it is long ago as well."""
    turn = PACE + TURN
    assert decided_after(60.0) == pytest.approx(60 + turn)
    assert decided_after(60.0, 4) == pytest.approx(decided_after(60.0) + 0.75 * turn, rel=0.001)
    turn = 0.9 / 4 + TURN  # they are more frequent then, and it is exactly the fourth
    assert decided_after(0.9) == pytest.approx(4 * turn + turn / 2)


def test_turns_are_as_long_as_they_were_measured() -> None:
    """On a slow machine each is longer, and what is idle is found so half a turn late."""
    assert turn_of(60.0, 0.2) == 0.4
    assert decided_after(60.0, late=0.2) == pytest.approx(60 + 0.4)
    noticed = (0.4 + 3 * turn_of(60.0)) / 4 / 2  # the turns of those that do not decide are short
    assert decided_after(60.0, 4, 0.2) == pytest.approx(60 + noticed + 0.2 + 0.75 * 0.4, rel=0.001)
    assert turn_of(60.0, 30.0) == LONGEST_PACE  # what was late for another reason
    assert decided_after(60.0, late=0.02) == pytest.approx(60 + turn_of(60.0) / 2 + 0.02)
    assert decided_after(0.9, late=0.2) == decided_after(0.9)  # the idler takes no rest there
    assert Run(60.0, 0.0, [10.0], late=0.2).kept_for == pytest.approx(60 + 0.4 + 0.4)


def test_requests_share_a_start_and_each_waits_for_what_is_left() -> None:
    found = run((100.0, 0.0), (104.0, 0.0), (109.0, 0.0), (110.0, 0.0))
    assert (found.cold_starts, found.waits.count, found.waits.sum) == (1, 3, 10 + 6 + 1)


def test_idling_counts_from_the_end_of_the_last_use() -> None:
    assert run((0.0, 50.0), (10 + 50 + KEPT, 0.0)).cold_starts == 1  # it was served from 10 to 60
    assert run((0.0, 50.0), (10 + 50 + KEPT + 0.01, 0.0)).cold_starts == 2
    assert run((0.0, 50.0), (20.0, 1.0), (10 + 50 + KEPT, 0.0)).cold_starts == 1


def test_it_is_up_from_its_start_to_the_end_of_its_stop() -> None:
    found = run((0.0, 0.0), stop_takes=2.0)
    found.end(1000.0)
    assert found.up == pytest.approx(10 + KEPT + 2 - turn_of(60.0))
    found = run((0.0, 0.0))
    found.end(30.0)  # the log ends
    assert found.up == 30


def test_a_request_to_a_function_that_is_being_stopped_waits_for_that_too() -> None:
    found = run((0.0, 0.0), (10 + KEPT + 0.5, 0.0), stop_takes=2.0)
    assert found.cold_starts == 2
    assert found.waits.sum == pytest.approx(10 + 1.5 - turn_of(60.0) + 10)


def test_what_is_not_kept_makes_no_difference() -> None:
    rng = random.Random(1)
    requests, came_at = [], 0.0
    for _ in range(3000):
        came_at += rng.choice([0.0, 0.1, 5.0, 70.0, 400.0]) * rng.random()
        requests.append((came_at, float(rng.choice([0, 1, 90]))))
    idle_afters, function = (60.0, 120.0, 300.0), Function("f")
    times = Times({function: [3.0, 90.0]}, 1.0, {function: [0.5]})
    simulation = Simulation(idle_afters, times, Calendar("UTC"))
    simulation.run((came_at, duration, function) for came_at, duration in requests)
    (prediction,) = simulation.results()
    for outcome in prediction.outcomes:
        alone = Run(outcome.idle_after, 0.5, times.starts(function))
        alone.requests((*request, NEVER) for request in requests)
        alone.end(simulation.last)
        assert outcome.cold_starts == alone.cold_starts > 10
        assert outcome.waits.count == alone.waits.count
        assert outcome.up == pytest.approx(alone.up)
    assert all(a.up < b.up and a.cold_starts >= b.cold_starts for a, b in pairwise(prediction.outcomes))


def test_functions_are_added_up() -> None:
    simulation = Simulation((60.0,), Times({Function("a"): [2.0]}, 4.0), Calendar("UTC"))
    simulation.run([(0.0, 0.0, Function("a")), (1.0, 0.0, Function("b")), (1000.0, 0.0, Function("a"))])
    first, second = simulation.results()
    (both,) = total([first, second])
    assert (both.cold_starts, both.waits.count, both.waits.sum) == (3, 3, 2 + 4 + 2)
    assert both.up == pytest.approx(2 + KEPT + 4 + KEPT)
    assert first.always_on == 1000.0


def test_hours_in_which_it_is_used_each_day() -> None:
    day, requests = 86400.0, []
    for number in range(28):
        requests += [(number * day + 8 * 3600 + 1200.0 * n, 0.0, Function("f")) for n in range(6)]
    simulation = Simulation((60.0,), Times({}, 10.0), Calendar("UTC"))
    simulation.run(requests)
    warm = simulation.results()[0].warm
    assert warm is not None
    assert (warm.hours, warm.spared) == ("08:00-10:00 UTC", 28 * 6)
    assert warm.more_up == pytest.approx(28 * (2 * 3600 - 6 * (10 + KEPT)), rel=0.01)


def test_minutes_in_which_it_is_used_each_hour() -> None:
    requests = [(3600.0 * hour + 1830, 0.0, Function("f")) for hour in range(48)]
    simulation = Simulation((60.0,), Times({}, 10.0), Calendar("Asia/Kathmandu"))
    simulation.run(requests)
    warm = simulation.results()[0].warm
    assert warm is not None
    assert (warm.hours, warm.spared) == ("cron 30 * * * * for 5m UTC", 48)


def test_workdays_are_apart() -> None:
    monday = 4 * 86400.0
    days = [number for number in range(21) if number % 7 < 5]
    requests = [(monday + 86400.0 * n + 3600 * hour, 0.0, Function("f")) for n in days for hour in (7, 8, 12)]
    simulation = Simulation((60.0,), Times({}, 10.0), Calendar("Europe/Berlin"))
    simulation.run(requests)
    warm = simulation.results()[0].warm
    assert warm is not None
    assert warm.hours == "Mon-Fri 08:00-10:00; Mon-Fri 13:00-14:00 Europe/Berlin"


def test_random_requests_are_not_regular() -> None:
    rng = random.Random(2)
    requests = [(came_at, 0.0, Function("f")) for came_at in sorted(rng.random() * 864000 for _ in range(60))]
    simulation = Simulation((60.0,), Times({}, 10.0), Calendar("UTC"))
    simulation.run(requests)
    assert simulation.results()[0].warm is None


def test_requests_are_put_into_the_order_in_which_they_came() -> None:
    logged = [(5.0, 1.0, "b"), (1.0, 300.0, "a"), (400.0, 0.0, "c"), (390.0, 20.0, "d")]
    assert [each[2] for each in in_order(logged)] == ["a", "b", "d", "c"]
    late = [(2 * WINDOW, 0.0, "b"), (3 * WINDOW + 1, 0.0, "c"), (0.0, 0.0, "a")]
    assert [each[2] for each in in_order(late)] == ["b", "a", "c"]


def test_quantiles_are_one_percent_right() -> None:
    waits, other = Waits(), Waits()
    for number in range(1, 501):
        waits.add(number / 100)
        other.add(5 + number / 100)
    waits.include(other)
    assert waits.quantile(0.5) == pytest.approx(5.0, rel=0.011)
    assert waits.quantile(0.99) == pytest.approx(9.9, rel=0.011)
    assert Waits().quantile(0.5) == 0.0


@pytest.mark.parametrize(
    ("points", "index"),
    [
        ([(1.0, 5.0)], 0),
        ([(1.0, 100.0), (2.0, 10.0), (3.0, 9.0), (10.0, 8.0)], 1),
        ([(1.0, 5.0), (2.0, 5.0), (3.0, 5.0)], 0),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], 0),
    ],
)
def test_the_knee(points: list[tuple[float, float]], index: int) -> None:
    assert knee(points) == index


def test_what_costs_next_to_nothing_is_taken() -> None:
    assert knee([(99.0, 50.0), (99.2, 10.0), (100.0, 0.0)]) == 1
    assert knee([(99.0, 50.0), (99.2, 10.0), (100.0, 0.0)], 5.0) == 2


def test_what_is_used_at_all_hours_is_not_regular() -> None:
    requests = [(1100.0 * number, 0.0, Function("f")) for number in range(80 * 14)]
    simulation = Simulation((60.0,), Times({}, 10.0), Calendar("UTC"))
    simulation.run(requests)
    assert simulation.results()[0].warm is None
