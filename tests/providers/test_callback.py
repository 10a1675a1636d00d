from __future__ import annotations

import itertools
from typing import Any

import pytest

from scalezero_wsgi import FunctionNotFound, ProviderError, ReplicaStatus, ScaleZeroMiddleware, SettingError
from scalezero_wsgi.providers import CallbackProvider, DoubtingProvider, Provider, WatchingProvider
from tests.clock import Clock

CALLBACKS = ["get_replicas", "set_replicas", "scale_up", "scale_down"]
ALLOWED = [{"get_replicas", "set_replicas"}, {"scale_up"}, {"scale_up", "scale_down"}]
COMBINATIONS = [set(names) for count in range(5) for names in itertools.combinations(CALLBACKS, count)]


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


@pytest.mark.parametrize("error", [FunctionNotFound("hello"), ProviderError("no"), OSError("refused")])
def test_what_a_callback_raises_is_not_changed(engine: Engine, error: Exception) -> None:
    asking = CallbackProvider(get_replicas=engine.get, set_replicas=engine.set)
    pushing = CallbackProvider(scale_up=engine.up)
    engine.error = error
    with pytest.raises(type(error)) as caught:
        asking.get_replicas("hello", "")
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        asking.set_replicas("hello", "", 1)
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        pushing.set_replicas("hello", "", 1)
    assert caught.value is error


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
    with pytest.raises(OSError, match="refused"):
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
