"""Somebody else undoes what is done here, again and again: that is said, and the function is left to them."""

from __future__ import annotations

import time

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi.activation.idling import listing, rivals
from scalezero_wsgi.activation.idling.rivals import REST_FIRST, REST_LONGEST, SHORTLY, Rivals
from scalezero_wsgi.activation.state import NEVER
from scalezero_wsgi.events import Event, EventLog, FunctionContested, FunctionStopped, Reporter
from tests.support.clock import Clock
from tests.support.fakes import HELLO, UP, ZERO
from tests.support.waiting import until
from tests.support.wsgi import ask
from tests.unit.activation.idling.test_keep_warm import CLOSES, OPENS
from tests.unit.activation.idling.test_keep_warm import Bench as Hours
from tests.unit.activation.idling.test_listing import Engine, Site

OTHER = Function("other")


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.events: list[Event] = []
        self.rivals = Rivals(Reporter([self.events.append]), self.clock)

    def stop(self, used: bool = False, back_after: float = 10.0) -> bool:
        """Have an idle function stopped if it may be, and started again by somebody else some time later.

        :param used: whether it is used then.
        """
        up_since, used_at = self.clock(), self.clock() if used else NEVER
        self.clock.advance(900.0)
        if not self.rivals.may_stop(HELLO, up_since, used_at):
            return False
        self.rivals.stopped(HELLO)
        self.clock.advance(back_after)
        return True

    def rests(self) -> list[float]:
        return [event.retry_after for event in self.events if isinstance(event, FunctionContested)]


def test_who_starts_it_again_and_again_is_left_in_peace_for_longer_and_longer() -> None:
    bench = Bench()
    assert [bench.stop() for _ in range(3)] == [True, True, False]
    [event] = bench.events
    assert event == FunctionContested(
        HELLO, "somebody else starts it again whenever it was taken to zero", REST_FIRST
    )
    assert bench.rivals.may_stop(OTHER, bench.clock(), NEVER)
    assert not bench.rivals.may_stop(HELLO, bench.clock(), NEVER)
    assert len(bench.events) == 1
    while len(bench.rests()) < 10:
        if not bench.stop():
            bench.clock.advance(REST_LONGEST)
    rests = bench.rests()
    assert rests[:4] == [REST_FIRST, 2 * REST_FIRST, 4 * REST_FIRST, 8 * REST_FIRST]
    assert rests[-1] == REST_LONGEST


def test_once_is_no_fight_and_what_was_used_was_started_for_that() -> None:
    bench = Bench()
    assert all(bench.stop(used) for used in (False, False, True, False, True, True, False, True))
    assert bench.events == []


def test_who_starts_it_much_later_undoes_nothing() -> None:
    bench = Bench()
    assert all(bench.stop(back_after=SHORTLY + 1.0) for _ in range(6))
    assert bench.events == []


def test_a_use_ends_the_fight() -> None:
    bench = Bench()
    assert [bench.stop() for _ in range(3)] == [True, True, False]
    bench.clock.advance(REST_FIRST)
    assert bench.stop()
    assert bench.stop(used=True)
    assert bench.stop()
    assert bench.rests() == [REST_FIRST]


def test_what_was_not_stopped_here_may_be() -> None:
    bench = Bench()
    assert bench.rivals.may_stop(HELLO, 0.0, NEVER)
    for _ in range(3):
        bench.clock.advance(5.0)
        bench.rivals.stopped(HELLO)
        # It was paused: it holds its memory since before that, and is to be stopped now.
        assert bench.rivals.may_stop(HELLO, 0.0, NEVER)
    assert bench.events == []


def test_who_takes_it_down_again_and_again_is_left_in_peace() -> None:
    bench = Bench()
    bench.rivals.taken_down(HELLO)
    assert bench.rivals.may_start(HELLO)
    bench.clock.advance(60.0)
    bench.rivals.taken_down(HELLO)
    assert not bench.rivals.may_start(HELLO)
    assert bench.rivals.may_start(OTHER)
    assert bench.rests() == [REST_FIRST]
    bench.clock.advance(REST_FIRST)
    assert bench.rivals.may_start(HELLO)
    bench.rivals.taken_down(HELLO)
    assert bench.rests() == [REST_FIRST, 2 * REST_FIRST]
    bench.clock.advance(2 * REST_FIRST + SHORTLY + 1.0)
    bench.rivals.taken_down(HELLO)
    assert len(bench.rests()) == 2


def test_it_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(Clock())
    for _ in range(3):
        log(FunctionContested(HELLO, "somebody else starts it", 60.0))
    assert [record.getMessage() for record in caplog.records] == [
        "hello: somebody else starts it; left alone for 60 s"
    ]


# The whole


def contested(monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site whose function somebody else has started again after each of two stops."""
    monkeypatch.setattr(listing, "LIST_EVERY", 0.1)
    site = Site(idle_after=0.05)
    ask(site.door)
    for count in (1, 2):
        until(lambda count=count: site.told(FunctionStopped) == count)  # type: ignore[misc]
        site.engine.put_up("hello")
    until(lambda: site.told(FunctionContested) == 1)
    return site


@pytest.mark.usefixtures("at_once")
def test_another_manager_that_starts_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    site = contested(monkeypatch)
    time.sleep(0.3)
    assert site.told(FunctionStopped) == 2
    assert site.told(FunctionContested) == 1
    assert ask(site.door)[0] == "200 OK"


@pytest.mark.soak
@pytest.mark.usefixtures("at_once")
def test_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "REST_FIRST", 0.2)
    site = contested(monkeypatch)
    until(lambda: site.told(FunctionStopped) == 3)


def test_what_is_taken_down_in_its_hours_is_not_started_while_it_is_left_alone() -> None:
    bench = Hours()
    may = False
    bench.keep_warm._may_start_now = lambda function: may
    bench.know()
    assert bench.look() == []
    may = True
    assert bench.look() == [1]


@pytest.mark.parametrize(
    ("at", "held"), [(OPENS, True), (CLOSES - 1, True), (CLOSES, False), (OPENS - 3600, False)]
)
def test_in_its_hours_it_is_held_up(at: float, held: bool) -> None:
    assert Hours(at=at).keep_warm.holds(HELLO, UP) is held


def test_another_manager_that_takes_it_down_in_its_hours_is_said(
    monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    from scalezero_wsgi.activation.idling import keep_warm

    monkeypatch.setattr(listing, "LIST_EVERY", 0.1)
    monkeypatch.setattr(keep_warm, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(keep_warm, "LOOK_AGAIN", 0.1)
    engine = Engine()
    site = Site(engine, keep_warm="00:00-24:00")
    idler = site.door._idler
    assert idler is not None
    idler.start(multiprocess=False)

    def has_won() -> bool:
        """Take it down if it was seen up. One that is back before it was seen down makes no round."""
        if HELLO in idler._candidates._shown:
            engine.put_down()
        return site.told(FunctionContested) > 0

    until(has_won)
    until(lambda: site.door.scaler.flight(HELLO) is None)  # a start that had begun
    engine.put_down()
    sets = list(engine.sets)
    assert len(sets) >= 2
    until(lambda: site.door.cache.get("hello")[0] == ZERO)
    time.sleep(0.3)
    assert engine.sets == sets
    assert ask(site.door)[0] == "200 OK"  # who asks for it gets it
    assert engine.sets == [*sets, (HELLO, 1)]
