"""The dashboard, as real Chromium shows it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import requests

from scalezero_wsgi.providers import ProcessProvider
from tests.browser.dashboard_functions import FAILURE, FUNCTIONS, MARKUP, TOKEN
from tests.browser.test_page import PHONE, SOON, Shot, findings, scrolls_sideways
from tests.servers.harness import Server, gunicorn
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.engine

Enter = Callable[..., "Page"]

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dashboard")
    (directory / "state").mkdir(mode=0o700)
    return directory


@pytest.fixture(scope="module")
def provider(state: Path) -> ProcessProvider:
    return ProcessProvider(FUNCTIONS, state_dir=state / "state")


@pytest.fixture(scope="module")
def servers(browser: Browser, state: Path, provider: ProcessProvider) -> Iterator[tuple[Server, Server]]:
    """Two servers of one fleet: one shows the dashboard, and requests come to the other."""
    env = {"STATE_DIR": str(state / "state"), "STORE": f"sqlite:///{state / 'store.db'}"}
    app = "tests.browser.dashboard_site:application"
    try:
        with contextlib.ExitStack() as stack:
            shown, other = (
                stack.enter_context(gunicorn(app, state / name, "--threads", "16", env=env))
                for name in ("shown", "other")
            )
            for server in (shown, other):
                until(lambda server=server: server.get("/ready").status_code == 200)  # type: ignore[misc]
            yield shown, other
    finally:
        provider.stop_all(5)


@pytest.fixture(scope="module")
def site(servers: tuple[Server, Server]) -> Server:
    """For ``visit``."""
    return servers[0]


@pytest.fixture(scope="module")
def elsewhere(servers: tuple[Server, Server]) -> Server:
    return servers[1]


@pytest.fixture
def enter(visit: Callable[..., Page]) -> Enter:
    """Logs in to a dashboard."""

    def enter(mount: str, query: str = "", **options: object) -> Page:
        page = visit(**options)
        answer = page.goto(f"{mount}/")
        assert answer is not None
        assert answer.status == 401
        page.fill("#token", TOKEN)
        page.click("button:text-is('Log in')")
        page.wait_for_selector("#live")
        if query:
            page.goto(f"{mount}/{query}")
        return page

    return enter


def state_of(page: Page, name: str) -> str:
    return page.locator(f"tr[data-key='{name}'] .state").text_content() or ""


def until_state(page: Page, name: str, wanted: str) -> None:
    page.wait_for_selector(f"tr[data-key='{name}'] .state:text-is('{wanted}')", timeout=SOON)


def press(page: Page, name: str, text: str) -> None:
    page.get_by_role("button", name=f"{text} {name}", exact=True).click()


def said(page: Page) -> str:
    until(lambda: (page.locator("#said").text_content() or "") not in ("", "…"), pause=0.05)
    return page.locator("#said").text_content() or ""


def test_a_function_that_a_request_wakes_elsewhere_is_shown_within_a_second(
    enter: Enter, elsewhere: Server
) -> None:
    page = enter("/real")
    assert state_of(page, "elsewhere") == "at zero"
    # By the page's own clock: when the state of the row became another one.
    page.evaluate(
        """() => {
          window.changes = [];
          const seen = () => document.querySelector("tr[data-key=elsewhere] .state").textContent;
          let last = seen();
          new MutationObserver(() => {
            if (seen() === last) return;
            last = seen();
            window.changes.push([last, Date.now() / 1000]);
          }).observe(document.getElementById("live"), {subtree: true, childList: true, characterData: true});
        }"""
    )
    asked = time.time()
    assert elsewhere.get("/function/elsewhere/").status_code == 200
    answered = time.time()
    until_state(page, "elsewhere", "ready")
    changes = dict(page.evaluate("window.changes"))
    print({state: round(at - asked, 2) for state, at in changes.items()}, round(answered - asked, 2))
    assert changes["ready"] - answered < 1.0
    last_use = page.locator("tr[data-key=elsewhere] [data-name='Last use']")
    last_use.filter(has_text=re.compile(r"^\d s ago$")).wait_for(timeout=SOON)  # reported by the next turn
    assert page.locator("tr[data-key=elsewhere] [data-name='Last starts'] svg").count() == 1


def test_the_buttons_wake_keep_up_and_stop(
    enter: Enter, provider: ProcessProvider, elsewhere: Server
) -> None:
    page = enter("/real", "?q=by-button")
    press(page, "by-button", "Wake")
    assert said(page) == "by-button is being started."
    until_state(page, "by-button", "ready")
    assert provider.get_replicas("by-button", "").replicas == 1
    press(page, "by-button", "Keep up 1 h")
    page.wait_for_selector("#said:text-is('by-button is kept up for an hour.')", timeout=SOON)
    kept = page.locator("tr[data-key=by-button] [data-name='Idle in']")
    until(lambda: kept.text_content() == "kept 60 min", pause=0.05)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    told = elsewhere.get("/real/functions?q=by-button", headers=headers).json()["functions"][0]
    assert 3500 < told["kept_up_for"] <= 3600
    press(page, "by-button", "Stop")
    page.wait_for_selector("#said:text-is('by-button was stopped. No request was in flight.')", timeout=SOON)
    until_state(page, "by-button", "at zero")
    assert provider.get_replicas("by-button", "").replicas == 0
    assert kept.text_content() == ""


def test_one_in_use_elsewhere_is_stopped_only_if_that_is_said(
    enter: Enter, provider: ProcessProvider, elsewhere: Server
) -> None:
    page = enter("/real", "?q=stream")
    with requests.get(f"{elsewhere.url}/function/stream/long", stream=True, timeout=30) as answer:
        assert answer.status_code == 200
        page.wait_for_selector("tr[data-key=stream] [data-name='In flight']:text-is('1')", timeout=SOON)
        press(page, "stream", "Stop")
        assert said(page) == "stream was not stopped: 1 request is in flight or waiting."
        assert provider.get_replicas("stream", "").replicas == 1
        page.get_by_role("button", name="Stop it all the same").click()
        text = "stream was stopped; 1 request in flight or waiting then may have been cut."
        page.wait_for_selector(f"#said:text-is('{text}')", timeout=SOON)
    until_state(page, "stream", "at zero")
    assert not page.locator("#cut").is_visible()
    assert elsewhere.get("/function/stream/").status_code == 200


def test_without_javascript_all_of_it_works(
    enter: Enter, provider: ProcessProvider, elsewhere: Server
) -> None:
    page = enter("/real", java_script_enabled=False)
    page.fill("#q", "by-FORM")
    page.click("button:text-is('Search')")
    assert page.locator("tbody tr").count() == 1
    press(page, "by-form", "Wake")
    assert said(page) == "by-form is being started."
    assert "q=by-FORM" in page.url
    until(lambda: page.reload() and state_of(page, "by-form") == "ready", pause=0.1)
    with requests.get(f"{elsewhere.url}/function/stream/long", stream=True, timeout=30):
        page.goto("/real/?q=stream")
        until(lambda: page.reload() and page.locator("[data-name='In flight']").text_content(), pause=0.1)
        press(page, "stream", "Stop")
        assert said(page) == "stream was not stopped: 1 request is in flight or waiting."
        page.get_by_role("button", name="Stop it all the same").click()
        assert said(page).startswith("stream was stopped; 1 request")
    page.click("text=Log out")
    assert page.locator("h1").text_content() == "Log in"
    page.goto("/real/")
    assert page.locator("h1").text_content() == "Log in"


def test_a_wrong_token_and_a_forged_form(enter: Enter, site: Server, provider: ProcessProvider) -> None:
    assert site.get("/real/functions").status_code == 401
    assert requests.post(f"{site.url}/real/stop", data={"function": "plain"}, timeout=30).status_code == 401
    page = enter("/real")
    cookie = page.context.cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/real/")
    forged = page.evaluate(
        f"""async () => (await fetch("/real/wake", {{method: "POST",
            headers: {{"Content-Type": "{FORM}"}}, body: "function=plain&form=forged"}})).status"""
    )
    assert forged == 403
    assert provider.get_replicas("plain", "").replicas == 0


def test_a_site_that_poses_as_another_can_send_nothing(
    enter: Enter, elsewhere: Server, provider: ProcessProvider
) -> None:
    """A page of another site, with the form's own value: the browser sends no cookie."""
    page = enter("/real")
    form = page.locator("#act [name=form]").get_attribute("value")
    target = page.url
    page.goto(f"{elsewhere.url.replace('127.0.0.1', 'localhost')}/ready")
    page.set_content(
        f'<form method="post" action="{target}wake"><input name="function" value="plain">'
        f'<input name="form" value="{form}"><button>Win a prize</button></form>'
    )
    with page.expect_response(lambda answer: answer.url.endswith("/wake")) as answered:
        page.click("button")
    assert answered.value.status == 401
    assert provider.get_replicas("plain", "").replicas == 0


def test_those_whom_the_application_knows_need_no_token(visit: Callable[..., Page], site: Server) -> None:
    page = visit(extra_http_headers={"X-Operator": "yes"})
    page.goto("/own/oper%20ators/?q=plain")
    press(page, "plain", "Wake")
    assert said(page) == "plain is being started."
    until_state(page, "plain", "ready")
    assert site.get("/own/oper%20ators/").status_code == 401


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("full", {}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", PHONE),
        ("phone-dark", {**PHONE, "color_scheme": "dark"}),
        ("tablet", {"viewport": {"width": 800, "height": 1000}}),
        ("narrow", {"viewport": {"width": 1040, "height": 800}}),
    ],
)
def test_every_state_on_every_screen(name: str, options: dict[str, object], enter: Enter, shot: Shot) -> None:
    page = enter("/full", **options)
    assert page.locator("tbody tr").count() == 9
    assert state_of(page, "image-resize") == "starting"
    assert page.locator(".states").text_content() == "all 9ready 4starting 1paused 1failed 1at zero 2"
    assert page.get_by_text(FAILURE).count() == 1
    assert page.locator("tbody th").get_by_text(MARKUP, exact=True).count() == 1
    assert page.locator("img").count() == 0
    requests_of = page.get_by_role("img", name="Requests: 48,210 warm, 12 cold, 3 timeout")
    assert requests_of.count() == (0 if name == "narrow" else 1)
    shot(page, f"dashboard-{name}")
    assert not scrolls_sideways(page)
    assert findings(page) == []


def test_there_is_none(enter: Enter, shot: Shot) -> None:
    page = enter("/empty")
    assert "There is no function yet." in (page.locator("#live").text_content() or "")
    shot(page, "dashboard-empty")
    assert findings(page) == []


def test_very_many_by_page_state_and_name(enter: Enter, shot: Shot) -> None:
    page = enter("/many")
    page.wait_for_selector("text=Page 1 of 100", timeout=SOON)
    shot(page, "dashboard-many")
    page.click("text=Next")
    page.wait_for_selector("th:text-is('function-0050')", timeout=SOON)
    page.click(".states >> text=ready")
    page.wait_for_selector("text=Page 1 of 2", timeout=SOON)
    page.fill("#q", "function-48")
    page.wait_for_selector("th:text-is('function-4850')", timeout=SOON)
    assert page.locator("tbody tr").count() == 1
    assert page.url.endswith("?state=ready&q=function-48")
    page.fill("#q", "nothing")
    page.wait_for_selector("text=No function is like that.", timeout=SOON)


def test_a_login_page_has_nothing_to_find_fault_with(visit: Callable[..., Page], shot: Shot) -> None:
    page = visit()
    page.goto("/full/")
    shot(page, "dashboard-login")
    assert findings(page) == []
    page.fill("#token", "not the token")
    page.click("button:text-is('Log in')")
    page.wait_for_selector("text=That is not the token.", timeout=SOON)


def test_a_focus_outlives_what_changes(enter: Enter, elsewhere: Server) -> None:
    page = enter("/real")
    page.get_by_role("button", name="Keep up 1 h stream").focus()
    page.evaluate("window.focused = document.activeElement")
    assert elsewhere.get("/function/elsewhere/").status_code == 200
    until_state(page, "elsewhere", "ready")
    use = page.locator("tr[data-key=elsewhere] [data-name='Last use']")
    before = use.text_content()
    until(lambda: use.text_content() != before, pause=0.05)
    assert page.evaluate("document.activeElement === window.focused && window.focused.isConnected")
