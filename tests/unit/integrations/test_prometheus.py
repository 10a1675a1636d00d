"""What Prometheus is told, read back by prometheus-client's own parser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from webtest import TestApp

from scalezero_wsgi import Function, FunctionFailed, FunctionNotFound, ProviderError, ScaleZeroMiddleware
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import (
    CoordinationLost,
    CoordinationRestored,
    DrainCancelled,
    FunctionEvicted,
    FunctionPaused,
    FunctionReady,
    FunctionStopped,
    ProviderFailed,
    ScaleRequested,
    StartFailed,
    StatusQueried,
)
from scalezero_wsgi.integrations import prometheus as module
from scalezero_wsgi.integrations.prometheus import PrometheusMetrics
from scalezero_wsgi.providers import ListingProvider, NamespacedProvider, WatchingProvider
from tests.support.clock import Clock
from tests.support.fakes import UP, ZERO, FakeEngine, ScriptedProvider
from tests.support.waiting import until

HELLO = Function("hello", "dev")
Series = dict[tuple[str, ...], float]


def told(metrics: PrometheusMetrics, name: str, middleware: ScaleZeroMiddleware | None = None) -> Series:
    """The samples of one metric: their labels' values, and their value."""
    text = TestApp(metrics.exposition(middleware)).get("/").text
    samples: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                samples[tuple(sample.labels.values())] = sample.value
    return samples


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response(environ.get("test.status", "200 OK"), [("Content-Type", "text/plain")])
    return [b"ok"]


def front(metrics: PrometheusMetrics, provider: Any, **settings: Any) -> tuple[TestApp, ScaleZeroMiddleware]:
    middleware = ScaleZeroMiddleware(app, provider, hooks=[metrics], page_after=None, **settings)
    return TestApp(metrics.wrap(middleware)), middleware


def test_requests_by_what_became_of_them() -> None:
    metrics = PrometheusMetrics()
    client, _ = front(metrics, ScriptedProvider(ZERO, UP), cache_expiry=0.0, stale_for=60.0)
    client.get("/function/hello")  # cold
    client.get("/function/hello")  # no longer fresh
    client.get("/function/Bad!", status=400)
    client.get("/elsewhere")
    assert told(metrics, "scalezero_requests_total") == {
        ("hello", "cold"): 1.0,
        ("hello", "stale"): 1.0,
        ("", "invalid"): 1.0,
    }
    assert told(metrics, "scalezero_wait_seconds_count") == {("hello",): 1.0}
    assert told(metrics, "scalezero_scalings_total") == {("hello", "request"): 1.0}
    assert told(metrics, "scalezero_cold_start_seconds_count") == {("hello",): 1.0}
    assert metrics.requests() == {"hello": {"cold": 1, "stale": 1}, "": {"invalid": 1}}


@pytest.mark.parametrize(
    ("provider", "settings", "outcome", "status"),
    [
        (ScriptedProvider(UP), {}, ("hello", "cold"), 200),
        (ScriptedProvider(FunctionNotFound("hello", "")), {}, ("", "missing"), 404),
        (ScriptedProvider(ZERO), {"max_wait": 0.05}, ("hello", "timeout"), 504),
        (ScriptedProvider(ZERO, on_set=FunctionFailed("hello", "no")), {}, ("hello", "failed"), 503),
        (ScriptedProvider(ProviderError("no")), {"max_wait": 0.5}, ("", "failed"), 502),
        (ScriptedProvider(ZERO), {"wake": ["other"]}, ("", "asleep"), 503),
        (ScriptedProvider(UP), {"deny": ["hello"]}, ("", "missing"), 404),
    ],
)
def test_an_outcome(
    provider: ScriptedProvider, settings: dict[str, Any], outcome: tuple[str, str], status: int
) -> None:
    metrics = PrometheusMetrics()
    client, _ = front(metrics, provider, **settings)
    client.get("/function/hello", status=status)
    assert told(metrics, "scalezero_requests_total") == {outcome: 1.0}


def test_warm_requests_and_one_that_was_passed_down_again() -> None:
    metrics = PrometheusMetrics()
    client, _ = front(metrics, ScriptedProvider(UP, ZERO, UP))
    for _ in range(3):
        client.get("/function/hello")
    client.get("/function/hello", extra_environ={"test.status": "502 BAD GATEWAY"}, status=502)
    counted = told(metrics, "scalezero_requests_total")
    assert counted["hello", "warm"] == 2.0
    assert counted["hello", "replayed"] == 1.0


def test_a_request_whose_application_raises_is_counted() -> None:
    def raises(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise OSError("the application's own")

    metrics = PrometheusMetrics()
    client = TestApp(metrics.wrap(ScaleZeroMiddleware(raises, ScriptedProvider(UP), hooks=[metrics])))
    for path in ("/function/hello", "/function/hello", "/elsewhere"):
        with pytest.raises(OSError, match="own"):
            client.get(path)
    assert told(metrics, "scalezero_requests_total") == {("hello", "cold"): 1.0, ("hello", "warm"): 1.0}


def test_invented_names_make_no_time_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FUNCTIONS", 3)
    metrics = PrometheusMetrics()
    client, _ = front(metrics, FakeEngine(Clock(), known={"hello"}))
    for number in range(200):
        client.get(f"/function/invented-{number}", status=404)
    assert told(metrics, "scalezero_requests_total") == {("", "missing"): 200.0}
    for number in range(10):
        metrics(ScaleRequested(Function(f"real-{number}"), 0, 1))
    scaled = told(metrics, "scalezero_scalings_total")
    assert len(scaled) == 4
    assert scaled["other", "request"] == 7.0


def test_events() -> None:
    metrics = PrometheusMetrics()
    for event in (
        StatusQueried(HELLO, 0, 0),
        StatusQueried(HELLO, 0, 0, led=False),
        StatusQueried(HELLO, 1, 1, led=False),
        FunctionStopped(HELLO, 1.0),
        FunctionPaused(HELLO, 1.0),
        FunctionStopped(HELLO, 1.0, "evicted"),
        FunctionEvicted(HELLO, HELLO),  # says the same
        FunctionReady(HELLO, 0.3, led=False),  # its leader says the same
        FunctionReady(HELLO, 0.3),
        StartFailed(HELLO, "no", 1.0),
        DrainCancelled(HELLO, "a request came"),
        ProviderFailed(HELLO, ProviderError("no")),
    ):
        metrics(event)
    assert told(metrics, "scalezero_scalings_total") == {
        ("hello.dev", "idle"): 1.0,
        ("hello.dev", "paused"): 1.0,
        ("hello.dev", "evicted"): 1.0,
    }
    assert told(metrics, "scalezero_flights_total") == {("led",): 1.0, ("followed",): 2.0}
    buckets = told(metrics, "scalezero_cold_start_seconds_bucket")
    assert (buckets["hello.dev", "0.25"], buckets["hello.dev", "0.5"]) == (0.0, 1.0)
    assert told(metrics, "scalezero_start_failures_total") == {("hello.dev",): 1.0}
    assert told(metrics, "scalezero_drains_cancelled_total") == {("hello.dev",): 1.0}
    assert told(metrics, "scalezero_provider_faults_total") == {(): 1.0}
    assert told(metrics, "scalezero_coordination_lost") == {(): 0.0}
    metrics(CoordinationLost(ProviderError("no")))
    assert told(metrics, "scalezero_coordination_lost") == {(): 1.0}
    metrics(CoordinationRestored())
    assert told(metrics, "scalezero_coordination_lost") == {(): 0.0}
    assert list(told(metrics, "scalezero_build_info").values()) == [1.0]


def test_the_providers_calls_are_counted_and_it_can_do_what_it_could() -> None:
    class Listing(ScriptedProvider):
        own_namespace = "dev"

        def list_functions(self) -> list[Function]:
            return [HELLO]

    metrics = PrometheusMetrics()
    provider = metrics.count_calls(Listing(UP, FunctionNotFound("x", ""), ProviderError("no")))
    assert isinstance(provider, ListingProvider)
    assert not isinstance(provider, WatchingProvider)
    assert isinstance(provider, NamespacedProvider)
    assert provider.own_namespace == "dev"
    assert provider.get_replicas("hello", "") == UP
    for error in (FunctionNotFound, ProviderError):
        with pytest.raises(error):
            provider.get_replicas("hello", "")
    provider.set_replicas("hello", "", 1)
    assert list(provider.list_functions()) == [HELLO]
    assert told(metrics, "scalezero_provider_calls_total") == {
        ("get_replicas", "ok"): 1.0,
        ("get_replicas", "missing"): 1.0,
        ("get_replicas", "error"): 1.0,
        ("set_replicas", "ok"): 1.0,
        ("list_functions", "ok"): 1.0,
    }


@pytest.mark.parametrize("settings", [{}, {"idle_after": 0.2}], ids=["", "idle_after"])
def test_requests_in_flight_are_told_as_they_are(settings: dict[str, Any]) -> None:
    metrics = PrometheusMetrics()
    middleware: list[ScaleZeroMiddleware] = []
    seen: list[Series] = []

    def looks(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        store = middleware[0]._store
        if isinstance(store, MemoryCoordination):
            until(lambda: any(report.in_flight for report in store.workers()))
        seen.append(told(metrics, "scalezero_in_flight", middleware[0]))
        return app(environ, start_response)

    middleware.append(ScaleZeroMiddleware(looks, ScriptedProvider(UP), **settings))
    TestApp(middleware[0]).get("/function/hello")
    assert seen == [{("hello",): 1.0}]
    assert told(metrics, "scalezero_in_flight", middleware[0]) == {}
