"""A client asks that its function stays up for longer or shorter (``keep_alive_max``)."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import pytest

from scalezero_wsgi import FunctionCache
from scalezero_wsgi.activation.idling import keep_alive as keeping
from scalezero_wsgi.activation.idling import make
from scalezero_wsgi.activation.idling.fleet_uses import FleetUses
from scalezero_wsgi.activation.idling.keep_alive import KeepAlive
from scalezero_wsgi.activation.idling.uses import Uses
from scalezero_wsgi.coordination.base import DrainPhase, WorkerReport
from scalezero_wsgi.events import DrainCancelled
from tests.support.clock import Clock
from tests.support.fakes import HELLO, UP, ZERO
from tests.support.waiting import until
from tests.support.wsgi import ask
from tests.unit.activation.idling.test_idler import IDLE_AFTER, Site, phase

pytestmark = pytest.mark.usefixtures("at_once")

ASKS = "X-Scalezero-Keep-Alive"


def asks(text: str) -> dict[str, Any]:
    return {"headers": {ASKS: text}}


# The whole way


def test_a_client_may_ask_for_longer() -> None:
    site = Site(keep_alive_max=60)
    ask(site.door, **asks("300ms"))
    begun = time.monotonic()
    until(site.is_at_zero)
    assert time.monotonic() >= begun + 0.3


def test_a_client_may_ask_for_shorter_though_it_had_to_wait_for_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(make, "PACE", IDLE_AFTER / 4)
    site = Site(keep_alive_max=60, idle_after=3600)
    ask(site.door, **asks("50ms"))
    until(site.is_at_zero)


def test_by_default_it_is_not_heeded_and_costs_nothing() -> None:
    site = Site(idle_after=0.1)
    ask(site.door, **asks("1h"))
    assert site.door._used_app is site.door._app
    until(site.is_at_zero)


def test_what_another_worker_tells_while_it_drains_keeps_it_up() -> None:
    site = Site(keep_alive_max=60)
    other = WorkerReport("other/use", unused_for={HELLO: 100.0})
    site.store.report(other, 60)
    ask(site.door)
    until(lambda: phase(site) is DrainPhase.DRAINING)
    epoch = site.store.drains()[HELLO].epoch
    site.store.report(replace(other, acknowledged={HELLO: epoch}, kept_for={HELLO: 30.0}), 60)
    until(lambda: site.told(DrainCancelled))
    assert site.told(DrainCancelled)[0].reason == "it was used since"
    assert site.engine.stops() == 0


def test_what_is_wrong_is_ignored_and_said_once_in_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(keep_alive_max=60)
    with caplog.at_level(logging.WARNING):
        for text in ("soon", "-1m", "1" * 5000, "", "soon"):
            assert ask(site.door, **asks(text))[0] == "200 OK"
        until(site.is_at_zero)
    [record] = [each for each in caplog.records if ASKS in each.getMessage()]
    assert "'soon'" in record.getMessage()


# What one worker notes


class Worker:
    """What a worker notes, with idle_after=100 s and keep_alive_max=1000 s."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.now = 10_000.0
        self.cache = FunctionCache(1e9, clock=self.clock)
        self.idle_after: float | None = 100.0
        self.keep_alive = KeepAlive(1000.0, lambda *_: self.idle_after, self.cache, self.clock)
        self.uses = Uses(self.cache, dict, self.clock, keep_alive=self.keep_alive)
        self.state = self.cache.set("hello", UP).state

    def begin(self, text: str | None = None) -> object:
        token = object()
        self.state.last_used = self.clock()
        self.state.in_flight.add(token)
        self.keep_alive.note(HELLO, token, text)
        return token

    def end(self, token: object) -> None:
        self.state.in_flight.discard(token)

    def use(self, text: str | None = None) -> None:
        self.end(self.begin(text))

    def kept_for(self) -> float | None:
        self.uses.look()
        return self.uses.kept_for(self.clock()).get(HELLO)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, 100), ("30s", 30), ("0", 0), ("5m", 300), ("1h", 1000), ("x", 100), ("1" * 41, 100)],
)
def test_one_use(text: str | None, expected: float, worker: Worker) -> None:
    worker.use(text)
    assert worker.kept_for() == expected
    worker.clock.advance(40.0)
    assert worker.kept_for() == expected - 40.0


@pytest.mark.parametrize("texts", [("10s", "5m", None), (None, "5m", "10s"), ("5m", "5m", "10s")])
def test_the_longest_holds_of_uses_between_two_looks(texts: tuple[str | None, ...], worker: Worker) -> None:
    for text in texts:
        worker.use(text)
    assert worker.kept_for() == 300.0


@pytest.mark.parametrize("first", ["30s", None])
def test_the_longest_holds_of_uses_one_after_another(first: str | None, worker: Worker) -> None:
    other = None if first else "30s"
    worker.use(first)
    worker.kept_for()
    worker.clock.advance(10.0)
    worker.use(other)
    assert worker.kept_for() == (90.0 if first is None else 100.0)


@pytest.mark.parametrize(("text", "expected"), [("30s", 30.0), ("5m", 300.0), (None, 100.0), ("x", 100.0)])
def test_a_use_counts_from_its_end(text: str | None, expected: float, worker: Worker) -> None:
    token = worker.begin(text)
    for _ in range(3):
        assert worker.kept_for() == expected
        worker.clock.advance(50.0)
    worker.end(token)
    assert worker.kept_for() == expected
    worker.clock.advance(50.0)
    assert worker.kept_for() == expected - 50.0


def test_a_use_in_flight_beside_one_that_asks(worker: Worker) -> None:
    worker.begin("30s")
    token = worker.begin()
    assert worker.kept_for() == 100.0
    worker.end(token)
    assert worker.kept_for() == 100.0
    worker.clock.advance(90.0)
    assert worker.kept_for() == 30.0


def test_a_cap_below_idle_after_makes_nothing_shorter(worker: Worker) -> None:
    worker.idle_after = 5000.0
    worker.use("2h")
    assert worker.kept_for() == 5000.0


def test_a_request_that_only_waited_asks_for_nothing(worker: Worker) -> None:
    """What it asks for counts once it is passed down."""
    uses = Uses(worker.cache, lambda: {HELLO: 1}, worker.clock, keep_alive=worker.keep_alive)
    uses.look()
    assert uses.in_use == {HELLO: 1}
    uses.look()
    assert uses.kept_for(worker.clock()) == {HELLO: 0.0}


def test_at_zero_all_is_forgotten(worker: Worker) -> None:
    worker.use("5m")
    assert worker.kept_for() == 300.0
    worker.cache.set("hello", ZERO)
    assert worker.kept_for() is None
    worker.clock.advance(10.0)
    worker.cache.set("hello", UP)
    worker.use("1s")
    assert worker.kept_for() == 1.0


def test_what_is_not_known_or_never_idle_is_left_out(worker: Worker) -> None:
    worker.use()
    worker.idle_after = None
    assert worker.kept_for() is None
    worker.cache.set_missing(HELLO)
    worker.idle_after = 100.0
    assert worker.kept_for() is None


def test_what_is_noted_is_bounded_though_nobody_looks(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MOST", 5)
    for _ in range(20):
        worker.use("5m")
    assert len(worker.keep_alive._noted) == 5
    assert worker.kept_for() == 300.0
    assert len(worker.keep_alive._noted) == 0


def test_a_forked_child_knows_of_no_wish(worker: Worker) -> None:
    worker.use("5m")
    worker.kept_for()
    worker.uses.begin()
    assert worker.uses.kept_for(worker.clock()) == {}


def test_the_log_speaks_again_after_a_minute(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        worker.use("x")
        worker.kept_for()
        worker.clock.advance(keeping.WARN_EVERY / 2)
    assert len(caplog.records) == 2


# What the worker that decides makes of the reports


def report(worker: str, unused_for: float, kept_for: float | None = None) -> WorkerReport:
    kept = {} if kept_for is None else {HELLO: kept_for}
    return WorkerReport(f"{worker}/use", unused_for={HELLO: unused_for}, kept_for=kept)


@pytest.fixture
def uses() -> FleetUses:
    return FleetUses()


def idle_at(uses: FleetUses, came_up_at: float = 0.0, known_since: float = 0.0) -> float:
    return uses.idle_since(HELLO, 100.0, came_up_at, known_since) + 100.0


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([report("a", 10.0)], 1090.0),
        ([report("a", 10.0, 20.0)], 1020.0),
        ([report("a", 10.0, 500.0)], 1500.0),
        ([report("a", 10.0, 20.0), report("b", 50.0, 70.0)], 1070.0),
        ([report("a", 10.0, 20.0), report("b", 50.0)], 1050.0),  # of an earlier release
        ([report("a", 10.0, 500.0), report("b", 50.0)], 1500.0),
    ],
)
def test_the_longest_of_all_workers_holds(
    reports: list[WorkerReport], expected: float, uses: FleetUses
) -> None:
    uses.note(reports, 1000.0)
    assert idle_at(uses) == expected
    uses.note([], 1010.0)  # they have left
    assert idle_at(uses) == expected


def test_a_function_that_nobody_has_used_since_it_came_up_stays_up_for_idle_after(uses: FleetUses) -> None:
    assert idle_at(uses, came_up_at=950.0, known_since=900.0) == 1050.0
    uses.note([report("a", 60.0, -20.0)], 1000.0)
    assert idle_at(uses, came_up_at=950.0) == 1050.0
    uses.note([report("a", 40.0, -20.0)], 1000.0)
    assert idle_at(uses, came_up_at=950.0) == 980.0


def test_what_is_at_zero_is_forgotten(uses: FleetUses) -> None:
    uses.note([report("a", 10.0, 500.0), report("b", 10.0)], 1000.0)
    uses.forget(HELLO)
    assert idle_at(uses, known_since=2000.0) == 2100.0
    assert uses.used_at == {}
