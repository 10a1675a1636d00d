"""The pages for people, as real Chromium shows them."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.functions import DELAY, LONG_NAME
from tests.servers.harness import Server
from tests.support.waiting import until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.engine

Visit = Callable[..., "Page"]
Shot = Callable[["Page", str], None]
HELLO = "text=Hello from process"
PHONE = {"viewport": {"width": 360, "height": 640}, "device_scale_factor": 2, "is_mobile": True}
SOON = 15_000
"""Milliseconds within which what must come has come, on a busy machine too."""


def elapsed(page: Page) -> int:
    return int((page.locator("#elapsed").text_content() or "").split()[0])


def wait_for_growth(page: Page, seen: int) -> int:
    """Wait until the page shows more seconds than it did."""
    until(lambda: elapsed(page) > seen, pause=0.05)  # the policy forbids Playwright's own wait_for_function
    return elapsed(page)


def grown(page: Page) -> tuple[float, float]:
    """The progress bar's share, and the height of the plot's bar for the start under way."""
    bar, now = page.evaluate("() => [bar.value / bar.max, now.height.baseVal.value]")
    return bar, now


def shown_after(page: Page, site: Server, function: str) -> float:
    """Seconds from the moment the function was ready until its own page was there."""
    page.wait_for_selector(HELLO, timeout=SOON)
    answered = page.evaluate(
        "performance.timeOrigin + performance.getEntriesByType('navigation')[0].responseEnd"
    )
    return float(answered) / 1000 - float(site.get("/ready").json()[function])


def findings(page: Page) -> list[str]:
    """What axe-core finds."""
    axe = importlib.import_module("axe_playwright_python.sync_playwright").Axe()  # has no types
    results: dict[str, Any] = axe.run(page).response
    assert len(results["passes"]) > 5
    return [f"{found['id']}: {node['html']}" for found in results["violations"] for node in found["nodes"]]


def scrolls_sideways(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def test_a_person_sees_the_page_until_the_functions_own_is_there(
    visit: Visit, site: Server, shot: Shot
) -> None:
    page = visit()
    answer = page.goto("/function/slow/where?x=1#part")
    assert answer is not None
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["cache-control"] == "no-store"
    assert page.title() == page.locator("h1").text_content() == "Starting slow"
    assert page.locator("progress").count() == page.locator("svg").count() == 0
    first = elapsed(page)
    second = wait_for_growth(page, first)
    shot(page, "first-start")
    assert wait_for_growth(page, second) < DELAY + 1
    assert shown_after(page, site, "slow") < 1.0
    assert page.url == f"{site.url}/function/slow/where?x=1#part"


def test_without_javascript_the_page_loads_itself_until_the_functions_own_is_there(
    visit: Visit, site: Server, shot: Shot
) -> None:
    page = visit(java_script_enabled=False)
    answer = page.goto("/function/plain")
    assert answer is not None
    assert answer.status == 503
    seen = [elapsed(page)]
    shot(page, "no-javascript")
    while page.locator(HELLO).count() == 0:
        assert seen[-1] < 10 * DELAY
        page.wait_for_event("load", timeout=SOON)
        if page.locator("#elapsed").count():
            seen.append(elapsed(page))
    loaded = time.time()
    assert loaded - site.get("/ready").json()["plain"] < 3.0
    assert seen == sorted(set(seen))
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("url", "function"),
    [("{site}/moun%20ted/function/mounted/", "mounted"), ("http://by-host.localhost:{port}/a/b", "by-host")],
)
def test_it_works_below_a_mount_and_by_host_name(url: str, function: str, visit: Visit, site: Server) -> None:
    page = visit()
    page.goto(url.format(site=site.url, port=site.url.rpartition(":")[2]))
    assert page.locator("h1").text_content() == f"Starting {function}"
    assert page.evaluate("document.styleSheets.length") == 1
    wait_for_growth(page, elapsed(page))
    assert shown_after(page, site, function) < 1.0


def test_a_page_of_ones_own_needs_no_more_than_the_script(visit: Visit, site: Server) -> None:
    page = visit()
    page.goto("/own/function/own")
    assert (page.locator("body").text_content() or "").strip() == "Just a moment, own."
    assert shown_after(page, site, "own") < 1.0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_start_that_is_known_has_a_bar_and_a_plot(
    scheme: str, visit: Visit, site: Server, zero: Callable[[str], None], shot: Shot
) -> None:
    assert site.get("/function/known").status_code == 200
    zero("known")
    page = visit(color_scheme=scheme)
    page.goto("/function/known")
    shot(page, f"known-{scheme}")
    bar = page.get_by_role("progressbar", name="Start of known")
    usual = float(bar.get_attribute("max") or 0)
    assert 3 <= usual < 8
    assert re.search(r"usually about \d seconds?", page.locator(".time").text_content() or "")
    assert page.get_by_role("img", name=re.compile(r"^The last .*starts? took \d seconds?")).count() == 1
    assert findings(page) == []
    bar_before, now_before = grown(page)
    until(lambda: grown(page)[0] > bar_before, pause=0.05)
    bar_after, now_after = grown(page)
    assert bar_after < 1
    assert now_after > now_before
    page.wait_for_selector(HELLO, timeout=SOON)


# Of all elements, and of the pulse, which a page has only while no function's start was ever measured.
ANIMATIONS = """() => {
    const pulse = document.body.appendChild(document.createElement("div"));
    pulse.className = "pulse";
    const elements = [...document.querySelectorAll("*")];
    const names = elements.flatMap((element) =>
        [null, "::before", "::after"].map((part) => getComputedStyle(element, part).animationName));
    pulse.remove();
    return [...new Set(names)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_failure_is_shown_in_place_and_another_try_is_offered(
    scheme: str, visit: Visit, site: Server, shot: Shot
) -> None:
    function = f"broken-{scheme}"
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"/function/{function}")
    assert page.evaluate(ANIMATIONS) == ["none"]
    assert findings(page) == []
    again = page.get_by_role("link", name="Try again")
    again.wait_for(timeout=SOON)
    shot(page, f"failure-{scheme}")
    assert page.title() == page.locator("h1").text_content() == f"{function} did not start"
    assert f"The function {function} could not be started." in (
        page.get_by_role("status").text_content() or ""
    )
    assert not page.locator("#going").is_visible()
    assert findings(page) == []
    count = len(asked)
    page.wait_for_timeout(2500)
    assert len(asked) == count, "a page that failed leaves the function alone"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Try again"
    with page.expect_navigation():
        page.keyboard.press("Enter")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("path", "status", "another_try"),
    [("/function/nowhere", 404, False), ("/function/-", 400, False), ("/function/resting", 503, True)],
)
def test_failures_have_a_page_in_the_same_dress(
    path: str, status: int, another_try: bool, scheme: str, visit: Visit, site: Server, shot: Shot
) -> None:
    if status == 503:  # failed starts, and a rest long enough to look at the page
        until(lambda: site.get(path).json()["retry_after"] > 2, timeout=60)
    page = visit(color_scheme=scheme)
    answer = page.goto(path)
    assert answer is not None
    assert answer.status == status
    shot(page, f"problem-{status}-{scheme}")
    assert str(status) in (page.locator("h1").text_content() or "")
    assert page.get_by_role("link", name="Try again").count() == another_try
    assert ("retry-after" in answer.headers) == another_try
    assert page.evaluate("document.styleSheets.length") == 1
    assert findings(page) == []


def test_without_javascript_a_failure_ends_the_loads(visit: Visit, shot: Shot) -> None:
    page = visit(java_script_enabled=False)
    page.goto("/function/broken-plain")
    page.get_by_role("link", name="Try again").wait_for(timeout=SOON)
    shot(page, "failure-no-javascript")
    assert "could not be started" in (page.locator("main").text_content() or "")
    loads: list[str] = []
    page.on("request", lambda request: loads.append(request.url))
    page.wait_for_timeout(2500)
    assert loads == []


def test_on_a_phone_nothing_scrolls_sideways(visit: Visit, site: Server, shot: Shot) -> None:
    page = visit(**PHONE)
    page.goto(f"/function/{LONG_NAME}")
    shot(page, "phone")
    assert page.evaluate("innerWidth") == PHONE["viewport"]["width"]  # type: ignore[index]
    assert not scrolls_sideways(page)
    assert findings(page) == []
    page.goto("/function/" + "-" * 200)
    assert not scrolls_sideways(page)


def test_a_screen_reader_is_not_told_each_second(visit: Visit) -> None:
    page = visit()
    page.goto("/function/calm")
    page.evaluate(
        """() => {
            window.told = [];
            const live = document.querySelectorAll("[role=status], [role=alert], [aria-live]");
            const tell = (changes) => changes.forEach((change) => told.push(change.target.textContent));
            live.forEach((one) =>
                new MutationObserver(tell)
                    .observe(one, { childList: true, subtree: true, characterData: true }));
        }"""
    )
    wait_for_growth(page, wait_for_growth(page, elapsed(page)))
    assert page.get_by_role("status").count() == 1
    assert page.evaluate("told") == []
    assert page.evaluate("document.activeElement === document.body")


def test_a_client_of_an_api_gets_no_page(visit: Visit, site: Server) -> None:
    page = visit()
    page.goto("/ready")
    asked = """async (headers) => {
        const answer = await fetch("/function/api", { headers });
        return [answer.status, answer.headers.get("Content-Type"), await answer.text()];
    }"""
    status, kind, _ = page.evaluate(asked, {"Accept": "application/json", "Prefer": "wait=1"})
    assert (status, kind) == (504, "application/problem+json")
    status, kind, text = page.evaluate(asked, {"Accept": "text/html"})
    assert (status, kind) == (200, "text/plain; charset=utf-8"), "a script's request is held to the end"
    assert text.startswith("Hello")


def test_while_the_server_is_cut_off_the_page_says_so_and_asks_less_often(visit: Visit) -> None:
    page = visit()
    page.goto("/function/cut-off")
    asked: list[float] = []
    page.on("request", lambda request: asked.append(time.monotonic()))
    page.route("**/status/*", lambda route: route.abort())
    page.wait_for_selector("text=The server does not answer. Trying again.", timeout=SOON)
    page.wait_for_timeout(3000)
    assert len(asked) <= 6
    page.unroute("**/status/*")
    page.wait_for_selector(HELLO, timeout=SOON)


def test_a_status_that_something_in_front_of_us_refuses_is_replaced_by_loads(visit: Visit) -> None:
    page = visit()
    page.route("**/status/*", lambda route: route.fulfill(status=403, body="no"))
    page.goto("/function/refused")
    page.wait_for_selector(HELLO, timeout=SOON)
