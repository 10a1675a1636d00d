"""Spans as the SDK collects them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import ANY

import pytest
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from webtest import TestApp

from scalezero_wsgi import Function, FunctionFailed, FunctionNotFound, ProviderError, ScaleZeroMiddleware
from scalezero_wsgi.events import DrainCancelled, FunctionReady, ScaleRequested, StartFailed
from scalezero_wsgi.integrations import opentelemetry as module
from scalezero_wsgi.integrations.opentelemetry import OpenTelemetryTracing
from scalezero_wsgi.middleware import FUNCTION, WAITED
from scalezero_wsgi.proxy import FunctionProxy
from tests.support.fakes import UP, ZERO, ScriptedProvider

HELLO = Function("hello", "dev")
TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TRACEPARENT = f"00-{TRACE:032x}-{PARENT:016x}-01"
Environ = dict[str, Any]


class Bench:
    """The middleware with its requests traced; ``seen`` is what the application finds."""

    def __init__(self, provider: Any, sampler: Sampler = ALWAYS_ON, **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.sdk = TracerProvider(sampler=sampler)
        self.sdk.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = OpenTelemetryTracing(self.sdk)
        self.seen: list[Environ] = []
        middleware = ScaleZeroMiddleware(
            self.tracing.wrap_app(self.app), provider, hooks=[self.tracing], page_after=None, **settings
        )
        self.client = TestApp(self.tracing.wrap(middleware))

    def app(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.seen.append(dict(environ))
        start_response(environ.get("test.status", "200 OK"), [("Content-Type", "text/plain")])
        return [b"ok"]

    def spans(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == "scalezero.wait"]


def names(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


def test_a_cold_start_is_a_span_of_the_wait_with_what_happened_in_it() -> None:
    bench = Bench(ScriptedProvider(ZERO, UP))
    before = time.time_ns()
    bench.client.get("/function/hello.dev/a%C3%A4")
    after = time.time_ns()
    (span,) = bench.spans()
    assert span.attributes == {
        "http.request.method": "GET",
        "url.path": "/function/hello.dev/aä",
        "faas.invoked_name": "hello.dev",
        "faas.coldstart": True,
        "scalezero.outcome": "cold",
    }
    assert names(span) == [
        "scalezero.status_queried",
        "scalezero.scale_requested",
        "scalezero.function_ready",
    ]
    queried, scaled, ready = span.events
    assert queried.attributes == {"scalezero.replicas": 0, "scalezero.available": 0, "scalezero.led": True}
    assert scaled.attributes == {"scalezero.before": 0, "scalezero.replicas": 1, "scalezero.took": ANY}
    assert ready.attributes is not None
    assert ready.attributes["scalezero.led"] is True
    assert span.start_time is not None
    assert span.end_time is not None
    times = [before, span.start_time, *(event.timestamp for event in span.events), span.end_time, after]
    assert times == sorted(times)
    assert span.status.is_unset


def test_a_warm_request_and_one_for_no_function_have_none() -> None:
    bench = Bench(ScriptedProvider(UP), cache_expiry=0.0, stale_for=60.0)
    bench.client.get("/function/hello")
    (span,) = bench.spans()  # the first one has to ask
    assert span.attributes is not None
    assert span.attributes["faas.coldstart"] is False
    assert names(span) == ["scalezero.status_queried"]
    for path in ("/function/hello", "/elsewhere"):
        bench.client.get(path)
    assert len(bench.spans()) == 1


@pytest.mark.parametrize(
    ("provider", "settings", "outcome", "name", "status"),
    [
        (ScriptedProvider(ZERO), {"max_wait": 0.05}, "timeout", "hello", 504),
        (ScriptedProvider(ZERO, on_set=FunctionFailed("hello", "no")), {}, "failed", "hello", 503),
        (ScriptedProvider(ProviderError("no")), {"max_wait": 0.5}, "failed", None, 502),
    ],
)
def test_a_request_that_waited_in_vain_has_an_error(
    provider: ScriptedProvider, settings: dict[str, Any], outcome: str, name: str | None, status: int
) -> None:
    bench = Bench(provider, **settings)
    bench.client.get("/function/hello", status=status)
    (span,) = bench.spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == span.attributes["scalezero.outcome"] == outcome
    assert span.attributes.get("faas.invoked_name") == name
    assert "faas.coldstart" not in span.attributes
    assert span.status.status_code is trace.StatusCode.ERROR


def test_what_clients_invent_has_no_span() -> None:
    bench = Bench(ScriptedProvider(FunctionNotFound("hello", "")))
    bench.client.get("/function/hello", status=404)
    bench.client.get("/function/Bad!", status=400)
    assert bench.spans() == []


def test_one_that_was_passed_down_again() -> None:
    bench = Bench(ScriptedProvider(UP, ZERO, UP))
    bench.client.get("/function/hello")
    bench.client.get("/function/hello", extra_environ={"test.status": "502 BAD GATEWAY"}, status=502)
    _, span = bench.spans()
    assert span.attributes is not None
    assert (span.attributes["scalezero.outcome"], span.attributes["faas.coldstart"]) == ("replayed", True)


def test_one_that_was_held_before_it_was_passed_down_again_has_two_spans_of_one_trace() -> None:
    bench = Bench(ScriptedProvider(ZERO, UP, ZERO, UP), cache_expiry=0)
    bench.client.get("/function/hello", extra_environ={"test.status": "502 BAD GATEWAY"}, status=502)
    first, second = bench.spans()
    assert told_of(second.parent) == told_of(first.context)
    assert first.end_time == second.start_time


def parent_of(environ: Environ) -> tuple[str, str]:
    """The trace and the span that the function is told."""
    _, trace_id, span_id, _ = environ["HTTP_TRACEPARENT"].split("-")
    return trace_id, span_id


def told_of(context: trace.SpanContext | None) -> tuple[str, str]:
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def test_the_servers_span_is_the_parent_and_the_function_gets_its_context() -> None:
    bench = Bench(ScriptedProvider(ZERO, UP))
    with bench.sdk.get_tracer("server").start_as_current_span("GET") as server:
        for path in ("/function/hello", "/function/hello", "/elsewhere"):  # cold, warm and not ours
            bench.client.get(path, headers={"traceparent": TRACEPARENT, "tracestate": "a=b"})
    (span,) = bench.spans()
    context = server.get_span_context()
    assert span.parent == context
    *functions, elsewhere = bench.seen
    for environ in functions:
        assert parent_of(environ) == told_of(context)
        assert "HTTP_TRACESTATE" not in environ  # that one belongs to the client's
    assert elsewhere["HTTP_TRACEPARENT"] == TRACEPARENT


def test_without_one_the_clients_is_the_parent_and_the_function_gets_the_waits() -> None:
    bench = Bench(ScriptedProvider(ZERO, UP))
    for _ in range(2):
        bench.client.get("/function/hello", headers={"traceparent": TRACEPARENT, "baggage": "who=me"})
    (span,) = bench.spans()
    assert told_of(span.parent) == (f"{TRACE:032x}", f"{PARENT:016x}")
    cold, warm = bench.seen
    assert parent_of(cold) == told_of(span.context)
    assert cold["HTTP_BAGGAGE"] == "who=me"
    assert warm["HTTP_TRACEPARENT"] == TRACEPARENT


def test_without_any_the_wait_begins_the_trace() -> None:
    bench = Bench(ScriptedProvider(ZERO, UP))
    for _ in range(2):
        bench.client.get("/function/hello")
    (span,) = bench.spans()
    assert span.parent is None
    cold, warm = bench.seen
    assert parent_of(cold) == told_of(span.context)
    assert "HTTP_TRACEPARENT" not in warm


def test_a_context_that_somebody_else_has_read_is_the_clients() -> None:
    bench = Bench(ScriptedProvider(ZERO, UP))
    token = attach(extract({"traceparent": TRACEPARENT}))
    try:
        for _ in range(2):
            bench.client.get("/function/hello", headers={"traceparent": TRACEPARENT})
    finally:
        detach(token)
    (span,) = bench.spans()
    assert told_of(span.parent) == (f"{TRACE:032x}", f"{PARENT:016x}")
    assert [parent_of(environ) for environ in bench.seen] == [told_of(span.context), told_of(span.parent)]


def test_the_proxy_is_told_its_route() -> None:
    bench, proxy = Bench(ScriptedProvider(UP)), FunctionProxy()
    ScaleZeroMiddleware(bench.tracing.wrap_app(proxy), ScriptedProvider(UP), route="/fn/")
    assert proxy._prefix == "/fn/"


def test_what_is_not_sampled_is_not_recorded_and_the_function_is_told_so() -> None:
    bench = Bench(ScriptedProvider(ZERO, UP), ALWAYS_OFF)
    bench.client.get("/function/hello", headers={"traceparent": TRACEPARENT})
    assert bench.spans() == []
    (environ,) = bench.seen
    assert environ["HTTP_TRACEPARENT"].startswith(f"00-{TRACE:032x}-")
    assert environ["HTTP_TRACEPARENT"].endswith("-00")


def test_a_fault_of_a_span_processor_costs_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            raise RuntimeError("a fault of its own")

    bench = Bench(ScriptedProvider(ZERO, UP))
    bench.sdk.add_span_processor(Faulty())
    answer = bench.client.get("/function/hello", headers={"traceparent": TRACEPARENT})
    assert answer.status_code == 200
    assert "the span of a wait could not be made" in caplog.text
    assert bench.seen[0]["HTTP_TRACEPARENT"] == TRACEPARENT


@pytest.mark.parametrize("around", [True, False])
def test_the_events_are_those_of_the_wait_and_few_are_kept(
    monkeypatch: pytest.MonkeyPatch, around: bool
) -> None:
    """By a clock of our own. Without ``wrap()`` the wait's length alone says when it began."""
    monkeypatch.setattr(module, "MOST_EVENTS", 3)
    now = [5]
    exporter, sdk = InMemorySpanExporter(), TracerProvider()
    sdk.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = OpenTelemetryTracing(sdk, clock=lambda: now[0])

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    carried = tracing.wrap_app(app)

    def middleware(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        for at, event in (
            (2, FunctionReady(HELLO, 9.0)),  # before it came
            (1_000_000_000, ScaleRequested(HELLO, 0, 1)),
            (2_000_000_000, DrainCancelled(HELLO, "no event of a start")),
            (3_000_000_000, FunctionReady(HELLO, 2.0)),
        ):
            now[0] = at
            tracing(event)
        environ.update({FUNCTION: HELLO, WAITED: 2.999999995})
        answer = carried(environ, start_response)
        tracing(StartFailed(HELLO, "the next", 1.0))
        return answer

    TestApp(tracing.wrap(middleware) if around else middleware).get("/")
    (span,) = exporter.get_finished_spans()
    assert [(event.name, event.timestamp) for event in span.events] == [
        ("scalezero.scale_requested", 1_000_000_000),
        ("scalezero.function_ready", 3_000_000_000),
    ]
    assert (span.start_time, span.end_time) == (5, 3_000_000_000)
    kept = tracing._told.get(HELLO)
    assert kept is not None
    assert len(kept) == 3
