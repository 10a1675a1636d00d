"""One function has one identity, whichever of its names a request has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from scalezero_wsgi import (
    Function,
    ReplicaStatus,
    ScaleZeroMiddleware,
    SettingError,
    Settings,
    by_header,
    by_host,
)
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.middleware import FUNCTION
from scalezero_wsgi.providers import (
    CallbackProvider,
    KubernetesProvider,
    NamespacedProvider,
    OpenFaaSProvider,
    ProcessProvider,
)
from tests.support.clock import Clock
from tests.support.fakes import UP, FakeEngine
from tests.support.waiting import PATIENCE, until
from tests.support.wsgi import STATUS, App, ask, begin, state

SECRET = Function("secret", "fn")


class Engine(FakeEngine):
    """A provider that has a namespace of its own."""

    own_namespace = "fn"

    def __init__(
        self,
        own_namespace: str = "fn",
        delay: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock, delay)
        self.own_namespace = own_namespace


NAMES = ["secret", "secret.fn"]


@pytest.mark.parametrize("default", ["", "fn"])
@pytest.mark.parametrize("pattern", ["secret", "secret.fn", "*.fn", "s*"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rule_for_one_name_holds_for_the_other(name: str, pattern: str, default: str) -> None:
    door = ScaleZeroMiddleware(App(), engine := Engine(), deny=[pattern], default_namespace=default)
    assert ask(door, f"/function/{name}")[0] == "404 NOT FOUND"
    door = ScaleZeroMiddleware(App(), engine, wake=["other", "*.dev"], default_namespace=default)
    assert ask(door, f"/function/{name}")[0] == "503 SERVICE UNAVAILABLE"
    assert engine.sets == []
    door = ScaleZeroMiddleware(App(), engine, allow=[pattern], wake=[pattern], default_namespace=default)
    assert ask(door, f"/function/{name}")[0] == "200 OK"
    assert engine.sets == [(SECRET, 1)]


def test_a_namespace_of_another_name_is_another() -> None:
    door = ScaleZeroMiddleware(app := App(), Engine(), deny=["secret"])
    assert ask(door, "/function/secret.dev")[0] == "200 OK"
    assert app.calls[0][FUNCTION] == ("secret", "dev")


@pytest.mark.parametrize("default", ["", "fn"])
def test_it_is_one_entry_one_flight_and_one_lease(default: str) -> None:
    app, engine, store = App(), Engine(delay=0.2), MemoryCoordination()
    doors = [
        ScaleZeroMiddleware(
            app, engine, default_namespace=default, coordination=store, cache_expiry=60, max_wait=PATIENCE
        )
        for _ in range(2)
    ]
    threads = [
        threading.Thread(target=ask, args=(door, f"/function/{name}")) for door in doors for name in NAMES
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [call[FUNCTION] for call in app.calls] == [SECRET] * 4
    assert engine.sets == [(SECRET, 1)]
    assert set(engine.queries) == {SECRET}
    for door in doors:
        assert [state.function for state in door.cache.states()] == [SECRET]
        assert [ask(door, f"/function/{name}")[0] for name in NAMES * 2] == ["200 OK"] * 4
        state = door.cache.state(SECRET)
        assert door._segments.get("secret") is door._segments.get("secret.fn") is state
    assert store.known(SECRET) is not None
    assert store.known(Function("secret")) is None


@pytest.mark.parametrize("key", NAMES)
def test_it_has_one_deadline(key: str) -> None:
    door = ScaleZeroMiddleware(App(), Engine(), max_wait_of={key: 7, "secret.dev": 3})
    assert door.queue.max_wait(SECRET) == 7
    with pytest.raises(SettingError, match="names a function twice"):
        ScaleZeroMiddleware(App(), Engine(), max_wait_of={"secret": 7, "secret.fn": 3})
    assert Settings(max_wait_of={"secret": 7, "secret.fn": 3}).max_wait_of == {"secret": 7, "secret.fn": 3}


@pytest.mark.parametrize("name", NAMES)
def test_its_status_is_told_under_both_names(name: str) -> None:
    clock = Clock()
    door = ScaleZeroMiddleware(App(), Engine(delay=1.0, clock=clock))
    begin(door, f"/function/{name}")
    assert [state(door, each) for each in NAMES] == ["starting"] * 2
    clock.advance(1.0)
    until(lambda: [state(door, each) for each in NAMES] == ["ready"] * 2)
    assert state(door, "secret.dev") == "unknown"


def test_a_default_namespace_of_ones_own_leaves_the_providers_its_name() -> None:
    """``secret`` is another function then, and neither is taken for the other."""
    door = ScaleZeroMiddleware(app := App(), Engine(), default_namespace="dev", deny=["secret"])
    assert ask(door, "/function/secret")[0] == ask(door, "/function/secret.dev")[0] == "404 NOT FOUND"
    assert ask(door, "/function/secret.fn")[0] == "200 OK"
    door = ScaleZeroMiddleware(app, Engine(), default_namespace="dev", deny=["secret.fn"])
    assert ask(door, "/function/secret.fn")[0] == "404 NOT FOUND"
    assert ask(door, "/function/secret")[0] == "200 OK"
    assert [call[FUNCTION] for call in app.calls] == [("secret", "fn"), ("secret", "dev")]


@pytest.mark.parametrize(
    ("route", "requests"),
    [
        (by_header("X-Function"), [{"headers": {"X-Function": name}} for name in NAMES]),
        (by_host("{name}.example.com"), [{"base_url": "http://secret.example.com"}]),
        (
            by_host("{name}.{namespace}.example.com"),
            [{"base_url": "http://secret.fn.example.com"}],
        ),
        (
            lambda environ: ("secret", environ["QUERY_STRING"]),
            [{"query_string": each} for each in ("", "fn")],
        ),
    ],
)
def test_every_kind_of_route_makes_one_function_of_them(route: Any, requests: list[Any]) -> None:
    for options in requests:
        door = ScaleZeroMiddleware(App(), engine := Engine(), route=route, deny=["secret"])
        assert ask(door, "/", **options)[0] == "404 NOT FOUND"
        door = ScaleZeroMiddleware(app := App(), engine, route=route)
        assert ask(door, "/", **options)[0] == "200 OK"
        assert app.calls[0][FUNCTION] == SECRET


def test_a_name_with_dots_is_one_function_too() -> None:
    for name in ("my.v2.fn", "my.v2.openfaas-fn"):
        namespace = name.rpartition(".")[2]
        own = Engine(namespace)
        door = ScaleZeroMiddleware(app := App(), own, names="openfaas", max_wait_of={name: 3})
        assert ask(door, f"/function/{name}")[0] == "200 OK"
        assert app.calls[0][FUNCTION] == ("my.v2", namespace)
        assert state(door, name) == "ready"
        by_value = ScaleZeroMiddleware(app, own, names="openfaas", route=lambda _: ("my.v2", ""))
        assert ask(by_value, "/")[0] == "200 OK"
        assert app.calls[1][FUNCTION] == ("my.v2", namespace)


def test_the_page_names_it_so_that_its_status_is_found() -> None:
    door = ScaleZeroMiddleware(App(), Engine(delay=0.5), page_after=0.05)
    body = ask(door, "/function/secret", headers={"Accept": "text/html"})[2].decode()
    assert f'data-status="{STATUS}secret.fn"' in body


def test_providers_without_a_namespace_of_their_own_are_as_they_were() -> None:
    for provider in (Engine(""), FakeEngine(time.monotonic), CallbackProvider(scale_up=lambda *_: None)):
        door = ScaleZeroMiddleware(app := App(), provider, deny=["secret.fn"])
        assert ask(door, "/function/secret.fn")[0] == "404 NOT FOUND"
        assert ask(door, "/function/secret")[0] == "200 OK"
        assert app.calls[0][FUNCTION] == ("secret", "")
    assert not isinstance(ProcessProvider({}), NamespacedProvider)


def test_callbacks_may_have_one() -> None:
    told = []
    provider = CallbackProvider(scale_up=lambda *function: told.append(function), namespace="fn")
    door = ScaleZeroMiddleware(App(), provider, cache_expiry=0, stale_for=0)
    for name in NAMES:
        assert ask(door, f"/function/{name}")[0] == "200 OK"
    assert told == [SECRET]


@pytest.mark.parametrize("own", ["No", "a.b", None, 7])
def test_a_namespace_that_cannot_be_one_stops_the_start(own: object) -> None:
    provider = SimpleNamespace(get_replicas=print, set_replicas=print, own_namespace=own)
    with pytest.raises(SettingError, match=rf"^provider: its namespace {own!r} cannot be used: "):
        ScaleZeroMiddleware(App(), provider)


def test_the_providers_that_have_one_say_so(tmp_path: Any) -> None:
    (tmp_path / "config").write_text(
        "{clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {}}],"
        " contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"
    )
    kubernetes = KubernetesProvider(kubeconfig=tmp_path / "config")
    made: list[NamespacedProvider] = [
        kubernetes,
        KubernetesProvider(kubeconfig=tmp_path / "config", namespace="fn"),
        OpenFaaSProvider("http://gateway"),
        OpenFaaSProvider("http://gateway", namespace="fn"),
        OpenFaaSProvider.from_url("openfaas+http://gateway?namespace=fn"),
        CallbackProvider(scale_up=print, namespace="fn"),
    ]
    assert [each.own_namespace for each in made] == ["default", "fn", "openfaas-fn", "fn", "fn", "fn"]
    door = ScaleZeroMiddleware(App(), kubernetes, deny=["secret"])
    assert [ask(door, f"/function/{name}")[0] for name in ("secret", "secret.default")] == [
        "404 NOT FOUND"
    ] * 2


def test_the_settings_that_were_given_are_not_changed() -> None:
    given = Settings(max_wait_of={"secret": 3})
    door = ScaleZeroMiddleware(App(), Engine(), settings=given)
    assert door.settings.max_wait_of == {"secret.fn": 3}
    assert (given.default_namespace, dict(given.max_wait_of)) == ("", {"secret": 3})


def test_the_function_that_a_status_is_of_goes_to_the_provider_with_its_namespace() -> None:
    seen: list[tuple[str, str]] = []

    def get_replicas(name: str, namespace: str) -> ReplicaStatus:
        seen.append((name, namespace))
        return UP

    provider = CallbackProvider(get_replicas=get_replicas, set_replicas=print, namespace="fn")
    assert ask(ScaleZeroMiddleware(App(), provider), "/function/secret")[0] == "200 OK"
    assert seen == [("secret", "fn")]
