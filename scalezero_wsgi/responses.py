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
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Response

from .model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    NotAvailable,
    ScaleZeroError,
    TooManyWaiting,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_MEDIA_TYPES = ["application/problem+json", "application/json", "text/html", "text/plain"]

_PARAMETER = re.compile(r";\s*(?!q=)[^;,]*", re.IGNORECASE)

_PAGE = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title></head>
<body><h1>{title}</h1><p>{detail}</p></body>
</html>
"""


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
        case FunctionFailed():
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The function {error.function} cannot start: {error.reason}",
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


def respond(error: ScaleZeroError, environ: WSGIEnvironment, function: Function | None) -> Response:
    """The response to a request that got no function; a WSGI app."""
    problem = problem_of(error)
    call_id = environ.get("HTTP_X_CALL_ID") or str(uuid.uuid4())
    headers = {"X-Call-Id": call_id, "Cache-Control": "no-store", "Vary": "Accept"}
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
        members["retry_after"] = max(1, math.ceil(problem.retry_after))
        headers["Retry-After"] = str(members["retry_after"])

    match _media_type(environ):
        case "text/html":
            title = f"{problem.status.value} {problem.status.phrase}"
            body, media_type = _PAGE.format(title=title, detail=escape(problem.detail)), "text/html"
        case "text/plain":
            body, media_type = problem.detail + "\n", "text/plain"
        case _:
            body, media_type = json.dumps(members) + "\n", "application/problem+json"
    return Response(body, problem.status, headers, content_type=_with_charset(media_type))


def _media_type(environ: WSGIEnvironment) -> str:
    # Of the parameters only the weight counts here; werkzeug would compare a charset as well.
    header = _PARAMETER.sub("", environ.get("HTTP_ACCEPT") or "*/*")
    accept = parse_accept_header(header, MIMEAccept)
    return accept.best_match(_MEDIA_TYPES, default="text/plain")


def _with_charset(media_type: str) -> str:
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
