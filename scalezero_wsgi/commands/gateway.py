"""The application of ``scalezero-wsgi serve``: a proxy to the functions, and a few pages beside it.

``/`` lists the functions, as HTML or JSON; ``/healthz`` says that the worker answers, and ``/readyz`` whether
its provider does.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from ..activation.single_flight import Flight, SingleFlight
from ..model import Function, ProviderError, ScaleZeroError, TooManyWaiting
from ..operate import Seen, functions_of
from ..pages import POLICY, Pages
from ..providers.base import ListingProvider, Provider
from ..web.negotiation import media_type

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PATIENCE = 2.0
"""Seconds for which a request waits for the provider."""

FRESH = 1.0
"""Seconds for which what the provider said is shown again without asking it: at least, and for as long as the
answer took."""

HANGS = 60.0
"""Seconds after which a question counts as one that hangs."""

FUNCTION = "scalezero_wsgi.function"


class Gateway:
    """Safe for threads and after a fork. However many ask for a page, the provider is asked once at a time.

    :param proxy: what passes requests on to functions.
    :param route: the path below which the functions are.
    :param is_served: whether a function is.
    :param expose: whether a page tells why a function failed.
    """

    def __init__(
        self,
        proxy: WSGIApplication,
        provider: Provider,
        *,
        route: str,
        is_served: Callable[[Function], bool],
        expose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proxy = proxy
        self._provider = provider
        self._route = route
        self._is_served = is_served
        self._expose = expose
        self._clock = clock
        self._pages = Pages(f"{route}.scalezero/")
        self._looks: SingleFlight[None, None] = SingleFlight("scalezero-overview", 1, clock)
        self._lists: SingleFlight[None, None] = SingleFlight("scalezero-readiness", 1, clock)
        self._last: list[Seen] = []
        self._fresh_until = self._ready_until = -math.inf
        if hasattr(proxy, "follow_route"):
            self.follow_route = proxy.follow_route

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer (PEP 3333); blocks for ``PATIENCE`` seconds at most, but for what the proxy does."""
        if FUNCTION in environ:
            return self._proxy(environ, start_response)
        match environ.get("PATH_INFO", ""):
            case "/" | "":
                status, kind, text = self._overview(environ)
            case "/healthz":
                status, kind, text = "200 OK", "text/plain", "ok\n"
            case "/readyz":
                status, kind, text = self._readiness()
            case _:
                status, kind, text = "404 NOT FOUND", "text/plain", "There is nothing here.\n"
        body = text.encode()
        headers = [
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Vary", "Accept"),
        ]
        if kind == "text/html":
            headers.append(("Content-Security-Policy", POLICY))
        start_response(status, headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _readiness(self) -> tuple[str, str, str]:
        # Not all that the overview asks: of many functions that takes longer than a probe waits.
        if isinstance(self._provider, ListingProvider) and self._clock() > self._ready_until:
            try:
                self._wait(self._lists, partial(self._list, self._provider))
            except ScaleZeroError:
                return "503 SERVICE UNAVAILABLE", "text/plain", "the provider does not answer\n"
        return "200 OK", "text/plain", "ok\n"

    def _overview(self, environ: WSGIEnvironment) -> tuple[str, str, str]:
        wants_page = media_type(environ) == "text/html"
        try:
            seen = self._look()
        except ScaleZeroError as error:
            text = "The provider does not answer."
            if not isinstance(error, ProviderError):
                text = "The provider cannot list its functions."
            if wants_page:
                root = environ.get("SCRIPT_NAME", "")
                page = self._pages.problem(root, 503, "Service Unavailable", text, again=True)
                return "503 SERVICE UNAVAILABLE", "text/html", page
            return "503 SERVICE UNAVAILABLE", "text/plain", f"{text}\n"
        rows = [self._row(each, environ.get("SCRIPT_NAME", "")) for each in seen]
        if wants_page:
            return "200 OK", "text/html", self._pages.functions(environ.get("SCRIPT_NAME", ""), rows)
        return "200 OK", "application/json", json.dumps({"functions": rows}) + "\n"

    def _row(self, seen: Seen, root: str) -> dict[str, str | int]:
        status = seen.status
        trouble = seen.trouble or (status.failure if status is not None else None) or ""
        return {
            "function": str(seen.function),
            "state": seen.state,
            "replicas": 0 if status is None else status.replicas,
            "available_replicas": 0 if status is None else status.available_replicas,
            "url": f"{root}{self._route}{seen.function}/",
            **({"failure": trouble} if trouble and self._expose else {}),
        }

    def _look(self) -> list[Seen]:
        """Return the functions, as the provider has told them a moment ago.

        :raises SettingError: it cannot list them.
        :raises ProviderError: it does not answer, or not in time.
        """
        if self._clock() > self._fresh_until:
            self._wait(self._looks, self._ask)
        return self._last

    def _wait(self, questions: SingleFlight[None, None], ask: Callable[[Flight[None]], None]) -> None:
        try:
            flight = questions.join(None, ask, self._clock() + HANGS)
        except TooManyWaiting:
            raise ProviderError("an earlier question has no answer yet") from None
        if not flight.wait(PATIENCE):
            raise ProviderError("it does not answer in time")
        flight.result()

    def _list(self, provider: ListingProvider, flight: Flight[None]) -> None:  # noqa: ARG002
        try:
            list(provider.list_functions())
        except ScaleZeroError:
            raise
        except Exception as error:
            raise ProviderError(str(error)) from error
        self._ready_until = self._clock() + FRESH

    def _ask(self, flight: Flight[None]) -> None:
        try:
            seen = functions_of(self._provider, self._is_served)
        except ScaleZeroError:
            raise
        except Exception as error:
            raise ProviderError(str(error)) from error
        now = self._clock()
        self._last, self._fresh_until = seen, now + max(FRESH, now - flight.started_at)
