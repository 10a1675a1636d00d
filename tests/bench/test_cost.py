"""What the middleware costs, each figure as a multiple of an empty middleware around the same app.

There are two measures. The multiple has the app's own time on both sides. The overhead has it on neither:
what is added to the bare app, in units of what an empty middleware adds to it.

    pytest tests/bench --benchmark-only      figures
    pytest tests/bench --benchmark-disable   bounds only

Machines differ and are noisy, so only ratios within one run are bounds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import Any

import pytest
from opentelemetry.context import attach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_span_in_context

from scalezero_wsgi import Function, FunctionCache, FunctionScaler, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation.state import FunctionMeta
from scalezero_wsgi.integrations.opentelemetry import OpenTelemetryTracing
from scalezero_wsgi.integrations.prometheus import PrometheusMetrics
from scalezero_wsgi.middleware import WAITED

Environ = dict[str, Any]
Call = Callable[[], object]

UP = ReplicaStatus(1, 1, endpoint="http://127.0.0.1:8081")
BODY = [b"hello"]


class Ready:
    """A provider that is ready at once."""

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return UP

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None: ...


class OnceReady(Ready):
    """It never answers again."""

    def __init__(self) -> None:
        self._first = threading.Lock()

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        if not self._first.acquire(blocking=False):
            threading.Event().wait()
        return UP


class Empty:
    """The least that a middleware can be."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        return self.app(environ, start_response)


class LookUp(ScaleZeroMiddleware):
    """The look-up alone, without what a request in flight costs."""

    def _pass_down(
        self, environ: Any, start_response: Any, meta: Any, now: Any, path: Any, last: Any = False
    ) -> Any:
        return self._app(environ, start_response)


class Stream:
    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        return iter(BODY)

    def close(self) -> None: ...


STREAM = Stream()


def whole(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return BODY


def streamed(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return STREAM


def start_response(status: str, headers: Any, exc_info: Any = None, /) -> Any: ...


def environ_of(path: str) -> Environ:
    """An environ of the usual size."""
    return {f"HTTP_X_{index}": "value" for index in range(30)} | {"PATH_INFO": path, "REQUEST_METHOD": "GET"}


def door(
    app: Any,
    kind: type[ScaleZeroMiddleware] = ScaleZeroMiddleware,
    provider: type[Ready] = Ready,
    **settings: Any,
) -> ScaleZeroMiddleware:
    made = kind(app, provider(), **({"cache_expiry": "1h"} | settings))
    for _ in range(2):
        list(made(environ_of("/function/hello/a"), start_response))
    return made


def call_of(app: Any, path: str, close: bool = False) -> Call:
    environ = environ_of(path)
    if close:
        return lambda: app(environ, start_response).close()
    return lambda: app(environ, start_response)


def traced() -> Any:
    tracing = OpenTelemetryTracing()
    return tracing.wrap(door(tracing.wrap_app(whole)))


def in_a_span(call: Call) -> Call:
    """Have a server's span current in the calls; it is made once, for all of them."""
    context = copy_context()
    context.run(lambda: attach(set_span_in_context(TracerProvider().get_tracer("server").start_span("GET"))))
    return lambda: context.run(call)


OTHER, FUNCTION = "/static/site.css", "/function/hello/a"

CASES: dict[str, tuple[Call, Call, float | None]] = {
    "pass-through": (call_of(door(whole), OTHER), call_of(Empty(whole), OTHER), 2.3),
    "look-up": (call_of(door(whole, LookUp), FUNCTION), call_of(Empty(whole), FUNCTION), 13),
    "warm": (call_of(door(whole), FUNCTION), call_of(Empty(whole), FUNCTION), 13),
    "warm-idle-after": (
        call_of(door(whole, idle_after="1h", idle_default="all"), FUNCTION),
        call_of(Empty(whole), FUNCTION),
        17,
    ),
    "warm-counted": (  # for Prometheus
        call_of(PrometheusMetrics().wrap(door(whole)), FUNCTION),
        call_of(Empty(whole), FUNCTION),
        20,
    ),
    "warm-traced": (  # for OpenTelemetry, without a span of the server's
        call_of(traced(), FUNCTION),
        call_of(Empty(whole), FUNCTION),
        28,
    ),
    "warm-traced-in-a-span": (  # whose context goes on to the function
        in_a_span(call_of(traced(), FUNCTION)),
        call_of(Empty(whole), FUNCTION),
        None,
    ),
    "warm-refreshing": (
        call_of(door(whole, provider=OnceReady, cache_expiry=0, stale_for="1h"), FUNCTION),
        call_of(Empty(whole), FUNCTION),
        16,
    ),
    "warm-streamed": (call_of(door(streamed), FUNCTION, True), call_of(Empty(streamed), FUNCTION, True), 13),
    "cold-ready-at-once": (
        call_of(door(whole, cache_expiry=0, stale_for=0), FUNCTION),
        call_of(Empty(whole), FUNCTION),
        None,
    ),
}


def nanoseconds(call: Call, count: int) -> float:
    begun = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - begun) / count


def measures(case: str, rounds: int = 15) -> tuple[float, float]:
    """Return the multiple and the overhead, of the least of many short runs, taken in turn."""
    call, empty, _ = CASES[case]
    bare = call_of(streamed, FUNCTION, True) if case == "warm-streamed" else call_of(whole, FUNCTION)
    count = 200 if case.startswith("cold") else 20_000
    loop = min(nanoseconds(lambda: None, count) for _ in range(rounds))
    runs = [[nanoseconds(each, count) for each in (call, empty, bare)] for _ in range(rounds)]
    ours, least, app = (min(times) - loop for times in zip(*runs, strict=True))
    return ours / least, (ours - app) / (least - app)


@pytest.mark.parametrize("case", CASES)
def test_cost(case: str, benchmark: Any) -> None:
    call, _, _ = CASES[case]
    benchmark(call)


@pytest.mark.parametrize("case", CASES)
def test_bound(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    bound = CASES[case][2]
    multiple, overhead = measures(case)
    with capsys.disabled():
        limit = f" (bound {bound})" if bound else ""
        print(f"\n{case}: {multiple:.1f} × an empty middleware{limit}, overhead {overhead:.0f}", end=" ")
    assert bound is None or multiple <= bound


MICROSECONDS = {
    "warm-counted": 2.0,
    "warm-traced": None,
    "warm-traced-in-a-span": None,
}
"""What is around a warm request, and how much it may add to it."""


@pytest.mark.parametrize("case", MICROSECONDS)
def test_what_hooks_add_to_a_warm_request(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    bound, calls = MICROSECONDS[case], (CASES[case][0], CASES["warm"][0])
    # Short ones: the least of many is one in which nobody else had the processor.
    runs = [[nanoseconds(call, 1_000) for call in calls] for _ in range(200)]
    ours, warm = (min(times) for times in zip(*runs, strict=True))
    added = (ours - warm) / 1000
    with capsys.disabled():
        print(f"\n{case}: {added:.2f} µs more{f' (bound {bound})' if bound else ''}", end=" ")
    assert bound is None or added <= bound


def test_wake_1000_waiters(benchmark: Any) -> None:
    def scene() -> tuple[tuple[list[threading.Thread], threading.Event], dict[str, Any]]:
        gate = threading.Event()

        class Gated(Ready):
            def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
                gate.wait(60)
                return UP

        scaler = FunctionScaler(Gated(), FunctionCache(0.25))
        arrived = threading.Semaphore(0)

        def wait() -> FunctionMeta:
            arrived.release()
            return scaler.ensure_available(Function("hello"), time.monotonic() + 60)

        threads = [threading.Thread(target=wait) for _ in range(1_000)]
        for thread in threads:
            thread.start()
        for _ in threads:
            arrived.acquire()
        return (threads, gate), {}

    def wake(threads: list[threading.Thread], gate: threading.Event) -> None:
        gate.set()
        for thread in threads:
            thread.join(60)

    benchmark.pedantic(wake, setup=scene, rounds=5)


def test_the_door_marks_a_warm_request() -> None:
    environ = environ_of(FUNCTION)
    door(whole)(environ, start_response)
    assert environ[WAITED] == 0.0
