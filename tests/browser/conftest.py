"""Real Chromium, in front of a real server.

``SCALEZERO_TEST_CHROMIUM`` is the path of the executable; ``SCALEZERO_TEST_SCREENSHOTS`` may name a directory
that screenshots go to.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scalezero_wsgi.providers import ProcessProvider
from tests.browser.functions import FUNCTIONS
from tests.engines.engine import engine
from tests.servers.harness import Server, gunicorn
from tests.support.waiting import until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = engine("SCALEZERO_TEST_CHROMIUM", "the executable of Chromium")
    missing = [name for name in ("playwright", "axe_playwright_python") if not importlib.util.find_spec(name)]
    if missing:
        pytest.fail(f"SCALEZERO_TEST_CHROMIUM is set, and {' and '.join(missing)} is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("browser")
    state = directory / "state"
    state.mkdir(mode=0o700)
    try:
        app = "tests.browser.site:application"
        env = {"STATE_DIR": str(state)}
        with gunicorn(app, directory / "log", "--threads", "16", env=env) as server:
            until(lambda: server.get("/ready").status_code == 200)
            yield server
    finally:
        ProcessProvider({}, state_dir=state).stop_all(5)


@pytest.fixture
def zero(site: Server) -> Callable[[str], None]:
    """Scales a function to zero, behind the middleware's back."""
    state = site.log_path.parent / "state"
    return lambda name: ProcessProvider(FUNCTIONS, state_dir=state).set_replicas(name, "", 0)


@pytest.fixture
def visit(browser: Browser, site: Server) -> Iterator[Callable[..., Page]]:
    """Opens an empty tab whose complaints fail the test: an error, or what a policy refused."""
    complaints: list[str] = []
    contexts = []

    def visit(**options: Any) -> Page:
        context = browser.new_context(base_url=site.url, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        return page

    yield visit
    for context in contexts:
        context.close()
    # Chromium itself notes each answer of 400 or more, and requests that the tests cut off.
    notes = ("Failed to load resource: the server responded", "Failed to load resource: net::ERR_FAILED")
    assert [complaint for complaint in complaints if not complaint.startswith(notes)] == []


@pytest.fixture
def shot(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Keeps a screenshot for those who want to look."""
    directory = os.environ.get("SCALEZERO_TEST_SCREENSHOTS")

    def shot(page: Page, name: str) -> None:
        if directory:
            page.screenshot(path=Path(directory) / f"{name}.png")

    return shot
