"""Hours in which functions stay up, and are started ahead: by a clock on the wall that stands still."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from scalezero_wsgi import (
    Function,
    FunctionCache,
    FunctionFailed,
    FunctionScaler,
    ProviderError,
    ReplicaStatus,
    ScaleZeroMiddleware,
    SettingError,
    Settings,
)
from scalezero_wsgi.activation.idling import idler, keep_warm
from scalezero_wsgi.activation.idling.idleness import Idleness
from scalezero_wsgi.activation.idling.keep_warm import (
    AHEAD,
    EARLY,
    KEEP_WARM,
    LOOK_AGAIN,
    LOOK_EVERY,
    NOT_BEFORE,
    SAY_AGAIN,
    UNKNOWN_START,
    KeepWarm,
)
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import Event, KeptWarm, Reporter, ScaleRequested
from tests.support.clock import Clock
from tests.support.fakes import HELLO, STARTING, UP, ZERO, FakeEngine
from tests.support.waiting import ended_threads, until
from tests.support.wsgi import App

OFFICE = "Mon-Fri 08:00-18:00"
OPENS = datetime(2026, 11, 27, 8, tzinfo=UTC).timestamp()
"""On a Friday."""

CLOSES = OPENS + 10 * 3600
IDLE_AFTER = 60.0


class Engine(FakeEngine):
    """Its functions have labels and may fail."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.labels: dict[str, str] = {}
        self.error: Exception | None = None

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return replace(super().get_replicas(name, namespace), labels=self.labels)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        super().set_replicas(name, namespace, replicas)
        if self.error is not None:
            self.put_down()
            raise self.error


class Bench:
    """One worker that decides. ``at`` is what the clock on the wall shows."""

    def __init__(
        self,
        hours: str | None = OFFICE,
        at: float = OPENS,
        for_all: bool = True,
        is_ours: Callable[[Function], bool] = lambda _: True,
        dry_run: bool = False,
    ) -> None:
        self.clock, self.at = Clock(), at
        self.engine = Engine(self.clock)
        self.events: list[Event] = []
        self.cache = FunctionCache(0.25, clock=self.clock)
        self.scaler = FunctionScaler(
            self.engine,
            self.cache,
            report=Reporter([self.events.append]),
            linger=0.0,
            clock=self.clock,
            sleep=self.clock.sleep,
        )
        idleness = Idleness(IDLE_AFTER, for_all, is_ours)
        self.keep_warm = KeepWarm(self.scaler, idleness, is_ours, hours, dry_run, lambda: self.at)

    def idle_after(self, **labels: str) -> float | None:
        return self.keep_warm(HELLO, replace(UP, labels=labelled(labels)))

    def know(self, status: ReplicaStatus = ZERO, function: Function = HELLO, **labels: str) -> None:
        """Have the worker know a function that was asked for just now."""
        self.engine.labels = labelled(labels)
        self.cache.set(function.name, replace(status, labels=self.engine.labels))

    def look(self, after: float = LOOK_EVERY) -> list[int]:
        """Have the worker look whether something should be up; return the counts that were set so far."""
        self.clock.advance(after)
        self.at += after
        with ended_threads():
            self.keep_warm.turn()
        return [replicas for _, replicas in self.engine.sets]

    def told(self) -> list[KeptWarm]:
        return [event for event in self.events if isinstance(event, KeptWarm)]


def labelled(labels: dict[str, str]) -> dict[str, str]:
    return {f"scalezero.{name.replace('_', '-')}": text for name, text in labels.items()}


# What keeps a function up


@pytest.mark.parametrize(
    ("at", "idle"),
    [
        (OPENS, False),
        (CLOSES - 1, False),
        (CLOSES, True),
        # It would be started so early that it is up in time; a stop before that may take a while.
        (OPENS - UNKNOWN_START - EARLY, False),
        (OPENS - UNKNOWN_START - EARLY - NOT_BEFORE, False),
        (OPENS - UNKNOWN_START - EARLY - NOT_BEFORE - 1, True),
    ],
)
def test_a_function_is_not_idle_in_its_hours_nor_right_before(at: float, idle: bool) -> None:
    for bench, labels in ((Bench(at=at), {}), (Bench(None, at=at), {"keep_warm": OFFICE})):
        assert bench.idle_after(**labels) == (IDLE_AFTER if idle else None)


def test_a_label_or_an_annotation_says_other_hours_than_the_setting() -> None:
    bench = Bench(at=CLOSES + 3600)
    assert bench.idle_after() == IDLE_AFTER
    assert bench.idle_after(keep_warm="19:00-20:00") is None
    annotated = replace(UP, annotations={KEEP_WARM: "19:00-20:00"})
    assert bench.keep_warm(HELLO, annotated) is None
    assert bench.keep_warm(HELLO, replace(annotated, labels={KEEP_WARM: OFFICE})) == IDLE_AFTER
    bench.at = OPENS
    assert bench.idle_after(keep_warm="19:00-20:00") == IDLE_AFTER
    assert bench.idle_after(keep_warm="never") == bench.idle_after(keep_warm=" Off") == IDLE_AFTER


def test_hours_do_not_let_a_function_go_to_zero_that_may_not() -> None:
    bench = Bench(at=CLOSES, for_all=False)
    assert bench.idle_after() is None
    assert bench.idle_after(keep_warm=OFFICE) is None
    assert bench.idle_after(keep_warm=OFFICE, idle_after="5m") == 300.0


@pytest.mark.parametrize("hours", [OFFICE, None])
def test_a_label_that_cannot_be_read_counts_as_not_set_and_is_warned_about_once(
    hours: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(hours)
    with caplog.at_level(logging.WARNING, "scalezero_wsgi"):
        for _ in range(3):
            assert bench.idle_after(keep_warm="Mon-Fri 8-18") == (None if hours else IDLE_AFTER)
    [line] = caplog.messages
    assert line.startswith(
        "hello: its label scalezero.keep-warm counts as not set: 'Mon-Fri 8-18' is not allowed: "
    )
    assert "it must be hours such as" in line


def test_a_label_in_crons_form_without_its_library_is_warned_about(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with caplog.at_level(logging.WARNING, "scalezero_wsgi"):
        assert Bench(None).idle_after(keep_warm="cron 0 8 * * * for 1h") == IDLE_AFTER
    [line] = caplog.messages
    assert "hello: its label scalezero.keep-warm counts as not set: 'cron 0 8 * * * for 1h': cronsim" in line
    assert "scalezero_wsgi[cron]" in line


# What starts it


@pytest.mark.parametrize(
    ("starts", "ahead"),
    [((3.0, 7.0, 4.0), 7.0), ((), UNKNOWN_START), ((9000.0,), AHEAD - EARLY)],
)
def test_a_function_at_zero_is_started_ahead_by_the_longest_of_its_last_starts(
    starts: tuple[float, ...], ahead: float
) -> None:
    bench = Bench(at=OPENS - ahead - EARLY - 2 * LOOK_EVERY)
    bench.know()
    if starts:
        bench.cache.set_durations(bench.cache.state(HELLO), starts)
    assert bench.look() == []
    assert bench.look() == [1]
    assert bench.told() == [KeptWarm(HELLO, ahead + EARLY)]
    for _ in range(3):
        assert bench.look() == [1]


def test_of_a_function_that_never_started_the_others_starts_are_usual() -> None:
    bench = Bench(at=OPENS - 8.0 - EARLY - 2 * LOOK_EVERY)
    bench.know()
    other = bench.cache.state(Function("other"))
    bench.cache.set_durations(other, (8.0,))
    assert bench.look() == []
    assert bench.look() == [1]


def test_a_function_that_may_not_go_to_zero_is_started_by_its_own_label_only() -> None:
    bench = Bench(for_all=False)
    bench.know()
    assert bench.look() == []
    bench.know(keep_warm=OFFICE)
    assert bench.look() == [1]


def test_a_function_that_is_not_served_or_never_woken_is_not_started() -> None:
    bench = Bench(is_ours=lambda _: False)
    bench.know(keep_warm=OFFICE)
    assert bench.look() == []
    bench.know()
    assert bench.look() == []


def test_a_function_that_is_up_is_not_started_but_its_provider_is_asked_now_and_then() -> None:
    bench = Bench()
    bench.engine.put_up("hello")
    bench.know(UP)
    for _ in range(int(LOOK_AGAIN) - 1):
        assert bench.look() == []
    assert bench.engine.queries == []
    bench.look(2 * LOOK_EVERY)
    assert len(bench.engine.queries) == 1


def test_a_function_that_has_gone_in_its_hours_is_started_again() -> None:
    bench = Bench(at=OPENS + 3600)
    bench.know(UP)  # it has ended since
    assert bench.look() == []
    bench.look(LOOK_AGAIN)  # it is found out
    assert bench.look() == [1]
    assert bench.told()[0].begins_in < 0


def test_what_was_known_before_is_asked_anew_when_it_would_be_started() -> None:
    """Somebody else has stopped it a moment ago."""
    bench = Bench(at=OPENS - UNKNOWN_START - EARLY - 2 * LOOK_EVERY)
    bench.know(UP)
    for _ in range(4):
        bench.look()
    assert bench.engine.sets == [(HELLO, 1)]


FAILURES = [FunctionFailed("hello", "no licence"), ProviderError("no memory")]


@pytest.mark.parametrize("error", FAILURES)
def test_starts_that_fail_are_tried_again_with_pauses_that_grow(error: Exception) -> None:
    bench = Bench(at=OPENS + 3600)
    bench.engine.error = error
    bench.know()
    ends_at = bench.clock() + 240
    while bench.clock() < ends_at:
        bench.look()
    assert 4 <= len(bench.told()) <= 10  # 1, 2, 4 … up to 60 s after another
    if isinstance(error, FunctionFailed):
        assert len(bench.engine.sets) == len(bench.told())
    bench.engine.error = None
    for _ in range(62):
        bench.look()
    assert bench.cache.find(HELLO).available  # type: ignore[union-attr]


def test_while_it_rests_after_failed_starts_it_is_not_started() -> None:
    bench = Bench()
    bench.know()
    bench.cache.state(HELLO).fail_start("it exits", bench.clock() + 10)
    assert bench.look() == []
    assert bench.told() == []
    assert bench.look(12.0) == [1]


def test_a_dry_run_says_what_would_be_started_and_starts_nothing() -> None:
    bench = Bench(dry_run=True)
    bench.know()
    for _ in range(3):
        assert bench.look() == []
    assert bench.told() == [KeptWarm(HELLO, -LOOK_EVERY, dry_run=True)]
    bench.look(SAY_AGAIN)
    assert len(bench.told()) == 2


def test_so_many_are_started_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_warm, "AT_ONCE", 3)
    bench, opened = Bench(), threading.Event()
    functions = [Function(f"f{number}") for number in range(5)]
    ask = bench.engine.get_replicas

    def start_slowly(*function: str) -> ReplicaStatus:
        status = ask(*function)
        if status.available_replicas and bench.engine.queries.count(Function(*function)) > 2:
            assert opened.wait(30)
            return status
        return STARTING if status.available_replicas else status

    monkeypatch.setattr(bench.engine, "get_replicas", start_slowly)
    for function in functions:
        bench.know(function=function)

    def look() -> int:
        bench.clock.advance(LOOK_EVERY)
        bench.keep_warm.turn()
        return len(bench.told())

    def starting() -> int:
        return sum(state.meta is not None and state.meta.status == STARTING for state in bench.cache.states())

    with ended_threads():
        assert look() == 3
        until(lambda: starting() == 3)
        assert look() == 3
        opened.set()
        until(lambda: not any(bench.scaler.flight(function) for function in functions))
        assert look() == 5


def test_many_functions_are_looked_at_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_warm, "LOOK_PAUSE", 2.5)  # as if there were many more
    bench = Bench()
    for name in ("hello", "other"):
        bench.know(function=Function(name))
    bench.look()
    bench.engine.put_down()
    bench.know()
    assert [len(bench.look()) for _ in range(6)] == [2, 2, 2, 2, 3, 3]


# The whole


class Listing(Engine):
    def list_functions(self) -> list[Function]:
        return [HELLO]


@pytest.fixture
def idlers() -> Iterator[None]:
    yield
    for each in list(idler._idlers):
        each.stop(os.getpid())


@pytest.mark.usefixtures("idlers")
def test_where_no_request_comes_it_is_up_before_its_hours_and_until_they_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idler, "NEWLY_LED", 0.0)
    monkeypatch.setattr(keep_warm, "LOOK_EVERY", 0.05)
    at = OPENS - 3600
    engine = Listing(time.monotonic)
    door = ScaleZeroMiddleware(
        App(),
        engine,
        idle_after=0.05,
        idle_default="all",
        keep_warm=OFFICE,
        coordination=MemoryCoordination(),
        wall_clock=lambda: at,
    )
    assert door._idler is not None
    door._idler.start(multiprocess=False)
    until(lambda: door.cache.find(HELLO) is not None)
    time.sleep(0.2)
    assert engine.sets == []
    at = OPENS - EARLY
    until(lambda: engine.sets == [(HELLO, 1)])
    for at in (OPENS, CLOSES - 1):  # noqa: B007  the clock on the wall shows it
        time.sleep(0.2)  # four times as long as it may be idle
        assert engine.sets == [(HELLO, 1)]
    at = CLOSES
    until(lambda: engine.sets == [(HELLO, 1), (HELLO, 0)])


@pytest.mark.parametrize("settings", [None, Settings(keep_warm=OFFICE)])
def test_the_setting_alone_is_refused(settings: Settings | None) -> None:
    keywords: Any = {"keep_warm": OFFICE} if settings is None else {}
    with pytest.raises(SettingError, match=r"keep_warm: 'Mon-Fri 08:00-18:00' .* without idle_after"):
        ScaleZeroMiddleware(App(), Engine(time.monotonic), settings=settings, **keywords)
    ScaleZeroMiddleware(App(), Engine(time.monotonic), settings=settings, **keywords, idle_after="15m")


def test_it_is_requested_by_the_ordinary_scaler() -> None:
    bench = Bench()
    bench.know()
    bench.look()
    assert [type(event) for event in bench.events].count(ScaleRequested) == 1
