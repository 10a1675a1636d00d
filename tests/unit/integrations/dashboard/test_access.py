"""Who may see the dashboard, and which forms are its own."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.test import create_environ

from scalezero_wsgi import SettingError
from scalezero_wsgi.integrations.dashboard.access import COOKIE, LASTS, Access, Caller, cookie
from tests.support.clock import Clock

TOKEN = "a token of the tests"


def environ(session: str = "", **headers: str) -> dict[str, Any]:
    told = create_environ("/", "http://host.example/")
    told.update({f"HTTP_{name.upper()}": text for name, text in headers.items()})
    if session:
        told["HTTP_COOKIE"] = f"{COOKIE}={session}"
    return told


def access(token: object = TOKEN, authorise: Any = None, clock: Any = None) -> Access:
    return Access(token, authorise, clock or Clock())


@pytest.mark.parametrize(
    ("token", "authorise", "text"),
    [
        (None, None, "needs a token"),
        ("", None, "token must be a string of 16 characters or more"),
        ("fifteen letters", None, "16 characters or more"),
        (b"bytes of a good length", None, "must be a string"),
        (None, "yes", "authorise must be a callable of .environ., not 'yes'"),
        (None, lambda: True, "authorise must be a callable"),
    ],
)
def test_what_opens_it_must_be_given_and_be_good(token: object, authorise: Any, text: str) -> None:
    with pytest.raises(SettingError, match=text) as caught:
        access(token, authorise)
    assert "letters" not in str(caught.value)


@pytest.mark.parametrize("text", [f"Bearer {TOKEN}", f"bearer  {TOKEN} "])
def test_a_program_sends_the_token(text: str) -> None:
    assert access().caller(environ(authorization=text)) == Caller("")


@pytest.mark.parametrize(
    "text", ["", TOKEN, f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer Ü\udcff"]
)
def test_nothing_else_will_do(text: str) -> None:
    assert access().caller(environ(authorization=text)) is None


def test_a_session_lasts_and_holds_in_every_worker() -> None:
    clock = Clock()
    session = access(clock=clock).begin()
    clock.advance(LASTS)
    assert access(clock=clock).caller(environ(session)) == Caller(session)
    assert access("another token of it", clock=clock).caller(environ(session)) is None
    clock.advance(1)
    assert access(clock=clock).caller(environ(session)) is None


def test_a_session_of_ones_own_making_is_none() -> None:
    begun, word, mark = access().begin().split(".")
    for forged in (
        f"{int(begun) + 1}.{word}.{mark}",
        f"{begun}.x.{mark}",
        f"{begun}.{word}.",
        "x",
        ".",
        "..",
        "Ü",
    ):
        assert access().caller(environ(forged)) is None


def test_a_session_from_the_future_is_none() -> None:
    clock = Clock()
    clock.advance(10)
    session = access(clock=clock).begin()
    assert access(clock=Clock()).caller(environ(session)) is None


def test_the_application_may_say_who_may() -> None:
    opened = access(None, lambda environ: "HTTP_X_OPERATOR" in environ)
    assert opened.caller(environ()) is None
    caller = opened.caller(environ(x_operator="1"))
    assert caller is not None
    assert caller.is_new
    assert opened.caller(environ(caller.session, x_operator="1")) == Caller(caller.session)
    assert opened.caller(environ(caller.session)) is None  # it is no proof of anything


def test_where_it_says_yes_no_token_is_needed_and_either_will_do() -> None:
    both = access(TOKEN, lambda environ: "HTTP_X_OPERATOR" in environ)
    assert both.caller(environ(authorization=f"Bearer {TOKEN}")) == Caller("")
    assert both.caller(environ(x_operator="1")) is not None
    assert both.caller(environ()) is None


def test_one_that_fails_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fails(environ: Any) -> bool:
        raise LookupError("no session")

    assert access(None, fails).caller(environ()) is None
    assert "authorise failed" in caplog.text


def test_a_form_belongs_to_its_session() -> None:
    opened = access()
    mine, other = Caller(opened.begin()), Caller(opened.begin())
    mark = opened.sign("form", mine.session)
    assert opened.is_own_form(mine, environ(), mark)
    assert not opened.is_own_form(other, environ(), mark)
    assert not opened.is_own_form(mine, environ(), "")
    assert not opened.is_own_form(mine, environ(), opened.sign("said", mine.session))
    assert not opened.is_own_form(mine._replace(is_new=True), environ(), mark)
    assert opened.is_own_form(Caller(""), environ(), "")


@pytest.mark.parametrize(
    ("headers", "is_own"),
    [
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "same-site"}, False),
        ({"sec_fetch_site": "cross-site", "origin": "http://host.example"}, False),
        ({"origin": "http://HOST.example"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
    ],
)
def test_a_form_of_another_site_is_forged(headers: dict[str, str], is_own: bool) -> None:
    opened = access(None, lambda environ: True)
    caller = Caller(opened.begin())
    assert opened.is_own_form(caller, environ(**headers), opened.sign("form", caller.session)) is is_own


def test_the_cookie_is_for_the_dashboard_alone() -> None:
    told = cookie({"SCRIPT_NAME": "/moun ted/\xc3\xbc", "wsgi.url_scheme": "https"}, "a.b.c")
    assert told.startswith(f"{COOKIE}=a.b.c;")
    for part in ("HttpOnly", "Secure", "SameSite=Strict", "Path=/moun%20ted/%C3%BC/", "Max-Age=43200"):
        assert part in told.split("; ")
    assert "Max-Age=0" in cookie({"wsgi.url_scheme": "http"}, "")
    assert "Secure" not in cookie({"wsgi.url_scheme": "http"}, "")
