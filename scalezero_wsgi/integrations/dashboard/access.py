"""Who may see the dashboard, and which forms are its own.

A session is a cookie that any worker can check and none has to remember: when it began, a random word, and an
HMAC over both. Its forms carry another HMAC over the session.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from werkzeug.http import dump_cookie, parse_cookie

from ...model import SettingError
from ...providers.base import check_callable

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("scalezero_wsgi")

COOKIE = "scalezero_dashboard"

LASTS = 12 * 3600
"""Seconds for which a session lasts."""

LEAST_LENGTH = 16
"""Characters that a token has at least: whoever guesses is not slowed down."""


class Caller(NamedTuple):
    """Who has asked.

    :ivar session: the cookie's text; empty: a program that sends the token with each request, whose requests
        no other site can forge.
    :ivar is_new: whether the cookie is still to be set.
    """

    session: str
    is_new: bool = False


class Access:
    """Safe for threads and after a fork.

    :param token: a secret of ``LEAST_LENGTH`` characters or more.
    :param authorise: is given ``environ``, and returns whether the request may see and do everything.
    :param wall_clock: seconds since the epoch, for the age of sessions.
    :raises SettingError: there is neither, or one is not as it must be.
    """

    def __init__(
        self,
        token: object,
        authorise: Callable[[WSGIEnvironment], object] | None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if token is None and authorise is None:
            raise SettingError(
                "the dashboard shows and stops functions, so it needs a token,"
                " or authorise, a callable of (environ)"
            )
        if token is not None and (not isinstance(token, str) or len(token) < LEAST_LENGTH):
            raise SettingError(f"token must be a string of {LEAST_LENGTH} characters or more")
        if authorise is not None:
            check_callable("authorise", authorise, "environ")
        self._token = None if token is None else _digest(token)
        self._authorise = authorise
        # Without a token the key is no secret, for workers that load the application each for itself have
        # none in common. Then a form is its own if it knows the cookie, which another site cannot read.
        self._key = _digest(f"dashboard {token or ''}")
        self._wall_clock = wall_clock

    @property
    def has_token(self) -> bool:
        """Whether there is a token to log in with."""
        return self._token is not None

    def is_token(self, text: str) -> bool:
        """Return whether the text is the token, in a time that does not depend on it."""
        return self._token is not None and hmac.compare_digest(_digest(text), self._token)

    def caller(self, environ: WSGIEnvironment) -> Caller | None:
        """Return who asks; ``None``: somebody who may not."""
        kind, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(credentials.strip()):
            return Caller("")
        session = self._session(environ)
        if self.has_token and session is not None:
            return Caller(session)
        if self._authorise is not None and self._is_authorised(environ):
            return Caller(self.begin(), is_new=True) if session is None else Caller(session)
        return None

    def begin(self) -> str:
        """Return a new session."""
        text = f"{int(self._wall_clock())}.{secrets.token_urlsafe(16)}"
        return f"{text}.{self.sign('session', text)}"

    def sign(self, purpose: str, text: str) -> str:
        """Return what proves that a text comes from here."""
        return hmac.new(self._key, f"{purpose} {text}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def is_signed(self, purpose: str, text: str, mark: str) -> bool:
        """Return whether :meth:`sign` returned ``mark``."""
        return hmac.compare_digest(self.sign(purpose, text).encode(), mark.encode("utf-8", "replace"))

    def is_own_form(self, caller: Caller, environ: WSGIEnvironment, mark: str) -> bool:
        """Return whether a request was sent by a page of that caller's."""
        if not caller.session:
            return True
        if caller.is_new or not self.is_signed("form", caller.session, mark):
            return False
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site is not None:
            return bool(site == "same-origin")
        origin = environ.get("HTTP_ORIGIN")
        return origin is None or urlsplit(origin).netloc.lower() == environ.get("HTTP_HOST", "").lower()

    def _session(self, environ: WSGIEnvironment) -> str | None:
        try:
            session = parse_cookie(environ.get("HTTP_COOKIE")).get(COOKIE, "")
        except UnicodeDecodeError:  # werkzeug's, of a header that is not UTF-8
            return None
        text, _, mark = session.rpartition(".")
        begun = text.partition(".")[0]
        if not text or not self.is_signed("session", text, mark) or not begun.isdecimal():
            return None
        return session if 0 <= self._wall_clock() - int(begun) <= LASTS else None

    def _is_authorised(self, environ: WSGIEnvironment) -> bool:
        try:
            return bool(self._authorise is not None and self._authorise(environ))
        except Exception:
            logger.exception("the dashboard's authorise failed; the request is refused")
            return False


def cookie(environ: WSGIEnvironment, session: str) -> str:
    """Return the header that sets a session's cookie; an empty one forgets it."""
    path = quote(environ.get("SCRIPT_NAME", ""), encoding="latin-1", errors="replace")
    return dump_cookie(
        COOKIE,
        session,
        max_age=LASTS if session else 0,
        path=f"{path}/",
        secure=environ.get("wsgi.url_scheme") == "https",
        httponly=True,
        samesite="Strict",
    )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
