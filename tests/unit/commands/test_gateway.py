"""What serve shows beside the functions themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import webtest

from scalezero_wsgi import Function, FunctionNotFound, ProviderError, ReplicaStatus
from scalezero_wsgi.commands import gateway as module
from scalezero_wsgi.commands.gateway import Gateway
from tests.support.fakes import STARTING, UP, ZERO
from tests.support.waiting import PATIENCE

MARKUP = "<script>alert(1)</script>"


class Listing:
    """A provider that lists functions with a status each, or fails, or hangs."""

    def __init__(self, known: dict[str, ReplicaStatus | Exception]) -> None:
        self.known = known
        self.error: Exception | None = None
        self.hangs: threading.Event | None = None
        self.asked = 0

    def list_functions(self) -> Iterable[Function]:
        self.asked += 1
        if self.hangs is not None:
            self.hangs.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return [Function(name) for name in self.known]

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        found = self.known[name]
        if isinstance(found, Exception):
            raise found
        return found

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        raise AssertionError("looking changes nothing")


def proxied(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "7")])
    return [b"proxied"]


KNOWN: dict[str, ReplicaStatus | Exception] = {
    "up": UP,
    "starting": STARTING,
    "zero": ZERO,
    "halted": replace(ZERO, paused=True),
    "broken": replace(ZERO, failure=MARKUP),
    "lost": FunctionNotFound("lost", ""),
}


def client(
    provider: Any, served: Callable[[Function], bool] = lambda _: True, **options: Any
) -> webtest.TestApp:
    app = Gateway(proxied, provider, route="/function/", is_served=served, **options)
    return webtest.TestApp(app)


def test_the_functions_as_json() -> None:
    listed = client(Listing(KNOWN)).get("/").json["functions"]
    assert {each["function"]: each["state"] for each in listed} == {
        "up": "ready",
        "starting": "starting",
        "zero": "at zero",
        "halted": "paused",
        "broken": "failed",
        "lost": "unknown",
    }
    assert listed[4] == {
        "function": "up",
        "state": "ready",
        "replicas": 1,
        "available_replicas": 1,
        "url": "/function/up/",
    }
    assert not any("failure" in each for each in listed)


def test_why_a_function_failed_is_told_only_if_that_is_set() -> None:
    assert MARKUP not in client(Listing(KNOWN)).get("/").text
    listed = client(Listing(KNOWN), expose=True).get("/").json["functions"]
    told = {each["function"]: each["failure"] for each in listed if "failure" in each}
    assert told == {"broken": MARKUP, "lost": "function lost is not known to the provider"}


def test_the_functions_as_a_page_whose_text_is_text() -> None:
    answer = client(Listing(KNOWN), expose=True).get(
        "/", headers={"Accept": "text/html"}, extra_environ={"SCRIPT_NAME": "/a"}
    )
    assert answer.content_type == "text/html"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert MARKUP not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert '<a href="/a/function/up/">up</a>' in answer.text
    assert "There is none." in client(Listing({})).get("/", headers={"Accept": "text/html"}).text


def test_only_what_is_served_is_listed() -> None:
    listed = client(Listing(KNOWN), lambda function: function.name == "up").get("/").json["functions"]
    assert [each["function"] for each in listed] == ["up"]


def test_a_function_is_the_proxys_and_other_paths_are_nobodys() -> None:
    app = client(Listing(KNOWN))
    environ = {"scalezero_wsgi.function": Function("up")}
    assert app.get("/function/up", extra_environ=environ).body == b"proxied"
    assert app.get("/other", status=404).text == "There is nothing here.\n"
    assert app.head("/").body == b""


def test_a_provider_that_fails_is_not_ready_but_the_worker_is_well() -> None:
    provider = Listing(KNOWN)
    provider.error = ProviderError("secret")
    app = client(provider)
    assert app.get("/healthz").text == "ok\n"
    for path in ("/readyz", "/"):
        for accept in ("*/*", "text/html"):
            answer = app.get(path, headers={"Accept": accept}, status=503)
            assert "does not answer" in answer.text
            assert "secret" not in answer.text
    provider.error = None
    assert app.get("/readyz").text == "ok\n"


def test_a_provider_that_hangs_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    provider = Listing(KNOWN)
    provider.hangs = threading.Event()
    app = client(provider)
    for _ in range(3):
        app.get("/readyz", status=503)
    assert provider.asked == 1
    provider.hangs.set()


def test_one_with_so_many_functions_that_an_overview_takes_long_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(Listing):
        answers = threading.Event()

        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            assert self.answers.wait(PATIENCE)
            now[0] += 5.0
            return UP

    now = [100.0]
    provider = Slow({"a": UP, "b": UP})
    app = client(provider, clock=lambda: now[0])
    with monkeypatch.context() as impatient:
        impatient.setattr(module, "PATIENCE", 0.05)
        app.get("/", status=503)
    assert app.get("/readyz").text == "ok\n"
    provider.answers.set()
    assert len(app.get("/").json["functions"]) == 2
    now[0] += 9.0  # less than that took
    asked = provider.asked
    assert len(app.get("/").json["functions"]) == 2
    assert provider.asked == asked


def test_what_it_said_is_shown_for_a_second() -> None:
    now = [100.0]
    provider = Listing(KNOWN)
    app = client(provider, clock=lambda: now[0])
    for at, asked in ((100.0, 1), (100.9, 1), (101.1, 2)):
        now[0] = at
        app.get("/")
        assert provider.asked == asked


def test_one_that_cannot_list_is_ready_and_says_so() -> None:
    class Callback:
        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            return UP

        def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
            pass

    app = client(Callback())
    assert app.get("/readyz").text == "ok\n"
    assert app.get("/", status=503).text == "The provider cannot list its functions.\n"
