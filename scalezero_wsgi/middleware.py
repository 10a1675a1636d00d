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

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from ._lib.bounded import Bounded
from .activation.activation import SILENT
from .activation.function_cache import FunctionCache, FunctionMeta
from .activation.request_queue import Waiting
from .activation.scaler import FunctionScaler
from .coordination.base import KEEP, WorkerReport
from .coordination.default import default_coordination
from .coordination.peers import Peers
from .events import CallLog, EventLog, Reporter, RequestRefused, RequestReplayed, WaitGivenUp
from .model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    MayNotWake,
    NotAvailable,
    ProviderError,
    ProviderSilent,
    ScaleZeroError,
    SettingError,
    StillStarting,
    TooManyWaiting,
    WorkerStopping,
)
from .pages import Pages, Progress
from .providers import make_provider
from .providers.base import NamespacedProvider, check_callable
from .settings import SettingKeywords, Settings
from .web.access import Rules
from .web.replay import (
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
from .web.responses import Answers
from .web.routing import Names

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from werkzeug.wrappers import Response

    from .providers.base import Provider

FUNCTION = "scalezero_wsgi.function"
ENDPOINT = "scalezero_wsgi.endpoint"
WAITED = "scalezero_wsgi.waited"

LOOK_TIMEOUT = 1.0
"""Seconds that a request which wakes nothing waits for the provider to tell the status."""

PAGE_INTEREST = 10.0
"""Seconds for which a waking page that asks keeps its function's flight going."""


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
        _check_provider(provider)
        if not callable(app):
            raise SettingError(f"app must be a WSGI application, not {app!r}")
        self.settings = settings = _settings(settings, keywords, provider)
        self.cache = FunctionCache(
            settings.cache_expiry,
            maxsize=settings.cache_size,
            missing_expiry=settings.missing_expiry,
            stale_if_error=settings.stale_if_error,
            clock=clock,
        )
        self._report = Reporter([EventLog(clock), *settings.hooks])
        store = settings.coordination or default_coordination()
        peers = Peers(store, self._report, clock, row=self._row)
        self.scaler = FunctionScaler(
            provider, self.cache, report=self._report, peers=peers, linger=settings.linger, clock=clock
        )
        self._waiting = Waiting(self.scaler, self.cache, settings, clock)
        self._names = Names(settings.names, settings.default_namespace)
        self._rules = Rules(
            settings.no_wake, settings.allow, settings.deny, settings.wake, settings.default_namespace
        )

        self._unreachable = UNREACHABLE | ({"500"} if getattr(provider, "doubts_500", False) else set())
        self._app = app
        self._clock = clock
        self._expiry = settings.cache_expiry
        self._usable = settings.cache_expiry + settings.stale_for
        self._interest = max(self._usable, PAGE_INTEREST)
        self._find = self.cache.find
        # Every path begins with the empty prefix: a route of one's own is asked for each request.
        self._prefix = settings.route if isinstance(settings.route, str) else ""
        self._cut = len(self._prefix)
        self._segments: Bounded[str, Function] = Bounded(settings.cache_size)
        # Starts in other workers after which a waking page asked here, and when: these count as waiting.
        self._asked_after: Bounded[Function, float] = Bounded(settings.cache_size)
        # With rules about requests each has to be looked at: the short way below is closed then.
        self._known = self._segments.get if not settings.no_wake else lambda _: None
        # No function's name begins with a dot.
        self._own = (self._prefix or "/") + ".scalezero/"
        self._answers = Answers(
            Pages(self._own, settings.page_template), expose=settings.expose_failures, log=CallLog(clock)
        )

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
                if now <= meta.last_refresh + self._usable:
                    # At full load a refresh takes much of the time until the next one: its requests, too,
                    # take the short way.
                    if now > meta.last_refresh + self._expiry:
                        self.scaler.refresh(function)
                    environ[WAITED] = 0.0
                    return self._pass_down(environ, start_response, meta, now, path)
        return self._admit(environ, start_response, path)

    def _admit(self, environ: WSGIEnvironment, start_response: StartResponse, path: str) -> Iterable[bytes]:
        """The way of a request whose function is not known to be warm."""
        arrived = self._clock()
        if path.startswith(self._own):
            return self._answer_ourselves(environ, path[len(self._own) :])(environ, start_response)
        try:
            function = self._route(environ, path)
        except InvalidFunctionName as error:
            return self._answers.respond(error, environ)(environ, start_response)
        except FunctionNotFound as error:
            return self._refuse(error, environ, start_response, error.function)
        if function is None:
            return self._app(environ, start_response)
        if not self._rules.may_wake(function, environ):
            return self._pass_down_if_warm(environ, start_response, function, path)
        meta = self._warm(function)
        if meta is None:
            try:
                meta = self._hold(function, environ, arrived)
            except ScaleZeroError as error:
                return self._refuse(error, environ, start_response, function)
            return self._pass_down_late(environ, start_response, meta, arrived, path)
        environ[WAITED] = 0.0
        return self._pass_down(environ, start_response, meta, arrived, path)

    def _hold(
        self, function: Function, environ: WSGIEnvironment, arrived: float, since: float = -math.inf
    ) -> FunctionMeta:
        try:
            return self._waiting.hold(function, environ, arrived, since=since)
        except StillStarting:
            raise
        except (NotAvailable, ProviderError):
            self._report(WaitGivenUp(function, self._clock() - arrived))
            raise

    def _refuse(
        self,
        error: ScaleZeroError,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        function: Function,
    ) -> Iterable[bytes]:
        if isinstance(error, (TooManyWaiting, WorkerStopping)):
            self._report(RequestRefused(function, error.reason))
        progress = self._progress(function)
        return self._answers.respond(error, environ, function, progress)(environ, start_response)

    def _progress(self, function: Function) -> Progress:
        begun = self.scaler.begun_at(function)
        elapsed = 0.0 if begun is None else self._clock() - begun
        return Progress(
            elapsed,
            self.scaler.last_starts(function),
            self.scaler.time_left(function),
            self.scaler.expected_start(function) or 0.0,
        )

    def _pass_down_if_warm(
        self, environ: WSGIEnvironment, start_response: StartResponse, function: Function, path: str
    ) -> Iterable[bytes]:
        """The way of a request that wakes nothing."""
        before = self._find(function)
        if self._warm(function) is None and not self._is_known(function):
            self.scaler.look(function, LOOK_TIMEOUT)
        meta = self._warm(function)
        if meta is None:
            error = self._why_not(function, before)
            return self._refuse(error, environ, start_response, function)
        now = self._clock()
        if not self._rules.may_be_woken(function):  # its requests are a use of it all the same
            environ[WAITED] = 0.0
            return self._pass_down(environ, start_response, meta, now, path, last=True)
        environ[FUNCTION], environ[WAITED] = function, 0.0
        if meta.status.endpoint is not None:
            environ[ENDPOINT] = meta.status.endpoint
        return self._app(environ, start_response)

    def _why_not(self, function: Function, before: FunctionMeta | None) -> ScaleZeroError:
        """Why a request that wakes nothing is not served.

        :param before: what was known before the provider was asked.
        """
        if self.cache.is_missing(function):
            return FunctionNotFound(*function)
        if self._find(function) is before and not self._is_known(function):
            return ProviderSilent("the provider has not told whether the function is at zero")
        return MayNotWake(function, self.settings.no_wake_status)

    def _row(self, worker: str) -> WorkerReport:
        """What this worker does, for the others to see."""
        now = self._clock()
        uses = self.cache.uses()
        recently = now - KEEP
        pages = {function: 1 for function, at in self._asked_after.items() if now <= at + PAGE_INTEREST}
        return WorkerReport(
            worker,
            in_flight={function: len(usage.in_flight) for function, usage in uses if usage.in_flight},
            waiting=pages | self._waiting.by_function(),
            unused_for={
                function: now - usage.last_used for function, usage in uses if usage.last_used > recently
            },
        )

    def _warm(self, function: Function) -> FunctionMeta | None:
        """The entry by which a request may be passed down at once; asked for again when it is not fresh."""
        meta, now = self._find(function), self._clock()
        if meta is None or not meta.available:
            return None
        if meta.expired(self._usable, now):
            return self.scaler.stale_if_error(function)
        if meta.expired(self._expiry, now):
            self.scaler.refresh(function)
        return meta

    def _is_known(self, function: Function) -> bool:
        meta = self._find(function)
        return meta is not None and not meta.doubted and not meta.expired(self._expiry, self._clock())

    def _answer_ourselves(self, environ: WSGIEnvironment, page: str) -> Response:
        """What the waking page asks for: its files, and how far the start has come."""
        kind, _, name = page.partition("/")
        if kind != "status":
            return self._answers.asset(page)
        try:
            function = self._names.read_text(name)
            return self._status(function, environ)
        except ScaleZeroError as error:
            return self._answers.failed(error, environ)

    def _status(self, function: Function, environ: WSGIEnvironment) -> Response:
        """How far a function's start has come.

        Anybody may ask for any name, as often as they like. So this starts nothing, calls no provider and
        remembers nothing; it only has a start go on that a request has begun. Of a name that does not exist
        it tells what it tells of one that no request has asked for.

        :raises FunctionFailed: the function rests after a failed start.
        """
        if not self._rules.is_served(function):
            return self._answers.status("unknown")
        now = self._clock()
        meta = self._find(function)
        # Longer than an entry may be served: with ``stale_for`` 0 no poll might ever meet a fresh one.
        if meta is not None and meta.available and not meta.expired(self._interest, now):
            return self._answers.status("ready")
        interested = self._rules.may_wake(function, environ)
        flight = self.scaler.keep_up(function, now + PAGE_INTEREST if interested else -math.inf)
        if flight is not None:
            # A failed query ends nothing: the flight goes on, and the page says what is the matter.
            return self._starting(function, flight.trouble)
        self.scaler.refuse_while_resting(function)
        return self._status_elsewhere(function)

    def _status_elsewhere(self, function: Function) -> Response:
        """The same, of a start in another worker: a page's questions need not reach the one that sent it."""
        told = self.scaler.told(function)
        if told is None:
            return self._answers.status("unknown")
        up = told.status is not None and told.status.available_replicas > 0
        if up and told.age <= self._interest:
            return self._answers.status("ready")
        if told.failure is not None and told.failure.left > 0:
            raise FunctionFailed(function, told.failure.reason, told.failure.left)
        if told.trouble is not None and told.trouble.age <= SILENT and not told.trouble.final:
            return self._starting(function, ProviderError("the provider fails another worker"))
        if told.status is not None and told.trouble is None and not up and told.age <= SILENT:
            self._asked_after.set(function, self._clock())
            return self._starting(function, None)
        return self._answers.status("unknown")

    def _starting(self, function: Function, trouble: Exception | None) -> Response:
        detail = ""
        if isinstance(trouble, ScaleZeroError) and not isinstance(trouble, ProviderSilent):
            detail = self._answers.detail(trouble)
        return self._answers.status("starting", detail, self._progress(function))

    def _route(self, environ: WSGIEnvironment, path: str) -> Function | None:
        """The function that a request is for; ``None`` if it is not for one.

        :raises InvalidFunctionName: it is for something that cannot be a function's name.
        :raises FunctionNotFound: the function is not served.
        """
        route = self.settings.route
        if callable(route):
            found = route(environ)
            return None if found is None else self._served(self._names.check(*found))
        segment = path[self._cut :].partition("/")[0]
        if not segment:
            return None
        function = self._known(segment)
        if function is None:
            function = self._served(self._names.split(segment))
            # The short way asks no rule, and may end in a replay, which wakes.
            if self._find(function) is not None and self._rules.may_be_woken(function):
                self._segments.set(segment, function)
        return function

    def _served(self, function: Function) -> Function:
        if self._rules.is_served(function):
            return function
        raise FunctionNotFound(*function)

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
            if status > "5" and status[:3] in self._unreachable and (begun is None or not begun.released):
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
        # By what happened to the function since the entry by which the request was passed down: so it is the
        # same in the worker that led the start and in those that learned of it.
        woken_since = meta.usage.woken_at > meta.last_refresh
        if not (woken_since or self.scaler.doubt(meta)) or not may_repeat:
            return None
        arrived = call.passed_at - environ[WAITED]
        since = call.passed_at if woken_since else self._clock()
        try:
            renewed = self._hold(meta.function, environ, arrived, since)
        except (ProviderError, TooManyWaiting):
            return None
        except ScaleZeroError as error:
            close(result)
            return self._refuse(error, environ, call.start_response, meta.function)
        if renewed.usage.woken_at <= meta.last_refresh:
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


def _check_provider(provider: object) -> None:
    allowed = "an object with get_replicas and set_replicas, or a provider's name or URL"
    if isinstance(provider, type):
        raise SettingError(
            f"provider must be {allowed}, not the class {provider.__name__}: make one, {provider.__name__}(…)"
        )
    for method, arguments in (
        ("get_replicas", ("name", "namespace")),
        ("set_replicas", ("name", "namespace", "replicas")),
    ):
        found = getattr(provider, method, None)
        if found is None:
            raise SettingError(f"provider must be {allowed}, not {provider!r}: it has no {method}")
        check_callable(f"provider: {method}", found, *arguments)


def _settings(settings: Settings | None, keywords: SettingKeywords, provider: Provider) -> Settings:
    """All settings as they hold for this provider."""
    if isinstance(settings, Mapping):
        raise SettingError(
            "settings: a mapping is not allowed; it must be a Settings, which is made of a mapping by"
            " Settings.from_mapping(..., prefix='')"
        )
    if not isinstance(settings, Settings | None):  # not shown: it may hold a password
        raise SettingError(f"settings: a {type(settings).__name__} is not allowed; it must be a Settings")
    chosen: dict[str, Any] = (
        {} if settings is None else {field.name: getattr(settings, field.name) for field in fields(settings)}
    )
    made = Settings.from_mapping(chosen | dict(keywords), prefix="")
    own = provider.own_namespace if isinstance(provider, NamespacedProvider) else ""
    if made.default_namespace or own == "":
        return made
    try:
        # Where the provider looks for a function without a namespace is said in words from here on: so it
        # has one identity for the cache, the rules, the deadlines and the leases.
        return replace(made, default_namespace=own)
    except SettingError as error:
        raise SettingError(f"provider: its namespace {own!r} cannot be used: {error}") from None
