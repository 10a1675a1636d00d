"""The answers to the waking page's requests: its files, and how far a function's start has come."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..activation.activation import LEADER_SILENT
from ..activation.function_cache import FunctionCache
from ..activation.request_queue import PAGE_INTEREST
from ..activation.scaler import FunctionScaler
from ..model import Function, FunctionFailed, ProviderError, ProviderSilent, ScaleZeroError
from ..pages import Progress
from .access import Rules
from .responses import Answers
from .routing import Names

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment
    from werkzeug.wrappers import Response


class StatusPage:
    """Answers the waking page's own requests. Safe for threads.

    Anybody may ask for any name, as often as they like. So this starts nothing, calls no provider and
    remembers no name; it only keeps a start going that a request has begun. A name that does not exist gets
    the same answer as a function that no request has asked for.
    """

    def __init__(
        self,
        cache: FunctionCache,
        scaler: FunctionScaler,
        names: Names,
        rules: Rules,
        answers: Answers,
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._scaler = scaler
        self._names = names
        self._rules = rules
        self._answers = answers
        self._clock = clock
        # At least PAGE_INTEREST: with a short expiry and ``stale_for`` 0 no poll might meet a usable entry.
        self._interest = max(cache.usable, PAGE_INTEREST)

    def answer(self, environ: WSGIEnvironment, page: str) -> Response:
        """Return the response to a request for one of our own pages.

        :param page: the page's path below the prefix of our pages.
        """
        kind, _, name = page.partition("/")
        if kind != "status":
            return self._answers.asset(page)
        try:
            function = self._names.read_text(name)
            if not self._rules.is_served(function):
                return self._answers.status("unknown")
            return self._status(function, environ)
        except ScaleZeroError as error:
            return self._answers.failed(error, environ)

    def progress(self, function: Function) -> Progress:
        """Return how far the function's start has come."""
        started_at = self._scaler.started_at(function)
        return Progress(
            0.0 if started_at is None else self._clock() - started_at,
            self._scaler.last_starts(function),
            self._scaler.time_left(function),
            self._scaler.expected_start(function) or 0.0,
        )

    def _status(self, function: Function, environ: WSGIEnvironment) -> Response:
        """Return how far the start has come; raise :class:`FunctionFailed` while the function rests."""
        now = self._clock()
        meta = self._cache.find(function)
        if meta is not None and meta.available and not meta.expired(self._interest, now):
            return self._answers.status("ready")
        interested = self._rules.may_wake(function, environ)
        flight = self._scaler.keep_up(function, now + PAGE_INTEREST if interested else -math.inf)
        if flight is not None:
            # A failed query does not end the flight: it goes on, and the page shows the error.
            return self._starting(function, flight.trouble)
        self._scaler.refuse_while_resting(function)
        return self._status_elsewhere(function)

    def _status_elsewhere(self, function: Function) -> Response:
        """Return the status of a start in another worker: a page's polls may reach any worker."""
        shared = self._scaler.shared_status(function)
        if shared is None:
            return self._answers.status("unknown")
        status, failure, fault = shared.status, shared.failure, shared.trouble
        up = status is not None and status.available_replicas > 0
        if up and shared.age <= self._interest:
            return self._answers.status("ready")
        if failure is not None and failure.left > 0:
            raise FunctionFailed(function, failure.reason, failure.left)
        if fault is not None and fault.age <= LEADER_SILENT and not fault.final:
            return self._starting(function, ProviderError("another worker's call failed"))
        if status is not None and fault is None and not up and shared.age <= LEADER_SILENT:
            self._cache.state(function).page_asked_at = self._clock()
            return self._starting(function, None)
        return self._answers.status("unknown")

    def _starting(self, function: Function, trouble: Exception | None) -> Response:
        detail = ""
        if isinstance(trouble, ScaleZeroError) and not isinstance(trouble, ProviderSilent):
            detail = self._answers.detail(trouble)
        return self._answers.status("starting", detail, self.progress(function))
