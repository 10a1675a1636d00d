"""Dashboards below several mounts: of real processes, of functions in every state, of none and of very many.

All but the first are of providers that only list, for no real one has 5,000 functions at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from werkzeug.middleware.dispatcher import DispatcherMiddleware

from scalezero_wsgi import Function, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.coordination.base import WorkerReport
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.integrations.dashboard import Dashboard
from scalezero_wsgi.integrations.prometheus import PrometheusMetrics
from scalezero_wsgi.providers import ProcessProvider
from scalezero_wsgi.proxy import FunctionProxy
from tests.browser.dashboard_functions import FAILURE, FUNCTIONS, MARKUP, TOKEN
from tests.support.fakes import STARTING, UP, ZERO


class Listing:
    def __init__(self, known: dict[str, ReplicaStatus]) -> None:
        self.known = known

    def list_functions(self) -> Iterable[Function]:
        return map(Function, self.known)

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return self.known[name]

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        self.known[name] = replace(self.known[name], replicas=replicas, available_replicas=replicas)


def page_of(known: dict[str, ReplicaStatus], metrics: PrometheusMetrics | None = None) -> ScaleZeroMiddleware:
    return ScaleZeroMiddleware(
        FunctionProxy(),
        Listing(known),
        idle_after="15m",
        idle_default="all",
        coordination=MemoryCoordination(),
        hooks=() if metrics is None else [metrics],
    )


def full() -> Dashboard:
    metrics = PrometheusMetrics()
    middleware = page_of(
        {
            "api-gateway": replace(UP, replicas=3, available_replicas=2),
            "invoices": UP,
            "image-resize": STARTING,
            "llama-3-8b": replace(ZERO, paused=True),
            "reports": ZERO,
            "search": UP,
            "a-function-with-a-rather-long-name-as-some-people-like-them-indeed": ZERO,
            "broken": replace(ZERO, failure=FAILURE),
            MARKUP: UP,
        },
        metrics,
    )
    told = {"api-gateway": (12, 0), "image-resize": (0, 7)}
    report = WorkerReport(
        "another:1:ab",
        in_flight={Function(name): counts[0] for name, counts in told.items() if counts[0]},
        waiting={Function(name): counts[1] for name, counts in told.items() if counts[1]},
        unused_for={Function("invoices"): 754.0, Function("search"): 8000.0, Function("reports"): 3000.0},
    )
    middleware._store.report(report, 1e6)  # type: ignore[union-attr]
    starts = {
        "api-gateway": (1.2, 0.9, 1.1),
        "invoices": (0.31,),
        "llama-3-8b": (42.0, 38.5, 44.1, 40.2, 39.7),
    }
    for name, durations in starts.items():
        state = middleware.cache.state(Function(name))
        middleware.cache.set_durations(state, durations)
    counts = {"api-gateway": {"warm": 48210, "cold": 12, "timeout": 3}, "invoices": {"warm": 31, "cold": 9}}
    for name, outcomes in counts.items():
        for outcome, count in outcomes.items():
            metrics._requests.labels(name, outcome).inc(count)
    middleware.by_hand.keep_up(Function("search"), 2580.0, multiprocess=False)
    return Dashboard(middleware, token=TOKEN, metrics=metrics)


many = page_of({f"function-{number:04}": UP if number % 97 == 0 else ZERO for number in range(5000)})
real = ScaleZeroMiddleware(
    FunctionProxy(),
    ProcessProvider(FUNCTIONS, state_dir=os.environ["STATE_DIR"]),
    coordination=os.environ["STORE"],
    idle_after="15m",
    idle_default="all",
)


def ready(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ready"]


application = DispatcherMiddleware(
    real,
    {
        "/ready": ready,
        "/real": Dashboard(real, token=TOKEN),
        "/full": full(),
        "/empty": Dashboard(page_of({}), token=TOKEN),
        "/many": Dashboard(many, token=TOKEN),
        "/own/oper ators": Dashboard(real, authorise=lambda environ: "HTTP_X_OPERATOR" in environ),
    },
)
