"""Metrics for Prometheus, also of many workers under gunicorn.

::

    metrics = PrometheusMetrics()
    middleware = ScaleZeroMiddleware(app, metrics.count_calls(provider), hooks=[metrics])
    application = metrics.wrap(middleware)       # counts requests
    metrics_app = metrics.exposition(middleware)  # what Prometheus asks, mounted where you like

Under gunicorn set ``PROMETHEUS_MULTIPROC_DIR`` to an empty directory, and in ``gunicorn.conf.py``::

    from scalezero_wsgi.integrations.prometheus import child_exit

Functions are told as ``name.namespace``, at most ``MOST_FUNCTIONS`` of them; a name that only a client has
said is never a label.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..events import (
    CoordinationLost,
    CoordinationRestored,
    DrainCancelled,
    Event,
    FunctionPaused,
    FunctionReady,
    FunctionStopped,
    ProviderFailed,
    ScaleRequested,
    StartFailed,
    StatusQueried,
)
from ..middleware import FUNCTION, OUTCOME, WAITED, ScaleZeroMiddleware
from ..model import Function, FunctionFailed, FunctionNotFound, MissingExtra

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.exposition import generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
    from prometheus_client.registry import Collector
except ImportError:
    raise MissingExtra("prometheus_client", "prometheus") from None

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from prometheus_client.metrics_core import Metric

    from ..providers.base import Provider
    from .savings import Savings

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Seconds, from a paused process to a model that is loaded from a disk."""

MOST_FUNCTIONS = 1000
"""Functions that have time series of their own; those beyond count as ``other``."""

METHODS = ("get_replicas", "set_replicas", "wait_for_change", "list_functions", "pause")


class PrometheusMetrics:
    """A hook, and what wraps the middleware and its provider. Safe for threads and after a fork.

    :param registry: where the metrics are registered; by default one of their own.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = CollectorRegistry() if registry is None else registry
        self._known: dict[Function, str] = {}
        self._counted: dict[tuple[Function | None, str], Callable[[], None]] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"scalezero_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"scalezero_{name}", text, ["function"], registry=registry, buckets=BUCKETS)

        self._requests = counter("requests", "Requests for functions.", "function", "outcome")
        self._waits = histogram("wait_seconds", "For how long requests were held and then passed down.")
        self._starts = histogram("cold_start_seconds", "How long functions took to start.")
        self._scalings = counter("scalings", "Changes of replicas that were made.", "function", "reason")
        self._flights = counter("flights", "Flights that had an answer about their function.", "role")
        self._failures = counter("start_failures", "Starts that failed.", "function")
        self._calls = counter("provider_calls", "Calls to the provider.", "method", "result")
        self._faults = counter(
            "provider_faults", "Calls to the provider that failed, as the middleware saw them."
        )
        self._cancelled = counter(
            "drains_cancelled", "Functions that were to be stopped, and were not.", "function"
        )
        # Not whether it can be used: in a worker that was forked afterwards a gauge is 0 again.
        self._lost = Gauge(
            "scalezero_coordination_lost",
            "Whether the workers' store cannot be used.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        build = Gauge(
            "scalezero_build_info", "The version.", ["version"], registry=registry, multiprocess_mode="max"
        )
        build.labels(version("scalezero_wsgi")).set(1)

    # Events

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case StatusQueried(led=led):
                self._flights.labels("led" if led else "followed").inc()
            case ScaleRequested(function):
                self._scalings.labels(self._label(function), "request").inc()
            case FunctionStopped(function, _, reason):
                self._scalings.labels(self._label(function), reason).inc()
            case FunctionPaused(function):
                self._scalings.labels(self._label(function), "paused").inc()
            case FunctionReady(function, after, True):
                self._starts.labels(self._label(function)).observe(after)
            case StartFailed(function):
                self._failures.labels(self._label(function)).inc()
            case DrainCancelled(function):
                self._cancelled.labels(self._label(function)).inc()
            case ProviderFailed():
                self._faults.inc()
            case CoordinationLost():
                self._lost.set(1)
            case CoordinationRestored():
                self._lost.set(0)

    def _label(self, function: Function) -> str:
        label = self._known.get(function)
        if label is None:
            label = str(function) if len(self._known) < MOST_FUNCTIONS else "other"
            if label != "other":
                self._known[function] = label
        return label

    # Requests

    def wrap(self, app: WSGIApplication) -> WSGIApplication:
        """Return the middleware, or what is around it, with its requests counted.

        The answer is handed on as it is. A request is counted when the application has been called, also
        if that raised.
        """

        def counted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            try:
                answer = app(environ, start_response)
            except BaseException:
                if WAITED in environ:
                    self._count(environ.get(FUNCTION), environ.get(OUTCOME), environ[WAITED])
                raise
            waited = environ.get(WAITED)
            if waited == 0.0 and OUTCOME not in environ:
                count = self._counted.get((environ[FUNCTION], "warm"))
                if count is not None:
                    count()
                    return answer
            if waited is not None or OUTCOME in environ:
                self._count(environ.get(FUNCTION), environ.get(OUTCOME), waited)
            return answer

        return counted

    def _count(self, function: Function | None, outcome: str | None, waited: float | None) -> None:
        if outcome is None:
            outcome = "cold" if waited else "warm"
        label = "" if function is None else self._label(function)
        key = function, outcome
        count = self._counted.get(key)
        if count is None:
            count = self._requests.labels(label, outcome).inc
            if label != "other":
                self._counted[key] = count
        count()
        if waited and outcome in ("cold", "replayed"):
            self._waits.labels(label).observe(waited)

    # The provider

    def count_calls(self, provider: Provider) -> Provider:
        """Return the provider with its calls counted; it can do whatever it could."""
        # As members of a class: from Python 3.12 on isinstance() finds a protocol's by no other way.
        members: dict[str, Any] = {
            name: staticmethod(_counted(getattr(provider, name), name, self._calls))
            if name in METHODS
            else _passed_on(provider, name)
            for name in dir(provider)
            if not name.startswith("_")
        }
        counted: Provider = type(f"Counted{type(provider).__name__}", (), members)()
        return counted

    # The exposition

    def requests(self) -> dict[str, dict[str, int]]:
        """Return how many requests there were, by function and outcome; under gunicorn of all its workers."""
        counted: dict[str, dict[str, int]] = {}
        for metric in self._registry_now().collect():
            for sample in metric.samples if metric.name == "scalezero_requests" else ():
                if sample.name == "scalezero_requests_total":
                    of_function = counted.setdefault(sample.labels["function"], {})
                    of_function[sample.labels["outcome"]] = int(sample.value)
        return counted

    def _registry_now(self) -> CollectorRegistry:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self.registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry

    def exposition(
        self, middleware: ScaleZeroMiddleware | None = None, savings: Savings | None = None
    ) -> WSGIApplication:
        """Return the application that Prometheus asks.

        :param middleware: of which the requests that wait and that are in flight are told: those of the
            whole fleet, as the workers report them, at most a second late.
        :param savings: of which is told for how long functions were up, on this host.
        """
        others: list[Collector] = [] if middleware is None else [_Use(middleware)]
        if savings is not None:
            others.append(_Saved(savings))

        def exposed(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            body = generate_latest(self._registry_now())
            for other in others:
                alone = CollectorRegistry()
                alone.register(other)
                body += generate_latest(alone)
            length = str(len(body))
            start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST), ("Content-Length", length)])
            return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

        return exposed


def _counted(call: Callable[..., Any], method: str, calls: Counter) -> Callable[..., Any]:
    @wraps(call)
    def called(*arguments: Any, **keywords: Any) -> Any:
        result = "ok"
        try:
            return call(*arguments, **keywords)
        except FunctionNotFound:
            result = "missing"
            raise
        except FunctionFailed:
            result = "failed"
            raise
        except BaseException:
            result = "error"
            raise
        finally:
            calls.labels(method, result).inc()

    return called


def _passed_on(provider: Provider, name: str) -> property:
    return property(lambda _: getattr(provider, name))


class _Use(Collector):
    """Requests that wait and that are in flight, as the workers report them."""

    def __init__(self, middleware: ScaleZeroMiddleware) -> None:
        self._middleware = middleware

    def collect(self) -> Iterator[Metric]:
        """Ask the store, or this worker where there is none."""
        in_flight = GaugeMetricFamily(
            "scalezero_in_flight", "Requests that the application is serving.", labels=["function"]
        )
        waiting = GaugeMetricFamily("scalezero_waiting", "Requests that are held.", labels=["function"])
        sums: tuple[dict[Function, int], dict[Function, int]] = {}, {}
        for report in self._middleware.reports():
            for told, sum_ in zip((report.in_flight, report.waiting), sums, strict=True):
                for function, count in told.items():
                    sum_[function] = sum_.get(function, 0) + count
        for family, sum_ in zip((in_flight, waiting), sums, strict=True):
            for function, count in sorted(sum_.items())[:MOST_FUNCTIONS]:
                family.add_metric([str(function)], count)
            yield family


class _Saved(Collector):
    """What a host's workers have written down of how long functions were up."""

    def __init__(self, savings: Savings) -> None:
        self._savings = savings

    def collect(self) -> Iterator[Metric]:
        """Read the file; a file that cannot be read has no metrics."""
        from ..savings.book import BookError  # late: a Python without sqlite3 has other metrics

        try:
            entries = self._savings.book.entries(time.time())[:MOST_FUNCTIONS]
        except BookError:
            return
        for name, text in (
            ("up", "For how long replicas were up."),
            ("paused", "For how long replicas were paused."),
            ("unknown", "For how long replicas may have been up."),
            ("always_on", "For how long one would have been up."),
        ):
            # No counters: what is not known yet may turn out to be up.
            family = GaugeMetricFamily(f"scalezero_{name}_seconds", text, labels=["function"])
            for entry in entries:
                family.add_metric([str(entry.function)], getattr(entry, name))
            yield family
        costs = [(str(entry.function), self._savings.prices.cost(entry)) for entry in entries]
        for name, text in (
            ("spent", "What replicas that were up have cost."),
            ("saved", "What they have cost less than one that is always up."),
        ):
            family = GaugeMetricFamily(f"scalezero_cost_{name}", text, labels=["function"])
            for function, cost in costs:
                if cost is not None:
                    family.add_metric([function], getattr(cost, name))
            yield family


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001  gunicorn's hook
    """Forget the gauges of a worker that has ended."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
