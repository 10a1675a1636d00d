"""The door: WSGI middleware that wakes functions scaled to zero and holds requests until they are ready.

::

    app.wsgi_app = ScaleZeroMiddleware(app.wsgi_app, OpenFaaSProvider("http://gateway:8080"))

A request that is not a function's goes through untouched (PEP 3333: the caller's own ``environ`` and
``start_response``, the application's own iterable). For a function that is warm it costs two look-ups and
one reading of the clock, takes no lock and asks nobody.

The application finds in ``environ``: ``scalezero_wsgi.function`` (name, namespace),
``scalezero_wsgi.endpoint`` (a base URL, when the provider knows one) and ``scalezero_wsgi.waited``
(seconds; 0.0 when warm).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from .bounded import Bounded
from .events import EventLog, Reporter, RequestReplayed
from .function_cache import FunctionCache, FunctionMeta
from .model import Function, InvalidFunctionName, ProviderError, ScaleZeroError, SettingError, TooManyWaiting
from .passing import (
    PASSED_ON,
    UNREACHABLE,
    Held,
    Late,
    close,
    in_use,
    is_connection_error,
    may_be_repeated,
    restore_path,
    with_server_timing,
)
from .providers import make_provider
from .responses import respond
from .routing import Names
from .scaler import FunctionScaler
from .settings import SettingKeywords, Settings
from .waiting import Waiting

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .providers.base import Provider

FUNCTION = "scalezero_wsgi.function"
ENDPOINT = "scalezero_wsgi.endpoint"
WAITED = "scalezero_wsgi.waited"


class ScaleZeroMiddleware:
    """Wraps a WSGI application that proxies to functions.

    Safe for threads and after a fork: threads and locks are made on first use, in each process.

    :param app: the application.
    :param provider: who knows the functions' replicas and changes their number: an object, or the name or
        URL of one, see :func:`~scalezero_wsgi.providers.make_provider`.
    :param settings: all settings at once; single ones may be given as keywords, and win.
    :param clock: where monotonic seconds come from.
    :raises SettingError: a setting or the provider is not as it must be.
    """

    def __init__(
        self,
        app: WSGIApplication,
        provider: Provider | str,
        *,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.monotonic,
        **keywords: Unpack[SettingKeywords],
    ) -> None:
        if isinstance(provider, str):
            provider = make_provider(provider)
        for method in ("get_replicas", "set_replicas"):
            if not callable(getattr(provider, method, None)):
                raise SettingError(f"provider: {provider!r} has no method {method}")
        self.settings = settings = _settings(settings, keywords)
        self.cache = FunctionCache(
            settings.cache_expiry,
            maxsize=settings.cache_size,
            missing_expiry=settings.missing_expiry,
            clock=clock,
        )
        self._report = Reporter([EventLog(clock), *settings.hooks])
        self.scaler = FunctionScaler(provider, self.cache, report=self._report, clock=clock)
        self._waiting = Waiting(self.scaler, settings.max_wait, clock)
        self._names = Names(settings.names, settings.default_namespace)

        self._app = app
        self._clock = clock
        self._expiry = settings.cache_expiry
        self._usable = settings.cache_expiry + settings.stale_for
        self._find = self.cache.find
        # Every path begins with the empty prefix: a route of one's own is asked for each request.
        self._prefix = settings.route if isinstance(settings.route, str) else ""
        self._cut = len(self._prefix)
        self._segments: Bounded[str, Function] = Bounded(settings.cache_size)
        self._known = self._segments.get

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333); blocks while the function wakes, at most ``max_wait`` seconds."""
        path: str = environ.get("PATH_INFO", "")
        if not path.startswith(self._prefix):
            return self._app(environ, start_response)
        function = self._known(path[self._cut :].partition("/")[0])
        if function is not None:
            meta = self._find(function)
            if meta is not None and meta.available:
                now = self._clock()
                if now <= meta.last_refresh + self._expiry:
                    environ[WAITED] = 0.0
                    return self._pass_down(environ, start_response, meta, now, path)
        return self._admit(environ, start_response, path)

    def _admit(self, environ: WSGIEnvironment, start_response: StartResponse, path: str) -> Iterable[bytes]:
        """The way of a request whose function is not known to be fresh and warm."""
        arrived = self._clock()
        try:
            function = self._route(environ, path)
        except InvalidFunctionName as error:
            return respond(error, environ, None)(environ, start_response)
        if function is None:
            return self._app(environ, start_response)
        meta = self._find(function)
        if meta is None or not meta.available or meta.expired(self._usable, arrived):
            try:
                meta = self._waiting.hold(function, arrived)
            except ScaleZeroError as error:
                return respond(error, environ, function)(environ, start_response)
            return self._pass_down_late(environ, start_response, meta, arrived, path)
        if meta.expired(self._expiry, arrived):
            self.scaler.refresh(function)
        environ[WAITED] = 0.0
        return self._pass_down(environ, start_response, meta, arrived, path)

    def _route(self, environ: WSGIEnvironment, path: str) -> Function | None:
        route = self.settings.route
        if callable(route):
            found = route(environ)
            return None if found is None else self._names.check(*found)
        segment = path[self._cut :].partition("/")[0]
        if not segment:
            return None
        function = self._known(segment)
        if function is None:
            function = self._names.split(segment)
            if self._find(function) is not None:
                self._segments.set(segment, function)
        return function

    def _pass_down(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        meta: FunctionMeta,
        now: float,
        path: str,
        last: bool = False,
    ) -> Iterable[bytes]:
        """Call the application for a function that is available.

        One closure is the request's ``start_response`` and its token among those in flight. It holds
        back an answer that says the function could not be reached, so that it can be thought over.

        :param last: whether the application's answer stands in any case.
        """
        environ[FUNCTION] = meta.function
        if meta.status.endpoint is not None:
            environ[ENDPOINT] = meta.status.endpoint
        usage = meta.usage
        usage.last_used = now
        in_flight = usage.in_flight
        begun: Held | None = None

        def begin(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal begun
            # The first comparison spares the usual answers the second.
            if status > "5" and status[:3] in UNREACHABLE and (begun is None or not begun.released):
                begun = Held(start_response, status, headers, exc_info)
                return begun.write
            begun = PASSED_ON
            if exc_info is None:
                return start_response(status, headers)
            return start_response(status, headers, exc_info)

        in_flight.add(begin)
        try:
            result = self._app(environ, begin)
        except BaseException as error:
            in_flight.discard(begin)
            call = _Call(environ, start_response, meta, now, path, last)
            answer = self._reconsider(call, begun, error, None)
            if answer is None:
                raise
            return answer
        if begun is PASSED_ON:
            if result.__class__ is list:
                in_flight.discard(begin)
                return result
            return in_use(result, environ, in_flight, begin)
        call = _Call(environ, start_response, meta, now, path, last)
        if begun is None:
            return Late(
                result,
                lambda error: self._reconsider(call, begun, error, result),
                partial(in_flight.discard, begin),
            )
        in_flight.discard(begin)
        answer = self._reconsider(call, begun, None, result)
        return result if answer is None else answer

    def _reconsider(
        self, call: _Call, begun: Held | None, error: BaseException | None, result: object
    ) -> Iterable[bytes] | None:
        """Think again about an answer that says the function could not be reached.

        :param begun: the answer so far.
        :param error: what the application raised.
        :param result: what it returned; closed if the answer does not stand.
        :return: what is answered instead; ``None`` if the application's answer stands.
        """
        if is_connection_error(error) if error is not None else begun is not None and begun is not PASSED_ON:
            may_repeat = self.settings.replay and not call.last and (begun is None or not begun.released)
            answer = self._try_again(call, may_repeat and may_be_repeated(call.environ), result)
            if answer is not None:
                return answer
        if begun is not None and error is None:
            begun.release()
        return None

    def _try_again(self, call: _Call, may_repeat: bool, result: object) -> Iterable[bytes] | None:
        environ, meta = call.environ, call.meta
        woken_since = meta.usage.woken_at > call.passed_at
        if not (woken_since or self.scaler.doubt(meta)) or not may_repeat:
            return None
        arrived = call.passed_at - environ[WAITED]
        since = call.passed_at if woken_since else self._clock()
        try:
            renewed = self._waiting.hold(meta.function, arrived, since=since)
        except (ProviderError, TooManyWaiting):
            return None
        except ScaleZeroError as error:
            close(result)
            return respond(error, environ, meta.function)(environ, call.start_response)
        if renewed.usage.woken_at <= call.passed_at:
            return None
        close(result)
        restore_path(environ, call.path)
        self._report(RequestReplayed(meta.function, self._clock() - arrived))
        return self._pass_down_late(environ, call.start_response, renewed, arrived, call.path, last=True)

    def _pass_down_late(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        meta: FunctionMeta,
        arrived: float,
        path: str,
        last: bool = False,
    ) -> Iterable[bytes]:
        """Pass a request down that had to wait."""
        now = self._clock()
        environ.pop(ENDPOINT, None)
        environ[WAITED] = now - arrived
        begin = with_server_timing(start_response, now - arrived)
        return self._pass_down(environ, begin, meta, now, path, last)


class _Call(NamedTuple):
    """A request as it was passed down."""

    environ: WSGIEnvironment
    start_response: StartResponse
    meta: FunctionMeta
    passed_at: float
    path: str
    last: bool


def _settings(settings: Settings | None, keywords: SettingKeywords) -> Settings:
    chosen: dict[str, Any] = (
        {} if settings is None else {field.name: getattr(settings, field.name) for field in fields(settings)}
    )
    return Settings.from_mapping(chosen | dict(keywords), prefix="")
