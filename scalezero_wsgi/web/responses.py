"""The answers that are not the application's: an exception becomes a response here, and nowhere else.

The body is problem details (RFC 9457), a page for clients that prefer HTML, or text. It never contains a
provider's address, a credential, a function's output or a traceback. What the client is not told is logged
with the ``X-Call-Id`` that the client gets.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from werkzeug.wrappers import Response

from ..events import CallLog
from ..model import (
    ClientGone,
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    MayNotWake,
    NoRoom,
    NotAvailable,
    ScaleZeroError,
    StillStarting,
    TooManyWaiting,
    WorkerStopping,
)
from ..pages import NO_PROGRESS, POLICY, Pages, Progress
from .call_id import call_id_of
from .negotiation import media_type, parse_prefer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

CLIENT_CLOSED_REQUEST = "499 Client Closed Request"
"""nginx's status, for the access log: the client is gone."""

JITTER = 0.2
"""Vary ``Retry-After`` by up to this share, so that clients refused together do not return together."""

_BODILESS = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told about an error.

    :param retry_after: seconds after which a retry makes sense; ``None`` if none does.
    """

    status: HTTPStatus
    detail: str
    retry_after: float | None = None


def problem_of(error: ScaleZeroError, expose: bool = False) -> Problem:
    """Return what a client may know about an error.

    :param expose: whether the client may know why a start failed.
    """
    match error:
        case InvalidFunctionName():
            return Problem(HTTPStatus.BAD_REQUEST, str(error))
        case FunctionNotFound():
            return Problem(HTTPStatus.NOT_FOUND, f"There is no function {error.function}.")
        case TooManyWaiting():
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests are waiting already.", error.retry_after
            )
        case WorkerStopping():
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "This server is being restarted.", error.retry_after
            )
        case MayNotWake():
            return Problem(HTTPStatus(error.status), f"The function {error.function} is at zero.", 1.0)
        case FunctionFailed():
            detail = f"The function {error.function} could not be started"
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{detail}: {error.reason}" if expose else f"{detail}.",
                error.retry_after,
            )
        case StillStarting(wish="respond-async"):
            return Problem(
                HTTPStatus.ACCEPTED, f"The function {error.function} is being started.", error.retry_after
            )
        case StillStarting():
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The function {error.function} is being started.",
                error.retry_after,
            )
        case NoRoom():
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"There is no room for the function {error.function} at the moment.",
                error.retry_after,
            )
        case NotAvailable():
            return Problem(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"The function {error.function} is still starting.",
                error.retry_after,
            )
        case _:
            return Problem(HTTPStatus.BAD_GATEWAY, "The function's state cannot be told at the moment.", 1.0)


def outcome_of(error: ScaleZeroError) -> str:
    """Return what became of a request that was refused, in one word."""
    match error:
        case InvalidFunctionName():
            return "invalid"
        case FunctionNotFound():
            return "missing"
        case TooManyWaiting() | WorkerStopping() | NoRoom():
            return "overloaded"
        case MayNotWake():
            return "asleep"
        case StillStarting():
            return "deferred"
        case NotAvailable():
            return "timeout"
        case ClientGone():
            return "gone"
        case _:
            return "failed"


class Answers:
    """Turns exceptions into responses.

    :param pages: renders the HTML.
    :param expose: whether clients are told why a start failed.
    :param log: logs, with a call's id, what its client is not told.
    :param jitter: returns a number from 0 to 1 for each ``Retry-After``. The default does not repeat itself
        in forked workers.
    """

    def __init__(
        self,
        pages: Pages,
        *,
        expose: bool = False,
        log: CallLog | None = None,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self._pages = pages
        self._expose = expose
        self._log = log or CallLog()
        self._jitter = jitter or random.SystemRandom().random

    def respond(
        self,
        error: ScaleZeroError,
        environ: WSGIEnvironment,
        function: Function | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> Response:
        """Return the response, a WSGI app, to a request that was not passed down.

        :param progress: how far the function's start has come, for the waking page.
        """
        if isinstance(error, ClientGone):
            return Response(status=CLIENT_CLOSED_REQUEST)
        problem = problem_of(error, self._expose)
        call_id = call_id_of(environ)
        self._log_the_reason(call_id, error, function)
        headers = {"X-Call-Id": call_id, "Cache-Control": "no-store", "Vary": "Accept, Sec-Fetch-Mode"}
        retry_after = self._retry_after(problem, error)
        if retry_after is not None and problem.status >= HTTPStatus.ACCEPTED:
            headers["Retry-After"] = str(retry_after)
        applied = _applied(error, environ)
        if applied:
            headers["Preference-Applied"] = applied
        if problem.status in _BODILESS:
            response = Response(status=problem.status, headers=headers)
            del response.headers["Content-Type"]
            return response
        form = media_type(environ)
        if isinstance(error, StillStarting) and error.wish == "page":
            form, body = "text/html", self._pages.waking(_root(environ), error.function, progress)
            headers |= _page_headers(self._pages.policy)
        elif form == "text/html":
            # A link sends a GET, so it cannot repeat a form's POST.
            again = problem.retry_after is not None and environ.get("REQUEST_METHOD") in ("GET", "HEAD")
            body = self._pages.problem(
                _root(environ),
                problem.status.value,
                problem.status.phrase,
                problem.detail,
                again=again,
                call_id=call_id,
            )
            headers |= _page_headers(POLICY)
        elif form == "text/plain":
            body = problem.detail + "\n"
        else:
            form = "application/problem+json"
            body = _problem_json(problem, retry_after, call_id, function)
        return Response(body, problem.status, headers, content_type=_with_charset(form))

    def detail(self, error: ScaleZeroError) -> str:
        """Return what a client may know about an error, in words."""
        return problem_of(error, self._expose).detail

    def failed(self, error: ScaleZeroError, environ: WSGIEnvironment) -> Response:
        """Return the status of a start that failed, for the waking page."""
        call_id = call_id_of(environ)
        self._log_the_reason(call_id, error, None)
        response = self.status("failed", self.detail(error), call_id=call_id)
        response.headers["X-Call-Id"] = call_id
        return response

    def status(
        self, state: str, detail: str = "", progress: Progress = NO_PROGRESS, call_id: str = ""
    ) -> Response:
        """Return the status that the waking page polls.

        :param state: ``"starting"``, ``"ready"``, ``"failed"``, or ``"unknown"``: this worker cannot tell,
            and only a request for the function will.
        :param call_id: the id with which the log says more; empty if it does not.
        """
        told: dict[str, object] = {
            "state": state,
            "detail": detail,
            "elapsed": round(progress.elapsed, 1),
            "expected": round(progress.expected, 1),
            "last_starts": [round(start, 1) for start in progress.last_starts],
            "retry_after": _whole_seconds(progress.retry_after),
        }
        if call_id:
            told["call_id"] = call_id
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return Response(json.dumps(told), headers=headers, content_type="application/json")

    def asset(self, name: str) -> Response:
        """Return a file that a page needs."""
        asset = self._pages.asset(name)
        if asset is None:
            return Response("There is no such page.\n", HTTPStatus.NOT_FOUND, mimetype="text/plain")
        cache = "public, max-age=31536000, immutable" if asset.current else "no-cache"
        headers = {"Cache-Control": cache, "X-Content-Type-Options": "nosniff"}
        return Response(asset.body, headers=headers, content_type=_with_charset(asset.media_type))

    def _log_the_reason(self, call_id: str, error: ScaleZeroError, function: Function | None) -> None:
        """Log what the answer does not tell the client."""
        if isinstance(error, FunctionFailed):
            self._log(call_id, error.function, f"{error.function}: cannot start ({error.reason})")
        elif problem_of(error).status == HTTPStatus.BAD_GATEWAY:
            about = f"{function}: " if function is not None else ""
            self._log(call_id, None, f"{about}the provider failed: {error}")

    def _retry_after(self, problem: Problem, error: ScaleZeroError) -> int | None:
        """Return whole seconds with jitter; ``None`` if a retry makes no sense."""
        if problem.retry_after is None:
            return None
        varied = 2 * self._jitter() - 1
        if isinstance(error, FunctionFailed):
            varied = abs(varied)  # a client that returns before the rest ends is refused again
        return max(1, round(_whole_seconds(problem.retry_after) * (1 + JITTER * varied)))


def _page_headers(policy: str | None) -> dict[str, str]:
    headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return headers if policy is None else {"Content-Security-Policy": policy, **headers}


def _problem_json(problem: Problem, retry_after: int | None, call_id: str, function: Function | None) -> str:
    members: dict[str, object] = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
        "call_id": call_id,
    }
    if function is not None:
        members["function"], members["namespace"] = function
    if retry_after is not None:
        members["retry_after"] = retry_after
    return json.dumps(members) + "\n"


def _applied(error: ScaleZeroError, environ: WSGIEnvironment) -> str:
    """Return the client's preferences that the answer follows (RFC 7240 section 3)."""
    if not isinstance(error, NotAvailable):
        return ""
    applied = ["respond-async"] if isinstance(error, StillStarting) and error.wish == "respond-async" else []
    wait = parse_prefer(environ.get("HTTP_PREFER", "")).wait
    if error.shortened and wait is not None:
        applied.append(f"wait={wait:.0f}")
    return ", ".join(applied)


def _root(environ: WSGIEnvironment) -> str:
    root: str = environ.get("SCRIPT_NAME", "")
    return root


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _with_charset(form: str) -> str:
    return f"{form}; charset=utf-8" if form.startswith("text/") else form
