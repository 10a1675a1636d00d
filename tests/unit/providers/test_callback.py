from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from scalezero_wsgi import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    ProviderError,
    ReplicaStatus,
    ScaleZeroMiddleware,
    SettingError,
)
from scalezero_wsgi.model import AT_ZERO, NotAvailable
from scalezero_wsgi.providers import CallbackProvider, DoubtingProvider, Provider, WatchingProvider
from tests.support.clock import Clock

CALLBACKS = ["get_replicas", "set_replicas", "scale_up", "scale_down"]
ALLOWED = [{"get_replicas", "set_replicas"}, {"scale_up"}, {"scale_up", "scale_down"}]
COMBINATIONS = [set(names) for count in range(5) for names in itertools.combinations(CALLBACKS, count)]


ONE = ReplicaStatus(1, 1)


class Engine:
    """Callbacks that write down their calls, and raise ``error`` if there is one."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.error: Exception | None = None

    def up(self, name: str, namespace: str) -> None:
        self._call("up", name, namespace)

    def down(self, name: str, namespace: str) -> None:
        self._call("down", name, namespace)

    def get(self, name: str, namespace: str) -> ReplicaStatus:
        self._call("get", name, namespace)
        return ReplicaStatus(3, 2)

    def set(self, name: str, namespace: str, replicas: int) -> str:
        self._call("set", name, namespace, replicas)
        return "ignored"

    def _call(self, *call: object) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def available(provider: Provider, name: str = "hello", namespace: str = "") -> int:
    status = provider.get_replicas(name, namespace)
    assert status.replicas == status.available_replicas
    return status.available_replicas


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: "+".join(sorted(names)) or "none")
def test_callbacks_come_in_one_of_two_forms_and_any_other_combination_is_refused(names: set[str]) -> None:
    callbacks: dict[str, Any] = {name: lambda *_: None for name in names}
    if names in ALLOWED:
        assert isinstance(CallbackProvider(**callbacks), DoubtingProvider)
    else:
        with pytest.raises(SettingError, match="either get_replicas and set_replicas, or scale_up"):
            CallbackProvider(**callbacks)


def test_it_is_asked_and_not_watched(engine: Engine) -> None:
    assert not isinstance(CallbackProvider(scale_up=engine.up), WatchingProvider)


def test_get_and_set_are_passed_on_to_their_callbacks(engine: Engine) -> None:
    provider = CallbackProvider(get_replicas=engine.get, set_replicas=engine.set)
    assert provider.get_replicas("hello", "dev") == ReplicaStatus(3, 2)
    provider.set_replicas("hello", "dev", 2)
    provider.set_replicas("hello", "", 0)
    assert engine.calls == [("get", "hello", "dev"), ("set", "hello", "dev", 2), ("set", "hello", "", 0)]


OWN = [FunctionNotFound("hello"), ProviderError("no"), FunctionFailed("hello", "its licence has expired")]


@pytest.mark.parametrize("error", [*OWN, OSError("refused")])
def test_what_get_and_set_raise_is_not_changed(engine: Engine, error: Exception) -> None:
    asking = CallbackProvider(get_replicas=engine.get, set_replicas=engine.set)
    engine.error = error
    with pytest.raises(type(error)) as caught:
        asking.get_replicas("hello", "")
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        asking.set_replicas("hello", "", 1)
    assert caught.value is error


@pytest.mark.parametrize("error", OWN)
def test_what_scale_up_says_in_the_packages_words_is_not_changed(
    engine: Engine, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine.error = error
    with pytest.raises(type(error)) as caught:
        CallbackProvider(scale_up=engine.up).set_replicas("hello", "", 1)
    assert caught.value is error
    assert caplog.records == []


class Timeout(BaseException):
    """As gevent's."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("refused"), "scale_up raised OSError: refused"),
        (AssertionError(), "scale_up raised AssertionError"),
        (ValueError("two\n  lines"), "scale_up raised ValueError: two lines"),
        (NotAvailable(Function("db"), 3.0), "scale_up raised NotAvailable: function db was not available"),
        (Timeout("5 seconds"), "scale_up raised Timeout: 5 seconds"),
        (SystemExit("no"), "scale_up raised SystemExit: no"),
    ],
)
def test_whatever_else_scale_up_raises_is_a_failed_start_with_its_traceback_in_the_log(
    error: BaseException, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def scale_up(name: str, namespace: str) -> None:
        raise error

    provider = CallbackProvider(scale_up=scale_up)
    with pytest.raises(FunctionFailed) as caught:
        provider.set_replicas("hello", "dev", 1)
    assert caught.value.function == Function("hello", "dev")
    assert caught.value.reason.startswith(reason)
    assert caught.value.__cause__ is error
    assert available(provider, "hello", "dev") == 0
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("scalezero_wsgi", logging.ERROR)
    assert record.getMessage() == "hello.dev: scale_up raised"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_a_long_error_is_not_kept_whole(engine: Engine) -> None:
    engine.error = OSError("x" * 10_000)
    with pytest.raises(FunctionFailed) as caught:
        CallbackProvider(scale_up=engine.up).set_replicas("hello", "", 1)
    assert len(caught.value.reason) < 400


def test_with_get_and_set_a_doubt_changes_nothing(engine: Engine) -> None:
    provider = CallbackProvider(get_replicas=engine.get, set_replicas=engine.set)
    provider.doubt("hello", "")
    assert provider.get_replicas("hello", "") == ReplicaStatus(3, 2)


def test_a_function_is_at_zero_until_it_was_scaled_up_and_available_then(engine: Engine) -> None:
    provider = CallbackProvider(scale_up=engine.up)
    assert available(provider) == 0
    provider.set_replicas("hello", "", 1)
    assert available(provider) == 1
    assert engine.calls == [("up", "hello", "")]


def test_it_is_not_available_before_scale_up_has_returned() -> None:
    seen: list[int] = []
    provider = CallbackProvider(scale_up=lambda *function: seen.append(available(provider, *function)))
    provider.set_replicas("hello", "", 1)
    assert seen == [0]
    assert available(provider) == 1


def test_the_same_name_in_two_namespaces_is_scaled_apart(engine: Engine) -> None:
    provider = CallbackProvider(scale_up=engine.up)
    provider.set_replicas("hello", "a", 1)
    assert (available(provider, "hello", "a"), available(provider, "hello", "b")) == (1, 0)


def test_a_scale_up_that_raises_leaves_the_function_at_zero(engine: Engine) -> None:
    provider = CallbackProvider(scale_up=engine.up)
    engine.error = OSError("refused")
    with pytest.raises(FunctionFailed, match="refused"):
        provider.set_replicas("hello", "", 1)
    assert available(provider) == 0


def test_to_zero_calls_scale_down_and_the_function_counts_as_at_zero(engine: Engine) -> None:
    provider = CallbackProvider(scale_up=engine.up, scale_down=engine.down)
    provider.set_replicas("hello", "dev", 1)
    provider.set_replicas("hello", "dev", 0)
    assert available(provider, "hello", "dev") == 0
    assert engine.calls == [("up", "hello", "dev"), ("down", "hello", "dev")]


def test_a_function_is_at_zero_already_while_it_is_scaled_down() -> None:
    seen: list[int] = []
    provider = CallbackProvider(
        scale_up=lambda *_: None,
        scale_down=lambda *function: seen.append(available(provider, *function)),
    )
    provider.set_replicas("hello", "", 1)
    provider.set_replicas("hello", "", 0)
    assert seen == [0]


def test_to_zero_without_scale_down_is_remembered_all_the_same(engine: Engine) -> None:
    provider = CallbackProvider(scale_up=engine.up)
    provider.set_replicas("hello", "", 1)
    provider.set_replicas("hello", "", 0)
    assert available(provider) == 0
    assert engine.calls == [("up", "hello", "")]


def test_a_doubt_puts_the_function_back_to_zero_so_that_it_is_scaled_up_again(
    engine: Engine, clock: Clock
) -> None:
    provider = CallbackProvider(scale_up=engine.up, clock=clock)
    provider.set_replicas("hello", "", 1)
    clock.advance(5)
    provider.doubt("hello", "")
    assert available(provider) == 0
    provider.set_replicas("hello", "", 1)
    assert available(provider) == 1
    assert len(engine.calls) == 2


def test_a_scale_up_of_just_now_is_not_doubted(engine: Engine, clock: Clock) -> None:
    provider = CallbackProvider(scale_up=engine.up, clock=clock)
    clock.advance(100)
    provider.set_replicas("hello", "", 1)
    clock.advance(4.9)
    provider.doubt("hello", "")
    assert available(provider) == 1


def test_a_doubt_about_one_function_spares_the_others(engine: Engine, clock: Clock) -> None:
    provider = CallbackProvider(scale_up=engine.up, clock=clock)
    for namespace in ("a", "b"):
        provider.set_replicas("hello", namespace, 1)
    clock.advance(60)
    provider.doubt("hello", "a")
    provider.doubt("never-seen", "")
    assert (available(provider, "hello", "a"), available(provider, "hello", "b")) == (0, 1)


class TestWhatOtherWorkersTell:
    """``learn``; ages are seconds."""

    @pytest.fixture
    def provider(self, engine: Engine, clock: Clock) -> CallbackProvider:
        """It scaled the function up 100 s ago."""
        provider = CallbackProvider(scale_up=engine.up, clock=clock)
        provider.set_replicas("hello", "", 1)
        clock.advance(100)
        return provider

    def test_the_start_of_another_bounds_the_doubts_of_all(
        self, provider: CallbackProvider, clock: Clock
    ) -> None:
        provider.learn("hello", "", ONE, 0.0, started=1.0)
        clock.advance(3.9)
        provider.doubt("hello", "")
        assert available(provider) == 1
        clock.advance(0.2)
        provider.doubt("hello", "")
        assert available(provider) == 0

    def test_a_doubt_that_came_before_the_news_of_the_start_is_settled_by_it(
        self, provider: CallbackProvider
    ) -> None:
        provider.doubt("hello", "")
        provider.learn("hello", "", ONE, 0.5, started=1.0)
        assert available(provider) == 1

    @pytest.mark.parametrize("started", [None, 100.0, 6.0])
    def test_a_doubt_stands_against_a_belief(self, provider: CallbackProvider, started: float | None) -> None:
        """Another worker has not met the function since, and has not scaled it up either."""
        provider.doubt("hello", "")
        provider.learn("hello", "", ONE, 0.0, started)
        assert available(provider) == 0

    def test_one_that_another_found_down_is_down(self, provider: CallbackProvider) -> None:
        provider.learn("hello", "", AT_ZERO, 101.0, started=None)
        assert available(provider) == 1
        provider.learn("hello", "", AT_ZERO, 1.0, started=100.0)
        assert available(provider) == 0
        provider.learn("hello", "", ONE, 0.0, started=0.5)
        assert available(provider) == 1

    def test_one_that_was_scaled_down_is_not_brought_back_by_old_news(
        self, provider: CallbackProvider
    ) -> None:
        provider.set_replicas("hello", "", 0)
        provider.learn("hello", "", ONE, 1.0, started=100.0)
        assert available(provider) == 0

    @pytest.mark.parametrize("started", [None, 3.0])
    def test_a_worker_that_knows_nothing_takes_what_it_is_told(
        self, engine: Engine, clock: Clock, started: float | None
    ) -> None:
        provider = CallbackProvider(scale_up=engine.up, clock=clock)
        provider.learn("hello", "", ONE, 1.0, started)
        assert (available(provider), engine.calls) == (1, [])


class AsyncCall:
    async def __call__(self, name: str, namespace: str) -> None: ...


async def asynchronous(name: str, namespace: str) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("systemctl start", "not 'systemctl start'$"),
        (lambda: None, "too many positional arguments$"),
        (lambda name: None, "too many positional arguments$"),
        (lambda name, namespace, replicas: None, "missing a required argument: 'replicas'$"),
        (lambda name, *, namespace: None, "too many positional arguments$"),
        (asynchronous, "it is async, and nothing would await it$"),
        (functools.partial(asynchronous, "hello"), "it is async"),
        (AsyncCall(), "it is async"),
        (mock.AsyncMock(), "it is async"),
    ],
)
def test_a_callback_that_cannot_be_called_stops_the_start(wrong: Any, why: str) -> None:
    forms: list[tuple[str, dict[str, Any]]] = [
        ("scale_up", {}),
        ("scale_down", {"scale_up": lambda *_: None}),
        ("get_replicas", {"set_replicas": lambda *_: None}),
    ]
    for what, others in forms:
        message = re.escape(f"{what} must be a callable of (name, namespace), not {wrong!r}")
        with pytest.raises(SettingError, match=f"^{message}") as caught:
            CallbackProvider(**{what: wrong}, **others)
        assert re.search(why, str(caught.value))


def test_set_replicas_takes_three() -> None:
    with pytest.raises(
        SettingError, match=r"set_replicas must be a callable of \(name, namespace, replicas\)"
    ):
        CallbackProvider(get_replicas=lambda *_: AT_ZERO, set_replicas=lambda name, namespace: None)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    "right",
    [
        lambda *_: None,
        lambda name, namespace="", wait=True: None,
        functools.partial(lambda engine, name, namespace: None, "engine"),
        mock.Mock(),
        min,  # written in C: what it takes is told by nobody
        print,
    ],
)
def test_whatever_can_be_called_so_is_taken(right: Callable[..., Any]) -> None:
    CallbackProvider(scale_up=right)


def test_invented_names_do_not_fill_the_memory(engine: Engine) -> None:
    provider = CallbackProvider(scale_up=engine.up)
    for number in range(10_001):
        provider.set_replicas(f"f{number}", "", 1)
    assert (available(provider, "f0"), available(provider, "f1"), available(provider, "f10000")) == (0, 1, 1)


def test_two_lines_make_a_middleware_that_wakes(engine: Engine) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(environ["scalezero_wsgi.function"]).encode()]

    statuses: list[str] = []
    middleware = ScaleZeroMiddleware(app, CallbackProvider(scale_up=engine.up))
    for _ in range(2):
        environ = {"PATH_INFO": "/function/hello.dev", "REQUEST_METHOD": "GET"}
        body = middleware(environ, lambda status, *_: statuses.append(status))  # type: ignore[arg-type]
        assert b"".join(body) == b"hello.dev"
    assert statuses == ["200 OK"] * 2
    assert engine.calls == [("up", "hello", "dev")]
