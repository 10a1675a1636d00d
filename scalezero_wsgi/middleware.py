"""WSGI middleware that activates functions scaled to zero and holds requests until they are ready.

::

    app.wsgi_app = ScaleZeroMiddleware(app.wsgi_app, OpenFaaSProvider("http://gateway:8080"))

A request that is not a function's goes through untouched (PEP 3333: the caller's own ``environ`` and
``start_response``, the application's own iterable). For a function that is warm it costs one look-up and
one reading of the clock, takes no lock and calls no provider.

The application finds in ``environ``: ``scalezero_wsgi.function`` (name, namespace),
``scalezero_wsgi.endpoint`` (a base URL, when the provider knows one) and ``scalezero_wsgi.waited``
(seconds; 0.0 when warm).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from .activation.by_hand import ByHand
from .activation.function_cache import FunctionCache
from .activation.idling.fleet_uses import one_each
from .activation.idling.make import make_idler
from .activation.request_queue import RequestQueue
from .activation.scaler import FunctionScaler
from .activation.state import NEVER, FunctionMeta
from .configuration import check_provider, settings_for, store_for
from .coordination.base import CoordinationError, WorkerReport
from .coordination.peers import Peers
from .events import CallLog, EventLog, Reporter, RequestRefused, RequestReplayed
from .model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    MayNotWake,
    NotAvailable,
    ScaleZeroError,
    SettingError,
    TooManyWaiting,
    WorkerStopping,
)
from .pages import Pages
from .providers import make_provider
from .servers.server import middleware_made
from .web.access import Rules
from .web.call_id import call_id_of
from .web.finder import Finder
from .web.negotiation import caller_of
from .web.replay import (
    COMMITTED,
    UNREACHABLE,
    DeferredStart,
    Head,
    LazyBody,
    PassedDown,
    Replay,
    close,
    in_use,
    is_connection_error,
    restore_path,
    start_with_timing,
)
from .web.responses import Answers, outcome_of
from .web.routing import Names
from .web.status import StatusPage
from .web.uses import used_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .activation.idling.idler import Idler
    from .providers.base import Provider
    from .settings import SettingKeywords, Settings

FUNCTION = "scalezero_wsgi.function"
ENDPOINT = "scalezero_wsgi.endpoint"
WAITED = "scalezero_wsgi.waited"
OUTCOME = "scalezero_wsgi.outcome"
"""What became of a request that was neither warm nor held and passed down: for who counts them, around us."""

CLOSED: list[bytes] = []
"""What stands for an answer when the application was not called, for its function is being stopped."""


class ScaleZeroMiddleware:
    """Wraps a WSGI application that proxies to functions.

    Safe for threads and after a fork: threads and locks are made on first use, in each process.

    :param app: the application.
    :param provider: what knows the functions' replicas and changes their number: an object, or the name or
        URL of one, see :func:`~scalezero_wsgi.providers.make_provider`.
    :param settings: all settings at once; single ones may be given as keywords, and win.
    :param clock: where monotonic seconds come from.
    :param wall_clock: where seconds since the epoch come from, for ``keep_warm``.
    :raises SettingError: a setting or the provider is not as it must be.
    """

    def __init__(
        self,
        app: WSGIApplication,
        provider: Provider | str,
        *,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        **keywords: Unpack[SettingKeywords],
    ) -> None:
        if isinstance(provider, str):
            provider = make_provider(provider)
        check_provider(provider)
        if not callable(app):
            raise SettingError(f"app must be a WSGI application, not {app!r}")
        self.settings = settings = settings_for(provider, settings, keywords)
        self._app = app
        self.provider = provider
        self._clock = clock
        self._report = Reporter([EventLog(clock), *settings.hooks])
        self.cache = FunctionCache(
            settings.cache_expiry,
            stale_for=settings.stale_for,
            maxsize=settings.cache_size,
            missing_expiry=settings.missing_expiry,
            stale_if_error=settings.stale_if_error,
            clock=clock,
        )
        self._store = store = store_for(settings)
        self._peers = peers = Peers(store, self._report, clock, row=lambda worker: self.queue.report(worker))
        self.scaler = FunctionScaler(
            provider, self.cache, report=self._report, peers=peers, linger=settings.linger, clock=clock
        )
        self.queue = RequestQueue(self.scaler, self.cache, settings, clock, self._report)
        self._replay = Replay(settings, self.scaler, self.queue, clock)
        middleware_made(max([settings.max_wait, *settings.max_wait_of.values()]), settings.max_waiting)

        self._names = Names(settings.names, settings.default_namespace)
        self._rules = Rules(
            settings.no_wake, settings.allow, settings.deny, settings.wake, settings.default_namespace
        )
        self._idler = make_idler(settings, store, self.scaler, self.queue, self._rules.is_ours, wall_clock)
        self.by_hand = ByHand(self.scaler, self._idler, self.reports)
        self._used_app = used_app(app, self._idler, settings, clock)
        self._unreachable = UNREACHABLE | ({"500"} if getattr(provider, "doubts_500", False) else set())
        self._expiry, self._usable = self.cache.expiry, self.cache.usable
        # Every path begins with the empty prefix: a custom route runs for each request.
        self._prefix = settings.route if isinstance(settings.route, str) else ""
        self._cut = len(self._prefix)
        if hasattr(app, "follow_route"):  # a FunctionProxy, which takes the prefix off the path
            app.follow_route(self._prefix)
        finder = Finder(settings, self._names, self._rules, self.cache, self._cut)
        self._find, self._known, self._segments = finder.find, finder.known, finder.segments
        # No function's name begins with a dot.
        self._own = (self._prefix or "/") + ".scalezero/"
        pages = Pages(self._own, settings.page_template)
        self._answers = Answers(pages, expose=settings.expose_failures, log=CallLog(clock))
        self._status = StatusPage(self.cache, self.scaler, self._names, self._rules, self._answers, clock)

    def reports(self) -> list[WorkerReport]:
        """Return what this worker does now, and then each other one of the fleet, as it has said last."""
        own = self.queue.report(self._peers.worker)
        others: list[WorkerReport] = []
        if self._store is not None:
            with contextlib.suppress(CoordinationError):  # it is reported when it is lost
                others = list(self._peers.use(self._store.workers))
        return one_each([own, *(each for each in others if each.worker != own.worker)])

    def function(self, name: str) -> Function:
        """Return the function that requests call ``name``, or ``name.namespace``.

        :raises InvalidFunctionName: none can be called so.
        """
        return self._names.split(name)

    def serves(self, function: Function) -> bool:
        """Return whether clients may see a function, by the settings ``allow`` and ``deny``."""
        return self._rules.is_served(function)

    # Decide

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333); blocks while the function starts, at most ``max_wait`` seconds."""
        path: str = environ.get("PATH_INFO", "")
        if not path.startswith(self._prefix):
            return self._app(environ, start_response)
        state = self._known(path[self._cut :].partition("/")[0])
        if state is not None:
            meta = state.meta
            if meta is not None and meta.available:
                now = self._clock()
                fresh = now <= meta.last_refresh + self._expiry
                if fresh or now <= meta.last_refresh + self._usable:
                    # At full load a refresh takes much of the time until the next one: its requests, too,
                    # take the short way.
                    if not fresh:
                        self.scaler.refresh_stale(meta, now)
                        environ[OUTCOME] = "stale"
                    environ[WAITED] = 0.0
                    answer = self._pass_down(environ, start_response, meta, now, path)
                    if answer is not CLOSED:
                        return answer
        return self._admit(environ, start_response, path)

    def _admit(self, environ: WSGIEnvironment, start_response: StartResponse, path: str) -> Iterable[bytes]:
        """Serve a request whose function is not known to be warm."""
        arrived = self._clock()
        if path.startswith(self._own):
            return self._status.answer(environ, path[len(self._own) :])(environ, start_response)
        waited = False
        while True:  # once more if the function is being stopped at that moment
            function = meta = None
            activates = False
            since = NEVER
            try:
                function = self._find(environ, path)
                if function is not None:
                    activates = self._rules.may_wake(function, environ)
                    if self._idler is not None and not self._enter(self._idler, function, environ, activates):
                        since = self._clock()
                    elif activates:
                        meta = self.queue.warm(function)
                    else:
                        meta = self.queue.only_if_warm(function)
                    if meta is None:
                        caller = caller_of(environ, arrived, self.settings.page_after)
                        meta, waited = self.queue.hold(function, caller, since), True
            except ScaleZeroError as error:
                return self._refuse(error, environ, start_response, function)
            if function is None or meta is None:
                return self._app(environ, start_response)
            if waited:
                if environ.get(OUTCOME) == "stale":  # so it was before it was found to be stopping
                    del environ[OUTCOME]
                answer = self._pass_down_late(environ, start_response, meta, arrived, path)
            else:
                environ[WAITED] = 0.0
                now = self._clock()
                if now > meta.last_refresh + self._expiry:
                    environ[OUTCOME] = "stale"
                # A function that no request may wake is used by each of them.
                if not activates and self._rules.may_be_woken(function):
                    environ[FUNCTION] = function
                    if meta.status.endpoint is not None:
                        environ[ENDPOINT] = meta.status.endpoint
                    return self._app(environ, start_response)
                answer = self._pass_down(environ, start_response, meta, now, path, last=not activates)
            if answer is not CLOSED:
                return answer

    def _enter(self, idler: Idler, function: Function, environ: WSGIEnvironment, activates: bool) -> bool:
        """Have the function kept up for a request; return ``False`` if it is being stopped already.

        :raises MayNotWake: it is about to be stopped, and this request does not count as a use.
        """
        if activates:
            multiprocess = bool(environ.get("wsgi.multiprocess"))
            if self.scaler.context.room is not None:
                self.scaler.context.room.enter(multiprocess)
            return idler.enter(function, multiprocess)
        if function in idler.gate.closed:
            raise MayNotWake(function, self.settings.no_wake_status)
        return True

    def _refuse(
        self,
        error: ScaleZeroError,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        function: Function | None,
    ) -> Iterable[bytes]:
        environ[OUTCOME] = outcome_of(error)
        if isinstance(error, FunctionNotFound):
            function = error.function
        elif isinstance(
            error, (NotAvailable, FunctionFailed)
        ):  # of others a client may have invented the name
            environ[FUNCTION] = error.function
        if function is None:
            return self._answers.respond(error, environ)(environ, start_response)
        if isinstance(error, (TooManyWaiting, WorkerStopping)):
            self._report(RequestRefused(function, error.reason, call_id_of(environ)))
        progress = self._status.progress(function)
        return self._answers.respond(error, environ, function, progress)(environ, start_response)

    # Pass down

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
        begin = partial(start_with_timing, start_response, now - arrived)
        return self._pass_down(environ, begin, meta, now, path, last)

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
        back an answer that says the function could not be reached, so that the request can be retried.

        :param last: whether the application's answer stands in any case.
        :return: ``CLOSED``: the function is being stopped, and the application was not called.
        """
        state = meta.state
        environ[FUNCTION] = state.function
        if meta.status.endpoint is not None:
            environ[ENDPOINT] = meta.status.endpoint
        state.last_used = now
        in_flight = state.in_flight
        # Each variable that an inner function shares costs every request, so there are few.
        unreachable = self._unreachable
        head: Head = None

        def begin(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal head
            # The first comparison spares the usual answers the second.
            if status > "5" and status[:3] in unreachable and head is not COMMITTED:
                if head is None or not head.released:
                    head = DeferredStart(start_response, status, headers, exc_info)
                    return head.write
            head = COMMITTED
            if exc_info is None:
                return start_response(status, headers)
            return start_response(status, headers, exc_info)

        try:  # from before it joins: whatever ends the request, also from outside, takes it out again
            in_flight.add(begin)
            idler = self._idler
            if idler is not None and (idler.closed or state.meta is not meta):
                if not idler.is_open(state, meta):
                    in_flight.discard(begin)
                    return CLOSED
            result = self._used_app(environ, begin)
        except BaseException as error:
            in_flight.discard(begin)
            call = PassedDown(environ, start_response, meta, now, path, last)
            answer = self._reconsider(call, head, error, None)
            if answer is None:
                raise
            return answer
        if head is COMMITTED and result.__class__ is list:
            in_flight.discard(begin)
            return result
        try:
            if head is COMMITTED:
                return in_use(result, environ, in_flight, begin)
            call = PassedDown(environ, start_response, meta, now, path, last)
            if head is None:
                reconsider = partial(
                    lambda reconsider, call, result, error: reconsider(call, head, error, result),
                    *(self._reconsider, call, result),
                )
                return LazyBody(result, reconsider, in_flight, begin)
        except BaseException:
            in_flight.discard(begin)
            raise
        in_flight.discard(begin)
        answer = self._reconsider(call, head, None, result)
        return result if answer is None else answer

    def _reconsider(
        self,
        call: PassedDown,
        head: Head,
        error: BaseException | None,
        result: object,
    ) -> Iterable[bytes] | None:
        """Retry a request whose answer says that the function could not be reached.

        :param error: what the application raised.
        :param result: what it returned; closed if the answer does not stand.
        :return: what is answered instead; ``None`` if the application's answer stands.
        """
        deferred = None if head is COMMITTED else head
        if is_connection_error(error) if error is not None else deferred is not None:
            environ, start_response, function = call.environ, call.start_response, call.meta.function
            sent = head is COMMITTED or (deferred is not None and deferred.released)
            arrived = call.passed_at - environ[WAITED]
            try:
                renewed = self._replay.entry(call, arrived, sent)
            except ScaleZeroError as refused:
                close(result)
                return self._refuse(refused, environ, start_response, function)
            if renewed is not None:
                close(result)
                restore_path(environ, call.path)
                environ[OUTCOME] = "replayed"
                self._report(RequestReplayed(function, self._clock() - arrived, call_id_of(environ)))
                answer = self._pass_down_late(environ, start_response, renewed, arrived, call.path, last=True)
                if answer is CLOSED:
                    return self._admit(environ, start_response, call.path)
                return answer
        if deferred is not None and error is None:
            deferred.release()
        return None
