"""What the dashboard answers, to a browser without JavaScript and to programs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from html import unescape
from http import HTTPStatus
from typing import Any

import pytest
from webtest import TestApp
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from scalezero_wsgi import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    ProviderError,
    ScaleZeroMiddleware,
    SettingError,
)
from scalezero_wsgi.activation.by_hand import Stopped
from scalezero_wsgi.activation.idling.drain import Outcome
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.integrations.dashboard import Dashboard, acts
from tests.support.fakes import HELLO
from tests.support.idlers import end_idlers
from tests.support.waiting import PATIENCE, until
from tests.support.wsgi import App, Visit, ask, in_flight
from tests.unit.activation.idling.test_idler import Engine
from tests.unit.activation.test_by_hand import NO_IDLER, Held, hurry

TOKEN = "a token of the tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    hurry(monkeypatch)
    yield
    end_idlers()


class ListingEngine(Engine):
    def list_functions(self) -> list[Function]:
        return [HELLO]


class Site:
    def __init__(
        self, app: Any = None, token: str | None = TOKEN, authorise: Any = None, **settings: Any
    ) -> None:
        self.engine = ListingEngine()
        defaults: dict[str, Any] = {
            "idle_after": 3600,
            "idle_default": "all",
            "coordination": MemoryCoordination(),
        }
        self.door = ScaleZeroMiddleware(app or App(), self.engine, **(defaults | settings))
        board = Dashboard(self.door, token=token, authorise=authorise)
        self.client = TestApp(DispatcherMiddleware(App("404 NOT FOUND"), {"/board": board}))

    def get(self, path: str = "/", status: int = 200, **headers: str) -> Any:
        return self.client.get(f"/board{path}", headers=PAGE | headers, status=status)

    def log_in(self) -> Any:
        answer = self.client.post("/board/login", {"token": TOKEN}, headers=PAGE)
        assert answer.status_int == 303
        return self.get()

    def post(self, path: str, page: Any, function: str = "hello", status: int = 303) -> Any:
        """Press a button of a page."""
        fields = {name: unescape(value) for name, value in hidden(page).items()}
        fields["function"] = function
        answer = self.client.post(f"/board{path}", fields, headers=PAGE, status=status)
        return answer.follow(headers=PAGE) if status == 303 else answer

    def act(self, path: str, function: str, status: int) -> str:
        """Do what a program does."""
        answer = self.client.post(f"/board{path}", {"function": function}, headers=BEARER, status=status)
        return str(answer.json["said"])


def hidden(page: Any) -> dict[str, str]:
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text))


def said(page: Any) -> str:
    found = re.search(r'<p id="said" role="status">(.*?)</p>', page.text)
    assert found
    return unescape(found[1])


def is_up(site: Site) -> bool:
    return bool(site.engine.get_replicas(*HELLO).replicas)


def test_it_is_of_a_middleware() -> None:
    with pytest.raises(SettingError, match="middleware must be a ScaleZeroMiddleware, not 'docker://'"):
        Dashboard("docker://", token=TOKEN)  # type: ignore[arg-type]


def test_without_the_token_nothing_is_shown_and_nothing_done() -> None:
    site = Site()
    for path in ("/", "", "/functions"):
        answer = site.get(path, status=401)
        assert "hello" not in answer.text
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="dashboard"'
        assert site.client.get(f"/board{path}", status=401).content_type == "application/json"
    for path in ("/wake", "/stop", "/keep-up", "/logout"):
        site.client.post(f"/board{path}", {"function": "hello"}, status=401)
    assert site.engine.sets == []


def test_one_logs_in_and_out() -> None:
    site = Site()
    answer = site.client.post("/board/login", {"token": TOKEN + "x"}, headers=PAGE, status=401)
    assert said(answer) == "That is not the token."
    assert "Set-Cookie" not in answer.headers
    page = site.log_in()
    assert "hello" in page.text
    site.client.post("/board/logout", hidden(page), headers=PAGE)
    site.get(status=401)


def test_a_program_needs_the_token_alone() -> None:
    site = Site()
    told = site.client.get("/board/functions?q=hel&page=1", headers=BEARER).json
    assert [each["function"] for each in told["functions"]] == ["hello"]
    assert site.act("/wake", "hello", 202) == "hello is being started."
    until(lambda: is_up(site))
    assert site.act("/stop", "hello", 200) == "hello was stopped. No request was in flight."


def test_what_changes_alone_as_html() -> None:
    site = Site()
    answer = site.client.get("/board/functions", headers=BEARER | {"Accept": "text/html"})
    assert answer.text.startswith("<nav")
    assert 'name="form"' not in answer.text
    known = BEARER | {"Accept": "text/html", "If-None-Match": answer.headers["ETag"]}
    assert site.client.get("/board/functions", headers=known, status=304).body == b""
    site.act("/wake", "hello", 202)
    until(lambda: site.client.get("/board/functions", headers=known, status="*").status_int == 200)


def test_the_buttons_by_forms_alone() -> None:
    site = Site()
    page = site.post("/wake", site.log_in())
    assert said(page) == "hello is being started."
    until(lambda: is_up(site))
    page = site.post("/keep-up", page)
    assert said(page) == "hello is kept up for an hour."
    assert "kept 60 min" in site.get().text
    page = site.post("/stop", page)
    assert said(page) == "hello was stopped. No request was in flight."
    assert not is_up(site)


def test_one_comes_back_to_where_one_was() -> None:
    site = Site()
    site.log_in()
    page = site.post("/wake", site.get("/?q=he&state=at+zero"))
    assert "q=he&state=at+zero&said=" in page.request.url


def test_what_was_said_to_another_is_not_said() -> None:
    site = Site()
    page = site.post("/wake", site.log_in())
    query = page.request.query_string
    assert said(page)
    assert said(site.get(f"/?{query.replace('started', 'eaten')}")) == ""
    site.client.reset()
    site.log_in()
    assert said(site.get(f"/?{query}")) == ""


def test_a_forged_form_is_refused() -> None:
    site = Site()
    other = hidden(Site().log_in())["form"]
    page = site.log_in()
    mine = hidden(page)["form"]
    for form in (None, "", other, mine[:-1], "Ü"):
        fields = {"function": "hello"} | ({} if form is None else {"form": form})
        for path in ("/wake", "/stop", "/keep-up", "/logout"):
            answer = site.client.post(f"/board{path}", fields, headers=PAGE, status=403)
            assert "Load the page again" in answer.text
    headers = PAGE | {"Sec-Fetch-Site": "cross-site"}
    site.client.post("/board/wake", {"function": "hello", "form": mine}, headers=headers, status=403)
    assert site.engine.sets == []


def test_the_application_may_say_who_may() -> None:
    site = Site(token=None, authorise=lambda environ: environ.get("REMOTE_USER") == "root")
    answer = site.get(status=401)
    assert "<form" not in answer.text
    site.client.extra_environ = {"REMOTE_USER": "root"}
    page = site.get()
    assert "SameSite=Strict" in page.headers["Set-Cookie"]
    assert "Log out" not in page.text
    assert said(site.post("/wake", page)) == "hello is being started."
    site.client.post("/board/login", {"token": ""}, headers=PAGE, status=401)


@pytest.mark.parametrize("path", ["/wake", "/stop", "/keep-up"])
def test_names_that_are_none_and_functions_that_are_not_there(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(deny=["secret"])
    for name in ("", "..", "Ü", "<b>", "a" * 64, "../hello"):
        site.act(path, name, 400)

    def unknown(name: str, namespace: str) -> Any:
        raise FunctionNotFound(name, namespace)

    monkeypatch.setattr(site.engine, "get_replicas", unknown)
    assert site.act(path, "other", 404) == "There is no function other."
    assert site.act(path, "secret", 404) == "There is no function secret."
    page = site.log_in()
    assert "&lt;b&gt;" in site.post(path, page, "<b>", status=400).text
    assert site.engine.sets == []


def test_one_that_nobody_has_seen_yet_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    monkeypatch.setattr(site.engine, "list_functions", list)
    assert site.act("/wake", "hello", 202) == "hello is being started."


def test_a_provider_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, namespace: str) -> Any:
        raise ProviderError("secret")

    site = Site()
    monkeypatch.setattr(site.engine, "get_replicas", fails)
    assert site.act("/wake", "other", 503) == "That was not done: the provider does not answer."


def test_a_provider_that_hangs_hangs_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalezero_wsgi.integrations.dashboard.survey.PATIENCE", 0.05)
    monkeypatch.setattr(acts, "PROVIDER_PATIENCE", 0.05)
    goes_on = threading.Event()
    site = Site()

    def hangs(*_: object) -> Any:
        assert goes_on.wait(PATIENCE)
        return []

    monkeypatch.setattr(site.engine, "list_functions", hangs)
    monkeypatch.setattr(site.engine, "get_replicas", hangs)
    page = site.log_in()
    assert "There is no function yet." in page.text
    site.act("/wake", "hello", 503)
    goes_on.set()


@pytest.mark.parametrize("settings", [{}, NO_IDLER])
def test_one_in_use_is_stopped_only_if_that_is_said(settings: Any) -> None:
    app = Held()
    site = Site(app, **settings)
    visit = Visit(site.door)
    until(lambda: in_flight(site.door) == 1)
    page = site.post("/stop", site.log_in())
    assert said(page) == "hello was not stopped: 1 request is in flight or waiting."
    assert re.search(r'id="cut"[^>]* value="hello" formaction="/board/stop\?cut=yes">', page.text)
    assert is_up(site)
    page = site.post("/stop?cut=yes", page)
    assert said(page) == "hello was stopped; 1 request in flight or waiting then may have been cut."
    assert re.search(r'id="cut"[^>]* hidden>', page.text)
    assert not is_up(site)
    app.go_on.set()
    assert visit.status == "200 OK"


@pytest.mark.parametrize(
    ("stopped", "status", "text"),
    [
        (
            Stopped(Outcome.STOPPED, 1200),
            200,
            "; 1,200 requests in flight or waiting then may have been cut.",
        ),
        (Stopped(Outcome.CANCELLED, 2), 409, " was not stopped: 2 requests are in flight or waiting."),
        (Stopped(Outcome.CANCELLED, 0), 409, " was not stopped: a request came."),
        (
            Stopped(Outcome.VETOED, 0),
            409,
            " was not stopped: it serves no request, and says that it is busy.",
        ),
        (Stopped(Outcome.AT_ZERO, 0), 200, " is at zero already."),
        (Stopped(Outcome.UNANSWERED, 0, "no answer of a"), 409, " was not stopped: no answer of a."),
        (Stopped(Outcome.CHANGED, 0), 409, " was not stopped: somebody else has changed it."),
    ],
)
def test_what_is_said_of_a_stop(stopped: Stopped, status: int, text: str) -> None:
    told = acts._what_became(HELLO, stopped)
    assert told.status == HTTPStatus(status)
    assert told.text.endswith(text)
    assert told.may_cut == (stopped.outcome in (Outcome.CANCELLED, Outcome.VETOED))


def test_a_stop_that_takes_long_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "STOP_PATIENCE", 0.05)
    site = Site()
    ask(site.door)
    site.engine.may_stop.clear()
    assert site.act("/stop", "hello", 202) == "hello is being stopped."
    site.engine.may_stop.set()
    until(lambda: not is_up(site))


def test_one_that_rests_after_a_failed_start_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def rests(*_: object, **__: object) -> Any:
        raise FunctionFailed(HELLO, "it is broken", 7.0)

    site = Site()
    monkeypatch.setattr(site.door.scaler, "start", rests)
    assert site.act("/wake", "hello", 409) == "hello rests for 7 s after a failed start: it is broken"


def test_where_nothing_goes_to_zero_nothing_is_kept_up() -> None:
    site = Site(**NO_IDLER)
    assert "Keep up" not in site.log_in().text
    assert "nothing brings idle functions to zero" in site.act("/keep-up", "hello", 503)


def test_other_methods_and_paths() -> None:
    site = Site()
    assert site.client.get("/board/wake", headers=BEARER, status=405).headers["Allow"] == "POST"
    assert site.client.post("/board/", headers=BEARER, status=405).headers["Allow"] == "GET, HEAD"
    for path in ("/other", "/functions/", "/page.py", "/../page.css"):
        site.get(path, status=404)
    assert site.client.head("/board/", headers=BEARER).body == b""


def test_a_form_that_is_too_long_is_refused() -> None:
    site = Site()
    fields = {"function": "x" * 20_000}
    site.client.post("/board/wake", fields, headers=BEARER, status=413)
    site.client.post("/board/login", {"token": "x" * 20_000}, status=413)


def test_its_files_are_kept_and_all_else_is_not() -> None:
    site = Site()
    page = site.get(status=401)
    [first, second] = re.findall(r'<link rel="stylesheet" href="([^"]+)">', page.text)
    for url, start in ((first, ":root"), (second, ":root")):
        answer = site.client.get(url)
        assert answer.text.startswith(start)
        assert "immutable" in answer.headers["Cache-Control"]
    page = site.log_in()
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    policy = page.headers["Content-Security-Policy"]
    for part in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert not re.search(r"<[^>]* (style|on\w+)=|<style|<script>", page.text)
