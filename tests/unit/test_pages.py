from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.test import Client, TestResponse

import scalezero_wsgi.pages as pages_module
from scalezero_wsgi import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    NotAvailable,
    ProviderError,
    ReplicaStatus,
    ScaleZeroError,
    ScaleZeroMiddleware,
    SettingError,
    TooManyWaiting,
)
from scalezero_wsgi.activation.state import median
from scalezero_wsgi.model import StillStarting
from scalezero_wsgi.pages import Pages, Progress
from scalezero_wsgi.providers import CallbackProvider
from scalezero_wsgi.web.responses import Answers
from tests.support.clock import MovingClock
from tests.support.waiting import until

HELLO = Function("hello", "dev")
BASE = "/function/.scalezero/"
PAGES = Pages(BASE)
STRICT = [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self'",
]
NAVIGATION = {"Accept": "text/html,*/*;q=0.8", "Sec-Fetch-Mode": "navigate"}
WAKING = StillStarting(HELLO, 2.0, 4.2, "page")
STARTS = (8.2, 7.9, 12.0)
MARKUP = "<script>alert('x')</script>\"&amp;</p><img src=x onerror=alert(1)>$status ${x}"


def progress(elapsed: float, starts: tuple[float, ...], left: float) -> Progress:
    return Progress(elapsed, starts, left, median(starts) or 0.0)


class Page(HTMLParser):
    """A page's elements, and the text in those of a kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag] = self.texts.get(tag, "") + data

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def find(self, tag: str, **given: str) -> dict[str, str | None]:
        (found,) = [
            attributes
            for name, attributes in self.elements
            if name == tag and given.items() <= attributes.items()
        ]
        return found

    @property
    def urls(self) -> list[str]:
        keys = ("href", "src", "data-status")
        return [value for _, attributes in self.elements for key in keys if (value := attributes.get(key))]


def waking(
    function: Function = HELLO, root: str = "", elapsed: float = 3.4, starts: tuple[float, ...] = STARTS
) -> Page:
    return Page(PAGES.waking(root, function, progress(elapsed, starts, 4.2)))


def problem(detail: str, again: bool = True) -> Page:
    return Page(PAGES.problem("", 503, "Service Unavailable", detail, again=again))


def assert_strict(page: Page) -> None:
    """Nothing that the policy would refuse, and nothing from elsewhere."""
    assert "style" not in page.tags
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        assert tag != "script" or attributes.get("src")
    assert page.urls
    for url in page.urls:
        assert re.fullmatch(r"/(?!/)[-\w.~/%]*", url)


# The waking page


def test_the_waking_page_says_what_is_started_how_long_it_takes_and_how_long_it_took() -> None:
    page = waking()
    assert page.texts["title"] == page.texts["h1"] == "Starting hello.dev"
    assert "3 seconds so far, usually about 8 seconds" in page.texts["div"]
    bar = page.find("progress")
    assert bar["aria-label"] == "Start of hello.dev"
    assert (bar["value"], bar["max"]) == ("3.4", "8.2")
    plot = page.find("svg")
    assert plot["role"] == "img"
    assert plot["aria-label"] == "The last 3 starts took 8 seconds, 8 seconds, 12 seconds"
    assert page.find("main")["data-status"] == "/function/.scalezero/status/hello.dev"
    assert page.find("html")["lang"] == "en"
    assert page.tags.count("h1") == 1
    assert_strict(page)


def test_a_first_start_has_no_bar_and_no_plot() -> None:
    page = waking(starts=())
    assert not {"progress", "svg", "figure"} & set(page.tags)
    assert "usually" not in "".join(page.texts.values())
    assert page.find("main")["data-expected"] == "0.0"


def test_the_bars_of_the_plot_are_as_tall_as_the_starts_were_long() -> None:
    page = waking(starts=(4.0, 8.0, 2.0), elapsed=1.0)
    heights = [float(attributes["height"] or 0) for tag, attributes in page.elements if tag == "rect"]
    assert heights == [28.0, 56.0, 14.0, 7.0]
    assert page.find("rect", id="now")["data-full"] == "8.00"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 seconds"),
        (1.2, "1 second"),
        (99.4, "99 seconds"),
        (99.6, "1 min 40 s"),
        (3725.0, "62 min 5 s"),
    ],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert f"{words} so far" in waking(elapsed=seconds).texts["div"]


@given(st.floats(-1, 1e7), st.lists(st.floats(0, 1e7), max_size=5).map(tuple), st.floats(-1, 1e7))
def test_any_durations_make_a_page_whose_numbers_are_in_range(
    elapsed: float, starts: tuple[float, ...], left: float
) -> None:
    page = Page(PAGES.waking("", HELLO, progress(elapsed, starts, left)))
    for tag, attributes in page.elements:
        if tag == "rect":
            assert 0 < float(attributes["height"] or 0) <= 56
            assert float(attributes["y"] or 0) >= 18
        if tag == "progress":
            assert float(attributes["value"] or 0) <= float(attributes["max"] or 0)
    assert int(page.find("meta", **{"http-equiv": "refresh"})["content"] or 0) in range(1, 6)


@given(
    st.text(st.characters(max_codepoint=255), max_size=30) | st.text("/\\.:<>\"'&?#%$ a", max_size=20),
    st.text(st.sampled_from("<>&\"'${}%=/ abp;#x\u00e9"), max_size=30),
)
@example("//evil.example", MARKUP)
@example("/", "")
@example("", MARKUP)
@example("/\\evil.example", "$base")
def test_whatever_the_mount_and_the_name_are_they_are_text_and_the_urls_stay_here(
    root: str, name: str
) -> None:
    page = waking(Function(name, "a"), root)
    assert page.tags == waking().tags
    assert page.texts["title"] == f"Starting {name}.a"
    assert page.find("progress")["aria-label"] == f"Start of {name}.a"
    assert page.find("main")["data-function"] == f"{name}.a"
    assert_strict(page)


def test_urls_are_below_the_mount_and_percent_encoded() -> None:
    page = waking(root="/caf\xc3\xa9 1")
    assert page.find("main")["data-status"] == "/caf%C3%A9%201/function/.scalezero/status/hello.dev"
    assert all(url.startswith("/caf%C3%A9%201/function/.scalezero/") for url in page.urls)


def test_with_a_route_by_host_our_urls_are_at_the_root() -> None:
    page = Page(Pages("/.scalezero/").waking("", HELLO, Progress(1.0, (), 1.0)))
    assert page.find("main")["data-status"] == "/.scalezero/status/hello.dev"


# The page of a failure


@given(st.text(st.sampled_from("<>&\"'${}%=/ abp;#x"), max_size=30))
@example(MARKUP)
def test_markup_in_a_detail_is_text(detail: str) -> None:
    page = problem(detail)
    assert page.tags == problem("x").tags
    assert page.texts["p"].split("Try again")[0].strip() == detail.strip()
    assert_strict(page)


def test_a_failure_is_in_the_same_dress_without_a_script_or_a_load_of_its_own() -> None:
    page = problem("It is full.")
    assert page.texts["title"] == page.texts["h1"] == "503 Service Unavailable"
    assert page.find("link")["href"] == waking().find("link")["href"]
    assert "script" not in page.tags
    assert not [attributes for _, attributes in page.elements if "http-equiv" in attributes]


def respond(error: ScaleZeroError, pages: Pages = PAGES, method: str = "GET", **headers: str) -> TestResponse:
    def app(environ: Any, start_response: Any) -> Any:
        answers = Answers(pages, jitter=lambda: 0.5)
        return answers.respond(error, environ, HELLO, progress(3.4, STARTS, 4.2))(environ, start_response)

    return Client(app).open(method=method, headers=headers or NAVIGATION)


@pytest.mark.parametrize(
    ("error", "another_try"),
    [
        (InvalidFunctionName("'A' is not a function's name"), False),
        (FunctionNotFound("hello"), False),
        (ProviderError("secret"), True),
        (TooManyWaiting("full"), True),
        (FunctionFailed(HELLO, "crash loop", 8.0), True),
        (NotAvailable(HELLO, 25.0), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_another_try_is_offered_where_it_may_help(error: ScaleZeroError, another_try: bool) -> None:
    for method in ("GET", "POST"):
        response = respond(error, method=method)
        assert ("Retry-After" in response.headers) == another_try
        assert ("Try again" in response.text) == (another_try and method == "GET")


# Headers


@pytest.mark.parametrize("error", [WAKING, FunctionNotFound("hello"), FunctionFailed(HELLO, "", 1.0)])
def test_pages_carry_a_strict_policy_and_are_not_stored(error: ScaleZeroError) -> None:
    headers = respond(error).headers
    assert set(STRICT) < set(headers["Content-Security-Policy"].split("; "))
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Type"] == "text/html; charset=utf-8"


def test_the_waking_page_is_a_503_that_says_when_to_come_back() -> None:
    response = respond(WAKING)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert "Starting hello.dev" in Page(response.text).texts["title"]


def test_all_of_a_page_is_small() -> None:
    names = ["page.css", "page.js", "head.html", "waking.html", "head.html", "problem.html"]
    assert sum(len((files(pages_module) / name).read_bytes()) for name in names) < 10_000


# What a page needs


def asset(name: str) -> TestResponse:
    return Client(Answers(PAGES).asset(name)).get("/")


@pytest.mark.parametrize(
    ("element", "key", "file", "kind"),
    [
        ("link", "href", "page.css", "text/css; charset=utf-8"),
        ("script", "src", "page.js", "text/javascript; charset=utf-8"),
    ],
)
def test_a_file_is_kept_for_as_long_as_its_content_stays(
    element: str, key: str, file: str, kind: str
) -> None:
    url = waking().find(element)[key] or ""
    stem, digest, extension = url.removeprefix(BASE).split(".")
    assert f"{stem}.{extension}" == file
    current = asset(f"{stem}.{digest}.{extension}")
    assert current.data == (files(pages_module) / file).read_bytes()
    assert current.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert current.headers["Content-Type"] == kind
    for other in (file, f"{stem}.0123456789ab.{extension}"):
        assert asset(other).data == current.data
        assert asset(other).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "page",
        "page.py",
        "__init__.py",
        "waking.html",
        "../page.css",
        "x/page.js",
        "page.css.",
        "\0",
    ],
)
def test_nothing_else_is_served(name: str) -> None:
    assert asset(name).status_code == 404


# A page of one's own


def own(directory: Path, text: str | bytes) -> str:
    path = directory / "own.html"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def middleware(template: str) -> ScaleZeroMiddleware:
    return ScaleZeroMiddleware(app, CallbackProvider(scale_up=print), page_template=template)


def app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the function's own"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("costs 5 $", "has a $ that begins no placeholder; one that is meant is $$"),
        ("${function", "has a $ that begins no placeholder"),
        ("$function $who", "has the placeholder $who, which is not allowed; there are $function, $elapsed,"),
        (b"\xff\xfe", "cannot be read: it is not UTF-8"),
    ],
)
def test_a_wrong_template_stops_the_start(text: str | bytes, complaint: str, tmp_path: Path) -> None:
    path = own(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        middleware(path)
    assert str(caught.value).startswith(f"page_template: {path!r} {complaint}")


def test_a_template_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="page_template: '"):
        middleware(str(tmp_path / "gone.html"))
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        Pages(BASE, str(tmp_path / "gone.html"))


def test_a_template_may_use_every_placeholder_that_is_documented_and_is_read_once(tmp_path: Path) -> None:
    names = re.findall(r"^``\$(\w+)``  ", pages_module.__doc__ or "", re.MULTILINE)
    assert len(names) > 8
    path = own(tmp_path, "$$" + "".join(f"<{name}>${name}</{name}>" for name in names))
    pages = Pages(BASE, path)
    Path(path).unlink()
    text = pages.waking("", HELLO, progress(3.4, STARTS, 4.2))
    values = {name: text.partition(f"<{name}>")[2].partition(f"</{name}>")[0] for name in names}
    assert text.startswith("$<")
    assert (values["function"], values["elapsed"], values["expected"]) == ("hello.dev", "3.4", "8.2")
    assert (values["base"], values["refresh"]) == (BASE, "2")
    assert values["status"] == f"{BASE}status/hello.dev"
    assert values["progress"].startswith("<p")
    assert values["history"].startswith("<figure>")
    assert all(values.values())


def test_a_page_of_ones_own_has_the_policy_that_its_author_gives_it(tmp_path: Path) -> None:
    pages = Pages(BASE, own(tmp_path, "mine"))
    mine = respond(WAKING, pages)
    assert mine.text == "mine"
    assert "Content-Security-Policy" not in mine.headers
    assert "Content-Security-Policy" in respond(FunctionNotFound("hello"), pages).headers


# Behind the door


class Gate:
    """A provider whose functions start when they are told."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.trouble: ProviderError | None = None
        self.status = ReplicaStatus(0, 0)

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        if self.trouble is not None:
            raise self.trouble
        if name == "missing":
            raise FunctionNotFound(name, namespace)
        return ReplicaStatus(1, 1) if self.open.is_set() else self.status

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        self.status = ReplicaStatus(replicas, 0)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()  # ends what is under way


@pytest.fixture
def clock() -> MovingClock:
    return MovingClock()


@pytest.fixture
def client(gate: Gate, clock: MovingClock) -> Client:
    return Client(ScaleZeroMiddleware(app, gate, page_after=0.05, max_wait=0.1, clock=clock))


def status(client: Client, name: str = "hello") -> dict[str, Any]:
    response = client.get(f"{BASE}status/{name}")
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    told: dict[str, Any] = json.loads(response.text)
    return told


@pytest.mark.parametrize("headers", [NAVIGATION, {"Accept": "text/html"}])
def test_a_navigation_gets_the_page_and_what_the_page_asks_for(
    headers: dict[str, str], client: Client, gate: Gate
) -> None:
    response = client.get("/function/hello/a?b=c", headers=headers)
    assert response.status_code == 503
    page = Page(response.text)
    assert "Starting hello" in page.texts["title"]
    assert client.get(page.find("link")["href"] or "").mimetype == "text/css"
    assert client.get(page.find("script")["src"] or "").mimetype == "text/javascript"
    assert status(client)["state"] == "starting"
    gate.open.set()
    until(lambda: status(client)["state"] == "ready")
    assert client.get("/function/hello/a?b=c", headers=headers).text == "the function's own"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Accept": "application/json"},
        {"Accept": "*/*", "Sec-Fetch-Mode": "cors"},
        {"Accept": "text/html", "Sec-Fetch-Mode": "cors"},
    ],
)
def test_other_clients_wait_and_get_no_page(headers: dict[str, str], client: Client) -> None:
    response = client.get("/function/hello", headers=headers)
    assert response.status_code == 504
    assert "Starting" not in response.text


def test_the_page_shows_the_time_since_the_start_began_however_often_it_is_loaded(
    client: Client, clock: MovingClock
) -> None:
    def elapsed() -> float:
        page = Page(client.get("/function/hello", headers=NAVIGATION).text)
        return float(page.find("main")["data-elapsed"] or 0)

    first = elapsed()
    clock.advance(20.0)
    assert elapsed() >= first + 20.0
    assert status(client)["elapsed"] >= first + 20.0


def test_a_failure_is_told_to_the_page(client: Client, gate: Gate) -> None:
    assert client.get("/function/hello", headers=NAVIGATION).status_code == 503
    gate.status = ReplicaStatus(1, 0, failure="crash loop")
    until(lambda: status(client)["state"] == "failed")
    assert status(client)["detail"] == "The function hello could not be started."
    assert client.get("/function/missing", headers=NAVIGATION).status_code == 404
    assert status(client, "missing")["state"] == status(client, "invented")["state"] == "unknown"
    assert status(client, "-")["state"] == "failed"


def test_a_provider_that_fails_for_a_moment_is_not_a_failure_of_the_function(
    client: Client, gate: Gate
) -> None:
    assert client.get("/function/hello", headers=NAVIGATION).status_code == 503
    gate.trouble = ProviderError("secret")
    until(lambda: status(client)["detail"] != "")
    told = status(client)
    assert told["state"] == "starting"
    assert told["detail"] == "The function's state cannot be told at the moment."
    gate.trouble = None
    gate.open.set()
    until(lambda: status(client)["state"] == "ready")


def test_the_status_tells_how_long_starts_took(client: Client, gate: Gate, clock: MovingClock) -> None:
    client.get("/function/hello", headers=NAVIGATION)
    gate.open.set()
    until(lambda: client.get("/function/hello").status_code == 200)  # it is held for a moment only
    clock.advance(0.3)  # the entry is not fresh any more
    gate.open.clear()
    until(lambda: client.get("/function/hello", headers=NAVIGATION).status_code == 503)
    until(lambda: status(client)["state"] == "starting")
    told = status(client)
    assert len(told["last_starts"]) == 1
    assert told["expected"] == told["last_starts"][0]
