"""All functions of the fleet on a page, with buttons: a WSGI application, to be mounted where you like.

::

    dashboard = Dashboard(middleware, token=os.environ["DASHBOARD_TOKEN"])
    application = DispatcherMiddleware(middleware, {"/dashboard": dashboard})

It needs no JavaScript; with it the page follows what happens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlencode

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request, Response

from ...middleware import ScaleZeroMiddleware
from ...model import SettingError
from ...pages import DASHBOARD_POLICY, Pages
from .access import Access, Caller, cookie
from .acts import ACTS, Acts, Said
from .overview import Overview
from .saved import Saved
from .view import View, Wish, as_html, as_json, view

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ..prometheus import PrometheusMetrics
    from ..savings import Savings

LONGEST_FORM = 10_000
"""Bytes."""


class Dashboard:
    """Safe for threads and after a fork. However many look, the provider is asked one question at a time.

    :param middleware: whose functions are shown: those of its provider and of the whole fleet, as far as its
        settings ``allow`` and ``deny`` have them served.
    :param token: a secret of 16 characters or more, which is asked for; a program sends it in
        ``Authorization: Bearer``.
    :param authorise: is given ``environ`` and returns whether the request may see and do everything; for an
        application that knows its operators.
    :param metrics: counts requests by outcome, which are shown then.
    :param savings: adds up for how long functions were up, which is shown then.
    :param clock: monotonic seconds.
    :param wall_clock: seconds since the epoch, for the age of sessions.
    :raises SettingError: there is neither a token nor ``authorise``, or an argument is not as it must be.
    """

    def __init__(
        self,
        middleware: ScaleZeroMiddleware,
        *,
        token: str | None = None,
        authorise: Callable[[WSGIEnvironment], object] | None = None,
        metrics: PrometheusMetrics | None = None,
        savings: Savings | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(middleware, ScaleZeroMiddleware):
            raise SettingError(f"middleware must be a ScaleZeroMiddleware, not {middleware!r}")
        self._middleware = middleware
        self._access = Access(token, authorise, wall_clock)
        self._overview = Overview(middleware, metrics, clock)
        self._saved = None if savings is None else Saved(savings, wall_clock)
        self._pages = Pages("/")
        self._acts = Acts(middleware, self._overview)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer (PEP 3333). Blocks for about a second at most, and for ten after a press of "Stop"."""
        request = Request(environ)
        request.max_content_length = request.max_form_memory_size = LONGEST_FORM
        try:
            response = self._answer(request)
        except HTTPException as error:
            response = _text(HTTPStatus(error.code or 400), error.description or "It cannot be read.")
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.update({"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"})
        if response.mimetype == "text/html":
            response.headers["Content-Security-Policy"] = DASHBOARD_POLICY
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        path, method = request.environ.get("PATH_INFO", "") or "/", request.method
        posts = {"/login", "/logout", *ACTS}
        if path not in {"/", "/functions", *posts}:
            return self._asset(path)
        allowed = ("POST",) if path in posts else ("GET", "HEAD")
        if method not in allowed:
            response = _text(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {' and '.join(allowed)}.")
            response.headers["Allow"] = ", ".join(allowed)
            return response
        if path == "/login":
            return self._login(request)
        caller = self._access.caller(request.environ)
        if caller is None:
            return self._unauthorised(request)
        if path in posts:
            return self._post(request, path, caller)
        response = self._functions(request) if path == "/functions" else self._page(request, caller)
        if caller.is_new:
            response.headers.add("Set-Cookie", cookie(request.environ, caller.session))
        return response

    def _asset(self, path: str) -> Response:
        asset = self._pages.asset(path.removeprefix("/"))
        if asset is None:
            return _text(HTTPStatus.NOT_FOUND, "There is nothing here.")
        cache = "public, max-age=31536000, immutable" if asset.current else "no-cache"
        kind = f"{asset.media_type}; charset=utf-8"
        return Response(asset.body, headers={"Cache-Control": cache}, content_type=kind)

    # What is shown

    def _functions(self, request: Request) -> Response:
        wish = Wish.of(request.args)
        if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
            response = Response(self._live(request, wish), mimetype="text/html")
            response.add_etag()
            return response.make_conditional(request)
        return _json(HTTPStatus.OK, as_json(self._view(wish), self._overview.trouble))

    def _view(self, wish: Wish) -> View:
        shown = view(self._overview.rows(), wish)
        saved = None if self._saved is None else self._saved.look()
        return shown._replace(rows=self._overview.now(shown.rows), saved=saved)

    def _live(self, request: Request, wish: Wish) -> str:
        shown = self._view(wish)
        return as_html(shown, self._overview.trouble, _home(request), self._acts.can_keep_up)

    def _page(self, request: Request, caller: Caller) -> Response:
        wish, home, args = Wish.of(request.args), _home(request), request.args
        said, cut = args.get("said", ""), args.get("cut", "")
        if not self._access.is_signed("said", f"{caller.session} {cut} {said}", args.get("mark", "")):
            said = cut = ""
        page = self._pages.dashboard(
            request.environ.get("SCRIPT_NAME", ""),
            {
                "live": self._live(request, wish),
                "chosen": f'<input type="hidden" name="state" value="{wish.state}">' if wish.state else "",
                "leave": LEAVE.format(home=home) if self._access.has_token and caller.session else "",
                "cut_hidden": "" if cut else " hidden",
            },
            home=home,
            functions=f"{home}functions",
            stop_and_cut=f"{home}stop?cut=yes",
            q=wish.q,
            form=self._access.sign("form", caller.session),
            back=wish.query(),
            said=said,
            cut=cut,
        )
        return Response(page, mimetype="text/html")

    # Who may

    def _login(self, request: Request) -> Response:
        if not self._access.is_token(request.form.get("token", "")):
            return self._unauthorised(request, "That is not the token.")
        response = _redirect(_home(request))
        response.headers.add("Set-Cookie", cookie(request.environ, self._access.begin()))
        return response

    def _unauthorised(self, request: Request, said: str = "") -> Response:
        if _wants_page(request):
            known = self._access.has_token
            page = self._pages.login(
                request.environ.get("SCRIPT_NAME", ""),
                {"form": LOGIN.format(home=_home(request)) if known else ""},
                said=said or ("" if known else "You may not see this. Log in to the application first."),
            )
            response = Response(page, HTTPStatus.UNAUTHORIZED, mimetype="text/html")
        else:
            response = _json(HTTPStatus.UNAUTHORIZED, {"said": said or "The token is missing or wrong."})
        response.headers["WWW-Authenticate"] = 'Bearer realm="dashboard"'
        return response

    # What is done

    def _post(self, request: Request, path: str, caller: Caller) -> Response:
        if not self._access.is_own_form(caller, request.environ, request.form.get("form", "")):
            text = "The form is not of this page, or is too old. Load the page again."
            return self._said(request, caller, Said(HTTPStatus.FORBIDDEN, text), "")
        if path == "/logout":
            response = _redirect(_home(request))
            response.headers.add("Set-Cookie", cookie(request.environ, ""))
            return response
        key, cut = request.form.get("function", ""), request.args.get("cut") == "yes"
        said = self._acts(path, key, cut, bool(request.environ.get("wsgi.multiprocess")))
        return self._said(request, caller, said, key)

    def _said(self, request: Request, caller: Caller, said: Said, key: str) -> Response:
        """Return what became of a form: to a browser by the page it comes from, unless that is an error."""
        if not _wants_page(request):
            return _json(said.status, {"said": said.text, "may_cut": said.may_cut})
        root = request.environ.get("SCRIPT_NAME", "")
        if said.status >= HTTPStatus.BAD_REQUEST and said.status is not HTTPStatus.CONFLICT:
            page = self._pages.problem(root, said.status, said.status.phrase, said.text)
            return Response(page, said.status, mimetype="text/html")
        cut = key if said.may_cut else ""
        mark = self._access.sign("said", f"{caller.session} {cut} {said.text}")
        back = Wish.of(
            {name: values[0] for name, values in parse_qs(request.form.get("back", "")[1:]).items()}
        )
        told = urlencode({"said": said.text, "cut": cut, "mark": mark})
        query = back.query()
        return _redirect(f"{_home(request)}{query}{'&' if query else '?'}{told}")


LOGIN = """<form method="post" action="{home}login">
<input name="username" value="operator" autocomplete="username" hidden>
<p><label for="token">Token</label><br>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus></p>
<p><button class="button">Log in</button></p>
</form>"""

LEAVE = '<button class="small" form="act" formaction="{home}logout">Log out</button>'


def _home(request: Request) -> str:
    """Return the dashboard's URL on this host, escaped and with a slash at its end."""
    # Two slashes in front would name another host.
    root = quote(request.environ.get("SCRIPT_NAME", ""), encoding="latin-1", errors="replace")
    return f"/{root.strip('/')}/" if root.strip("/") else "/"


def _wants_page(request: Request) -> bool:
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def _text(status: HTTPStatus, text: str) -> Response:
    return Response(f"{text}\n", status, mimetype="text/plain")


def _json(status: HTTPStatus, value: object) -> Response:
    return Response(json.dumps(value) + "\n", status, mimetype="application/json")


def _redirect(url: str) -> Response:
    return Response(status=HTTPStatus.SEE_OTHER, headers={"Location": url})
