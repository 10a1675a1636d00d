"""A proxy behind the middleware, traced: spans and events are lines in files, one of each for each worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import SpanKind

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.integrations.logs import JsonLog
from scalezero_wsgi.integrations.opentelemetry import OpenTelemetryTracing
from scalezero_wsgi.providers import ProcessProvider
from scalezero_wsgi.providers.process.provider import ProcessFunction, Ready
from scalezero_wsgi.proxy import FunctionProxy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SLOWLY = ["sh", "-c", 'sleep 0.5; exec "$0" "$@"']  # so that all requests find it starting
ECHO = ProcessFunction([*SLOWLY, sys.executable, "-m", "scalezero_wsgi.demo", "echo", "{port}"], Ready("/"))
here = Path(os.environ["STATE_DIR"])


def as_line(span: ReadableSpan) -> str:
    line: str = span.to_json(indent=None)
    return line + "\n"


sdk = TracerProvider(resource=Resource({"process.pid": os.getpid()}))
sdk.add_span_processor(
    SimpleSpanProcessor(ConsoleSpanExporter(out=(here / "spans").open("a"), formatter=as_line))
)
tracing = OpenTelemetryTracing(sdk)
middleware = ScaleZeroMiddleware(
    tracing.wrap_app(FunctionProxy()),
    ProcessProvider(dict.fromkeys(("one", "two", "three"), ECHO), state_dir=here),
    hooks=[JsonLog((here / "events").open("a")), tracing],
)
functions = tracing.wrap(middleware)


def with_server_span(app: WSGIApplication) -> WSGIApplication:
    """Do what OpenTelemetry's own instrumentation of a server does, unless a request says otherwise."""
    tracer = sdk.get_tracer("server")

    def served(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "HTTP_X_NO_SERVER_SPAN" in environ:
            return app(environ, start_response)
        context = extract({"traceparent": environ.get("HTTP_TRACEPARENT", "")})
        with tracer.start_as_current_span("GET", context, SpanKind.SERVER):
            return app(environ, start_response)

    return served


application = with_server_span(functions)
