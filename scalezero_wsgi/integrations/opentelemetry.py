"""Traces by OpenTelemetry: a span for the wait of each request that was held.

::

    tracing = OpenTelemetryTracing()
    middleware = ScaleZeroMiddleware(tracing.wrap_app(app), provider, hooks=[tracing])
    application = tracing.wrap(middleware)

The span ``scalezero.wait`` is a child of the server's span where there is one that is current, else of what
the request's ``traceparent`` says. Its events are those of the function's start while the request was held,
each with its time, such as ``scalezero.status_queried``, ``scalezero.scale_requested`` and
``scalezero.function_ready``; a worker that follows another one has no ``scale_requested``. Its attributes are
those of the semantic conventions for HTTP and FaaS
(https://opentelemetry.io/docs/specs/semconv/faas/faas-spans/), and ``scalezero.outcome``. A request that was
not held has no span of ours.

The trace goes on by the headers of the request in ``environ``: they become those of the server's span where
there is one, else of the wait's. So the function's spans, or those of an application that makes a server's
span by itself, as Flask's and Django's instrumentations do, are in the same trace.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from .._lib.bounded import Bounded
from ..events import (
    Event,
    FunctionQueued,
    FunctionReady,
    OutageBegan,
    ProviderFailed,
    ScaleRequested,
    StartFailed,
    StatusQueried,
    as_dict,
)
from ..middleware import FUNCTION, OUTCOME, WAITED
from ..model import Function, MissingExtra

try:
    from opentelemetry.context import Context, get_current
    from opentelemetry.propagate import get_global_textmap
    from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
    from opentelemetry.trace import (
        Span,
        StatusCode,
        TracerProvider,
        get_current_span,
        get_tracer,
        set_span_in_context,
    )
except ImportError:
    raise MissingExtra("opentelemetry-api", "opentelemetry") from None

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("scalezero_wsgi")

SPAN = "scalezero.wait"

MOST_FUNCTIONS, MOST_EVENTS = 1000, 16
"""Functions whose last events are kept, and how many of each."""

ERRORS = frozenset({"timeout", "failed", "overloaded"})
"""Outcomes that a client is told with a status of 500 or more."""

REFUSED = ERRORS | {"deferred", "gone"}
"""Outcomes of requests that may have waited for a start and were not passed down. Not those of names that
clients invent, nor of requests that may not wake."""

ARRIVED = "scalezero_wsgi.opentelemetry.arrived"
"""Where the time of a request's arrival is in ``environ``."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})


class _Told(NamedTuple):
    at: int
    name: str
    attributes: dict[str, Any]


class OpenTelemetryTracing:
    """A hook, and what wraps the middleware and its application. Safe for threads and after a fork.

    :param provider: makes the spans; by default the global one, also if that is set later.
    :param propagator: reads the request's context and writes the function's; by default the global one.
    :param clock: nanoseconds since the epoch.
    """

    def __init__(
        self,
        provider: TracerProvider | None = None,
        propagator: TextMapPropagator | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = get_tracer("scalezero_wsgi", version("scalezero_wsgi"), provider)
        self._propagator = propagator or get_global_textmap()
        self._headers = frozenset(map(_key, self._propagator.fields))
        self._clock = clock
        self._told: Bounded[Function, tuple[_Told, ...]] = Bounded(MOST_FUNCTIONS)

    def __call__(self, event: Event) -> None:
        """Keep an event of a start. It comes in the thread of the start, for all who wait."""
        match event:
            case (
                StatusQueried()
                | ScaleRequested()
                | FunctionQueued()
                | FunctionReady()
                | StartFailed()
                | ProviderFailed()
                | OutageBegan()
            ):
                fields = as_dict(event)
                name = fields.pop("event")
                del fields["function"]
                attributes = {f"scalezero.{field}": value for field, value in fields.items()}
                told = _Told(self._clock(), f"scalezero.{name}", attributes)
                self._told.change(event.function, lambda before: (*(before or ())[1 - MOST_EVENTS :], told))

    # Requests

    def wrap(self, app: WSGIApplication) -> WSGIApplication:
        """Return the middleware, or what is around it, with the waits of those traced that were refused."""
        clock = self._clock

        def traced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            environ[ARRIVED] = clock()
            try:
                return app(environ, start_response)
            finally:
                if environ.get(OUTCOME) in REFUSED:
                    self._try_to_tell(environ, self._context(environ), environ[OUTCOME])

        return traced

    def wrap_app(self, app: WSGIApplication) -> WSGIApplication:
        """Return the application, to be given to the middleware, with the waits of its requests traced."""
        return _App(app, self._carry_on)

    def _carry_on(self, environ: WSGIEnvironment) -> None:
        """Tell the wait of a request that is passed down, if it was held, and have the trace go on."""
        current = get_current_span().get_span_context()
        is_servers = current.is_valid and not current.is_remote
        waited = environ[WAITED]
        if not waited and not is_servers:
            return  # the client's own headers go on
        context = self._context(environ)
        if waited:
            span = self._try_to_tell(environ, context, environ.get(OUTCOME, "cold"))
            if span is not None and not is_servers:
                context = set_span_in_context(span, context)
        for header in self._headers:
            environ.pop(header, None)
        self._propagator.inject(environ, context, _ENVIRON)

    def _context(self, environ: WSGIEnvironment) -> Context:
        """Return the current context, if a span is, else the client's."""
        if get_current_span().get_span_context().is_valid:
            return get_current()
        return self._propagator.extract(environ, getter=_ENVIRON)

    def _try_to_tell(self, environ: WSGIEnvironment, context: Context, outcome: str) -> Span | None:
        try:
            return self._tell(environ, context, outcome)
        except Exception:  # of a span processor; the request goes on
            logger.exception("the span of a wait could not be made")
            return None

    def _tell(self, environ: WSGIEnvironment, context: Context, outcome: str) -> Span:
        """Make the span of a wait that has ended: before, nobody knew that there would be one."""
        ended, function = self._clock(), environ.get(FUNCTION)
        arrived = environ.get(ARRIVED) or ended - int(environ[WAITED] * 1e9)
        environ[ARRIVED] = ended  # for the next one, if it is passed down again
        told = self._told.get(function) or () if function is not None else ()
        told = tuple(each for each in told if arrived <= each.at <= ended)
        span = self._tracer.start_span(SPAN, context, start_time=arrived)
        if span.is_recording():
            span.set_attributes(_attributes(environ, outcome))
            if function is not None:
                span.set_attribute("faas.invoked_name", str(function))
            if outcome not in REFUSED:
                started = any(each.name == "scalezero.function_ready" for each in told)
                span.set_attribute("faas.coldstart", started)
            for each in told:
                span.add_event(each.name, each.attributes, each.at)
            if outcome in ERRORS:
                span.set_attribute("error.type", outcome)
                span.set_status(StatusCode.ERROR)
        span.end(ended)
        return span


class _App:
    """The application, with the trace of each request for a function going on in it."""

    def __init__(self, app: WSGIApplication, carry_on: Callable[[WSGIEnvironment], None]) -> None:
        self._app = app
        self._carry_on = carry_on
        if hasattr(app, "follow_route"):  # a FunctionProxy, which the middleware tells its route
            self.follow_route = app.follow_route

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if WAITED in environ:
            self._carry_on(environ)
        return self._app(environ, start_response)


def _attributes(environ: WSGIEnvironment, outcome: str) -> dict[str, str]:
    method = environ.get("REQUEST_METHOD", "")
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return {
        "http.request.method": method if method in METHODS else "_OTHER",
        "url.path": path.encode("latin-1", "replace").decode("utf-8", "replace"),
        "scalezero.outcome": outcome,
    }


def _key(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


class _Environ(Getter["WSGIEnvironment"], Setter["WSGIEnvironment"]):
    """Reads and writes headers in ``environ``."""

    def get(self, carrier: WSGIEnvironment, key: str) -> list[str] | None:
        value = carrier.get(_key(key))
        return None if value is None else [value]

    def keys(self, carrier: WSGIEnvironment) -> list[str]:
        return [key[5:].replace("_", "-").lower() for key in carrier if key.startswith("HTTP_")]

    def set(self, carrier: WSGIEnvironment, key: str, value: str) -> None:
        carrier[_key(key)] = value


_ENVIRON = _Environ()
