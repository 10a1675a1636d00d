"""An app behind the middleware whose requests are counted for Prometheus, and what Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.integrations.prometheus import PrometheusMetrics
from tests.servers.site import provider as make_provider
from tests.servers.site import settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


metrics = PrometheusMetrics()
middleware = ScaleZeroMiddleware(
    app,
    metrics.count_calls(make_provider()),
    settings=Settings.from_mapping(settings, prefix=""),
    hooks=[metrics],
)
counted, exposed = metrics.wrap(middleware), metrics.exposition(middleware)


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    called = exposed if environ["PATH_INFO"] == "/metrics" else counted
    return called(environ, start_response)
