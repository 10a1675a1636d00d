"""The answers that are not the application's: an exception becomes a response here, and nowhere else.

Problem details by RFC 9457, a page for who prefers HTML, text for the rest. Nothing of the provider's
address, of a credential or of a traceback goes into them.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from werkzeug.wrappers import Response

from .model import (
    ClientGone,
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    MayNotWake,
    NotAvailable,
    ScaleZeroError,
    StillStarting,
    TooManyWaiting,
    WorkerStopping,
)
from .pages import NO_PROGRESS, POLICY, Pages, Progress
from .preferences import media_type, parse_prefer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

CLIENT_CLOSED_REQUEST = "499 Client Closed Request"
"""nginx's status, for the log: nobody reads it."""

_CALL_ID = re.compile(r"[!-~]{1,128}", re.ASCII)

_BODILESS = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is told to a client.

    :param retry_after: seconds after which another try makes sense; ``None`` where none does.
    """

    status: HTTPStatus
    detail: str
    retry_after: float | None = None


def problem_of(error: ScaleZeroError) -> Problem:
    """What a client may know of an error: the design's table of answers."""
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
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The function {error.function} cannot start: {error.reason}",
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
        case NotAvailable():
            return Problem(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"The function {error.function} is still starting.",
                error.retry_after,
            )
        case _:
            return Problem(HTTPStatus.BAD_GATEWAY, "The function's state cannot be told at the moment.", 1.0)


class Answers:
    """Makes responses of exceptions.

    :param pages: what people see.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def respond(
        self,
        error: ScaleZeroError,
        environ: WSGIEnvironment,
        function: Function | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> Response:
        """The response to a request that got no function; a WSGI app.

        :param progress: how far the function's start has come, for the waking page.
        """
        if isinstance(error, ClientGone):
            return Response(status=CLIENT_CLOSED_REQUEST)
        problem = problem_of(error)
        call_id = _call_id(environ)
        headers = {"X-Call-Id": call_id, "Cache-Control": "no-store", "Vary": "Accept, Sec-Fetch-Mode"}
        if problem.retry_after is not None and problem.status >= HTTPStatus.ACCEPTED:
            headers["Retry-After"] = str(_whole_seconds(problem.retry_after))
        if isinstance(error, StillStarting) and error.wish == "respond-async":
            headers["Preference-Applied"] = _applied(environ)
        if problem.status in _BODILESS:
            response = Response(status=problem.status, headers=headers)
            del response.headers["Content-Type"]
            return response
        form = media_type(environ)
        if isinstance(error, StillStarting) and error.wish == "page":
            form, body = "text/html", self._pages.waking(_root(environ), error.function, progress)
            headers |= _page_headers(self._pages.policy)
        elif form == "text/html":
            # A link asks by GET: it does not repeat what a form sent.
            again = problem.retry_after is not None and environ.get("REQUEST_METHOD") in ("GET", "HEAD")
            body = self._pages.problem(
                _root(environ), problem.status.value, problem.status.phrase, problem.detail, again=again
            )
            headers |= _page_headers(POLICY)
        elif form == "text/plain":
            body = problem.detail + "\n"
        else:
            form, body = "application/problem+json", _problem_json(problem, call_id, function)
        return Response(body, problem.status, headers, content_type=_with_charset(form))

    def status(self, state: str, detail: str = "", progress: Progress = NO_PROGRESS) -> Response:
        """What the waking page asks for, again and again.

        :param state: ``"starting"``, ``"ready"``, ``"failed"``, or ``"unknown"``: this worker cannot tell,
            and only a request for the function will.
        """
        told = {
            "state": state,
            "detail": detail,
            "elapsed": round(progress.elapsed, 1),
            "expected": round(progress.expected, 1),
            "last_starts": [round(start, 1) for start in progress.last_starts],
            "retry_after": _whole_seconds(progress.retry_after),
        }
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return Response(json.dumps(told), headers=headers, content_type="application/json")

    def asset(self, name: str) -> Response:
        """A file that a page needs."""
        asset = self._pages.asset(name)
        if asset is None:
            return Response("There is no such page.\n", HTTPStatus.NOT_FOUND, mimetype="text/plain")
        cache = "public, max-age=31536000, immutable" if asset.current else "no-cache"
        headers = {"Cache-Control": cache, "X-Content-Type-Options": "nosniff"}
        return Response(asset.body, headers=headers, content_type=_with_charset(asset.media_type))


def _page_headers(policy: str | None) -> dict[str, str]:
    headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return headers if policy is None else {"Content-Security-Policy": policy, **headers}


def _problem_json(problem: Problem, call_id: str, function: Function | None) -> str:
    members: dict[str, object] = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
        "call_id": call_id,
    }
    if function is not None:
        members["function"], members["namespace"] = function
    if problem.retry_after is not None:
        members["retry_after"] = _whole_seconds(problem.retry_after)
    return json.dumps(members) + "\n"


def _call_id(environ: WSGIEnvironment) -> str:
    """The request's own id, if it is fit for a header, a page and a line of the log; else a new one."""
    given: str = environ.get("HTTP_X_CALL_ID", "")
    return given if _CALL_ID.fullmatch(given) else str(uuid.uuid4())


def _applied(environ: WSGIEnvironment) -> str:
    wait = parse_prefer(environ.get("HTTP_PREFER", "")).wait
    return "respond-async" if wait is None else f"respond-async, wait={wait:.0f}"


def _root(environ: WSGIEnvironment) -> str:
    root: str = environ.get("SCRIPT_NAME", "")
    return root


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _with_charset(form: str) -> str:
    return f"{form}; charset=utf-8" if form.startswith("text/") else form
