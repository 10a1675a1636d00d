"""What the client prefers: whether to wait (RFC 7240, ``Prefer: respond-async, wait=10``), and which media
type."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from ..activation.request_queue import GRACE, Caller
from ..servers.client import wait_check
from ..servers.server import warn_if_waiting_hurts
from ..servers.slots import waiting_in
from .call_id import call_id_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_MEDIA_TYPES = ["application/problem+json", "application/json", "text/html", "text/plain"]
# Possessive quantifiers throughout: matching any header takes time in proportion to its length.
_PARAMETER = re.compile(r";\s*+(?!q=)[^;,]*+", re.IGNORECASE)

# The text between two commas. A quotation without its closing mark reaches to the end.
_ELEMENT = re.compile(r"""(?:[^",]++|"(?:[^"\\]|\\.?)*+"?)++""", re.DOTALL)
_CHAR = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_PREFERENCE = re.compile(
    rf"""\s*+({_CHAR}++)\s*+(?:=\s*+("(?:[^"\\]|\\.)*+"|{_CHAR}*+)\s*+)?(?:;.*+)?""", re.ASCII | re.DOTALL
)


class Preferences(NamedTuple):
    """The client's preferences, as far as they were understood.

    :ivar wait: seconds; ``None`` if not given.
    :ivar respond_async: whether the client prefers a 202 at once to waiting.
    """

    wait: float | None = None
    respond_async: bool = False


def parse_prefer(header: str) -> Preferences:
    """Read the header. The first preference of a name counts; malformed and unknown ones are ignored."""
    found: dict[str, str] = {}
    for element in _ELEMENT.findall(header):
        match = _PREFERENCE.fullmatch(element)
        if match is not None:
            found.setdefault(match[1].lower(), (match[2] or "").strip('"'))
    wait = found.get("wait", "")
    seconds = float(wait) if wait.isascii() and wait.isdecimal() and len(wait) < 10 else None
    return Preferences(seconds, found.get("respond-async") == "")


def media_type(environ: WSGIEnvironment) -> str:
    """Return the media type that the client likes best, of those that we can send."""
    # Remove all parameters but the weight: werkzeug would compare a charset as well.
    header = _PARAMETER.sub("", environ.get("HTTP_ACCEPT") or "*/*")
    accept = parse_accept_header(header, MIMEAccept)
    return accept.best_match(_MEDIA_TYPES, default="text/plain")


def is_navigation(environ: WSGIEnvironment) -> bool:
    """Return whether a browser navigates here, by Fetch Metadata or else by the ``Accept`` header."""
    if environ.get("REQUEST_METHOD") != "GET":
        return False
    mode = environ.get("HTTP_SEC_FETCH_MODE")
    if mode is not None:
        return bool(mode == "navigate")
    return "HTTP_ACCEPT" in environ and media_type(environ) == "text/html"


def caller_of(
    environ: WSGIEnvironment, arrived: float, page_after: float | None, in_app: bool = False
) -> Caller:
    """Return what the request queue must know about a request. Call this in the thread that serves it.

    :param arrived: monotonic seconds at which it came.
    :param page_after: seconds after which a browser's navigation gets the waking page; ``None``: never.
    :param in_app: whether the application has been called for it already.
    """
    header = environ.get("HTTP_PREFER")
    preferences = parse_prefer(header) if header else Preferences()
    wish, patience = None, math.inf if preferences.wait is None else preferences.wait
    if preferences.respond_async:
        wish, patience = "respond-async", max(GRACE, preferences.wait or 0.0)
    elif page_after is not None and page_after < patience and is_navigation(environ):
        wish, patience = "page", max(GRACE, page_after)
    if "gunicorn.socket" in environ:
        warn_if_waiting_hurts()
    waiting = waiting_in(environ, in_app)
    return Caller(arrived, wish, patience, wait_check(environ), *waiting, partial(call_id_of, environ))
