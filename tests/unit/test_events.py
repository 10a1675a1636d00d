from __future__ import annotations

import dataclasses
import logging

import pytest

from scalezero_wsgi import Function, ProviderError
from scalezero_wsgi.events import (
    CALLS_LOGGED,
    BudgetOff,
    CallLog,
    Event,
    EventLog,
    FunctionEvent,
    FunctionEvicted,
    FunctionQueued,
    FunctionReady,
    KeptWarm,
    OutageBegan,
    OutageEnded,
    ProviderFailed,
    Reporter,
    RequestRefused,
    RequestReplayed,
    ScaleRequested,
    StartFailed,
    StatusQueried,
    WaitGivenUp,
)
from tests.support.clock import Clock

HELLO = Function("hello", "dev")
GAVE_UP = WaitGivenUp(HELLO, 25.0)


@dataclasses.dataclass(frozen=True, slots=True)
class SomethingElse(FunctionEvent):
    """An event that a plug-in brings."""

    what: str


@pytest.fixture(autouse=True)
def _everything_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="scalezero_wsgi")


def failing(_: Event) -> None:
    raise RuntimeError("a fault of the hook's own")


@pytest.mark.parametrize(
    ("event", "level", "line"),
    [
        (StatusQueried(HELLO, 2, 0), logging.DEBUG, "hello.dev: 0 of 2 replicas available"),
        (ScaleRequested(HELLO, 0, 2), logging.INFO, "hello.dev: requested 0 → 2 replicas"),
        (FunctionReady(HELLO, 1.2345), logging.INFO, "hello.dev: ready after 1.234 s"),
        (
            KeptWarm(HELLO, 12.3),
            logging.INFO,
            "hello.dev: started for its hours, which begin in 12 s",
        ),
        (
            KeptWarm(HELLO, -60.0, dry_run=True),
            logging.INFO,
            "hello.dev: would be started for its hours, which have begun",
        ),
        (FunctionQueued(HELLO), logging.INFO, "hello.dev: waits for room in the budget"),
        (
            FunctionEvicted(HELLO, Function("other")),
            logging.INFO,
            "hello.dev: stopped to make room for other",
        ),
        (BudgetOff("it is so"), logging.WARNING, "no budget is kept: it is so"),
        (GAVE_UP, logging.WARNING, "hello.dev: gave up after 25.000 s"),
        (
            StartFailed(HELLO, "exited with 1", 4.0),
            logging.ERROR,
            "hello.dev: cannot start (exited with 1); next try in 4 s",
        ),
        (
            ProviderFailed(HELLO, ProviderError("http://gateway:8080 said 500")),
            logging.ERROR,
            "hello.dev: the provider failed: http://gateway:8080 said 500",
        ),
        (
            RequestReplayed(HELLO, 0.5),
            logging.INFO,
            "hello.dev: was at zero, passed down again after 0.500 s",
        ),
        (
            RequestRefused(HELLO, "no place to wait"),
            logging.WARNING,
            "hello.dev: refused a request: no place to wait",
        ),
        (
            StartFailed(HELLO, "exited with 1: Traceback\n\r  boom\x1b", 4.0),
            logging.ERROR,
            "hello.dev: cannot start (exited with 1: Traceback |  |   boom\x1b); next try in 4 s",
        ),
        (
            SomethingElse(HELLO, "odd"),
            logging.INFO,
            "SomethingElse(function=Function(name='hello', namespace='dev'), what='odd')",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Event) else "",
)
def test_an_event_is_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture, event: Event, level: int, line: str
) -> None:
    EventLog()(event)
    assert caplog.record_tuples == [("scalezero_wsgi", level, line)]


def test_what_happens_as_it_should_is_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(Clock())
    for _ in range(3):
        log(ScaleRequested(HELLO, 0, 1))
        log(FunctionReady(HELLO, 1.0))
    assert len(caplog.records) == 6


@pytest.mark.parametrize(
    "event",
    [GAVE_UP, StartFailed(HELLO, "exited with 1", 1.0), ProviderFailed(HELLO, ProviderError("refused"))],
    ids=lambda event: type(event).__name__,
)
def test_a_function_that_fails_in_a_loop_is_logged_once_a_minute_with_a_count(
    caplog: pytest.LogCaptureFixture, event: Event
) -> None:
    clock = Clock()
    log = EventLog(clock)
    for _ in range(1_000):
        log(event)
    clock.now = 59.9
    log(event)
    assert len(caplog.messages) == 1
    clock.now = 60.0
    log(event)
    log(event)
    assert len(caplog.messages) == 2
    assert caplog.messages[1] == f"{caplog.messages[0]} (and 1000 times before, not logged)"


def test_a_minute_of_rest_ends_the_counting(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = EventLog(clock)
    for _ in range(3):
        log(GAVE_UP)
        clock.advance(60)
    assert caplog.messages == ["hello.dev: gave up after 25.000 s"] * 3


def test_one_functions_failures_do_not_hide_anothers_nor_its_own_of_another_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = EventLog(Clock())
    for event in (GAVE_UP, WaitGivenUp(Function("hello"), 1.0), StartFailed(HELLO, "exited", 1.0)) * 2:
        log(event)
    assert caplog.messages == [
        "hello.dev: gave up after 25.000 s",
        "hello: gave up after 1.000 s",
        "hello.dev: cannot start (exited); next try in 1 s",
    ]


def test_every_hook_is_told_every_event_in_order() -> None:
    told: list[tuple[str, Event]] = []
    report = Reporter([lambda event: told.append(("a", event)), lambda event: told.append(("b", event))])
    ready = FunctionReady(HELLO, 1.0)
    report(GAVE_UP)
    report(ready)
    assert told == [("a", GAVE_UP), ("b", GAVE_UP), ("a", ready), ("b", ready)]


def test_a_hook_that_raises_hurts_neither_the_caller_nor_the_other_hooks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []
    Reporter([failing, told.append])(GAVE_UP)
    assert told == [GAVE_UP]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("scalezero_wsgi", logging.ERROR)
    assert record.message == f"a hook failed on {GAVE_UP!r}"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a fault of the hook's own"


def test_a_workers_exit_is_not_kept_from_it_by_a_hook() -> None:
    def leave(_: Event) -> None:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        Reporter([leave])(GAVE_UP)


def test_nobody_need_listen() -> None:
    Reporter()(GAVE_UP)


def test_the_hooks_are_those_of_the_beginning() -> None:
    told: list[Event] = []
    hooks = [told.append]
    report = Reporter(hooks)
    hooks.clear()
    report(GAVE_UP)
    assert told == [GAVE_UP]


@pytest.mark.parametrize(
    "kind",
    [
        *(ScaleRequested, FunctionReady, WaitGivenUp, StartFailed),
        *(ProviderFailed, OutageBegan, OutageEnded, RequestRefused, RequestReplayed),
    ],
)
def test_an_event_is_a_frozen_slotted_dataclass_that_names_its_function(kind: type[FunctionEvent]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    event = kind(HELLO, *[1] * (len(names) - 1))
    assert event.function == HELLO
    assert not hasattr(event, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.function = Function("other")  # type: ignore[misc]


def test_a_providers_trouble_is_one_line_for_all_functions(caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(Clock())
    for number in range(50):
        log(ProviderFailed(Function(f"fn-{number}"), ProviderError("down")))
    assert len(caplog.records) == 1


def test_an_outage_is_one_line_at_its_begin_and_one_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = EventLog(clock)
    for number in range(50):
        function = Function(f"fn-{number}")
        log(OutageBegan(function, ProviderError("refused")))
        log(ProviderFailed(function, ProviderError("refused")))
        clock.advance(10)
    log(OutageEnded(Function("fn-7"), 500.0))
    log(OutageEnded(Function("fn-8"), 500.0))
    assert caplog.messages == [
        "the provider fails (refused); functions last seen up go on being served, fn-0 first",
        "the provider answers again after 500 s",
    ]
    log(ProviderFailed(Function("fn-8"), ProviderError("refused")))
    assert len(caplog.messages) == 3


def test_an_outage_does_not_hide_what_fails_besides_nor_one_that_comes_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    log = EventLog(clock)
    log(OutageBegan(HELLO, ProviderError("refused")))
    log(ProviderFailed(Function("other"), ProviderError("forbidden")))
    assert len(caplog.messages) == 2
    clock.advance(3600)  # nobody has asked for it since, so nobody knows that it ended
    log(OutageBegan(Function("other"), ProviderError("refused")))
    assert len(caplog.messages) == 3


def test_refusals_for_one_reason_are_one_line_a_minute_whatever_the_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    log = EventLog(clock)
    for number in range(500):
        log(RequestRefused(Function(f"fn-{number}"), "no place to wait"))
    log(RequestRefused(HELLO, "the worker stops"))
    assert caplog.messages == [
        "fn-0: refused a request: no place to wait",
        "hello.dev: refused a request: the worker stops",
    ]
    clock.advance(60)
    log(RequestRefused(HELLO, "no place to wait"))
    assert caplog.messages[2:] == [
        "hello.dev: refused a request: no place to wait (and 499 times before, not logged)"
    ]


def test_of_the_calls_that_one_function_fails_so_many_have_a_line_in_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    log = CallLog(clock)
    for minute in range(2):
        for number in range(CALLS_LOGGED + 30):
            log(f"{minute}-{number}", HELLO, "hello.dev: cannot start (no database)")
        log(f"{minute}-other", Function("other"), "other: cannot start (no database)")
        log(f"{minute}-provider", None, "the provider failed: refused")
        clock.advance(60.0)
    assert len(caplog.messages) == 2 * (CALLS_LOGGED + 2)
    assert caplog.messages[0] == "call 0-0: hello.dev: cannot start (no database)"
    assert caplog.messages[CALLS_LOGGED + 2] == (
        "call 1-0: hello.dev: cannot start (no database) (30 calls before, not logged)"
    )
