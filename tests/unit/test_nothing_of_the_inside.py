"""No answer holds a password or an address of the inside, whatever went wrong and however it is asked for."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from scalezero_wsgi import FunctionNotFound, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.events import CoordinationLost, Event
from scalezero_wsgi.providers import CallbackProvider, ProcessProvider
from scalezero_wsgi.providers.process.provider import ProcessFunction, Ready
from scalezero_wsgi.proxy import FunctionProxy
from tests.support.fakes import STARTING, UP, ZERO, Gate, ScriptedProvider
from tests.support.wsgi import App, visits

OF_URLS = ["provider-pass", "store-pass", "endpoint-pass"]
"""Passwords in URLs, which the log must not have either."""

OF_OUTPUT = ["output-pass", "callback-pass", "failure-pass"]
"""What a function or a callback says, which is in the log."""

ADDRESSES = ["10.1.2.3", "127.0.0.1", "8080"]
SECRETS = [*OF_URLS, *OF_OUTPUT, *ADDRESSES, "Traceback", "site-packages"]

INSIDE = "db.internal: password callback-pass refused by 10.1.2.3:8080"
TELLING: dict[str, Any] = {
    "endpoint": "http://me:endpoint-pass@10.1.2.3:8080",
    "labels": {"db": "failure-pass"},
}

STATUS = "/function/.scalezero/status/hello"
FORMS: dict[str, dict[str, Any]] = {
    "JSON": {"headers": {"Accept": "application/json"}},
    "HTML": {"headers": {"Accept": "text/html", "Sec-Fetch-Mode": "cors"}},
    "text": {"headers": {"Accept": "text/plain"}},
    "HEAD": {"method": "HEAD"},
    "POST": {"method": "POST", "data": b"x"},
    "page": {"headers": {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}},
    "respond-async": {"headers": {"Prefer": "respond-async"}},
    "wait": {"headers": {"Prefer": "wait=0"}},
}


@dataclass
class Site:
    """
    :ivar statuses: what it answers to some form or other.
    :ivar logged: words that the log must have in a line with the id of each call that failed for them.
    """

    door: ScaleZeroMiddleware
    statuses: set[int]
    logged: str = ""
    secrets: list[str] = field(default_factory=lambda: list(SECRETS))


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """One at which nobody listens, and nobody else will."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def door(provider: Any, app: Any = None, **settings: Any) -> ScaleZeroMiddleware:
    settings = {"max_wait": 0.15, "page_after": 0.1, "max_waiting": len(FORMS), **settings}
    return ScaleZeroMiddleware(app or App(), provider, **settings)


def fail(*_: Any) -> Any:
    raise RuntimeError(INSIDE)


def miss(*_: Any) -> Any:
    raise FunctionNotFound(INSIDE)


@pytest.fixture(
    params=[
        *("provider", "output", "scale_up", "get_replicas", "set_replicas", "failure"),
        *("endpoint", "too many", "late", "no wake", "missing", "missing, in its own words"),
    ]
)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    kind: str = request.param
    with closed_port() as port:
        if kind == "provider":
            url = f"openfaas+http://admin:provider-pass@127.0.0.1:{port}"
            events: list[Event] = []
            store = f"redis://:store-pass@127.0.0.1:{port}/0"
            failing = door(url, coordination=store, hooks=[events.append], max_wait=0.5)
            it = Site(failing, {502}, "the provider failed")
            yield replace(it, secrets=[*SECRETS, f":{port}"])
            assert any(isinstance(event, CoordinationLost) for event in events)
        elif kind == "output":
            command = [sys.executable, "-c", "import sys; sys.exit('password output-pass at 10.1.2.3')"]
            hello = ProcessFunction(command, Ready("/"))
            provider = ProcessProvider({"hello": hello}, state_dir=str(tmp_path / "state"))
            yield Site(door(provider, max_wait=20.0, page_after=15.0), {503}, "output-pass")
        elif kind == "endpoint":
            up = replace(UP, endpoint=f"http://me:endpoint-pass@127.0.0.1:{port}")
            it = Site(door(ScriptedProvider(up), FunctionProxy(connect_patience=0.1)), {502})
            yield replace(it, secrets=[*SECRETS, f":{port}"])
        elif kind == "too many":
            gate = Gate()
            gate.status = ReplicaStatus(1, 0, **TELLING)
            full = door(gate, max_waiting=1, max_wait=60.0)
            (held,) = visits(full, 1)
            yield Site(full, {503})
            gate.opened.set()
            assert held.status == "200 OK"
        else:
            failed = ReplicaStatus(1, 0, failure=f"failure-pass: {INSIDE}")
            yield {
                "scale_up": lambda: Site(door(CallbackProvider(scale_up=fail)), {502, 503}, "callback-pass"),
                "get_replicas": lambda: Site(
                    door(CallbackProvider(get_replicas=fail, set_replicas=fail)), {502, 503}, "callback-pass"
                ),
                "set_replicas": lambda: Site(
                    door(CallbackProvider(get_replicas=lambda *_: ZERO, set_replicas=fail)),
                    {502, 503},
                    "callback-pass",
                ),
                "failure": lambda: Site(door(ScriptedProvider(failed)), {503}, "failure-pass"),
                "late": lambda: Site(door(ScriptedProvider(replace(STARTING, **TELLING))), {504}),
                "no wake": lambda: Site(
                    door(ScriptedProvider(replace(ZERO, **TELLING)), no_wake=["path=/function/*"]), {503}
                ),
                "missing, in its own words": lambda: Site(door(CallbackProvider(scale_up=miss)), {404}),
                "missing": lambda: Site(door(ScriptedProvider(FunctionNotFound("hello"))), {404}),
            }[kind]()


def ask(site: Site, path: str = "/function/hello", **options: Any) -> TestResponse:
    return Client(site.door).open(path, **options)


def told(response: TestResponse) -> str:
    """What the client gets but the id of its call, which is random: any digits may be in it."""
    text = f"{response.status}\n{response.headers}\n{response.get_data(as_text=True)}"
    call_id = response.headers.get("X-Call-Id")
    return text.replace(call_id, "") if call_id else text


def test_no_answer_has_a_secret_and_the_log_has_the_reason(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    statuses = set()
    with ThreadPoolExecutor(len(FORMS)) as pool:
        responses = list(pool.map(lambda options: ask(site, **options), FORMS.values()))
    responses += [ask(site, STATUS), ask(site, STATUS)]
    for form, response in zip([*FORMS, "status", "status again"], responses, strict=True):
        statuses.add(response.status_code)
        text = told(response)
        assert [secret for secret in site.secrets if secret in text] == [], (form, text)
        if site.logged and response.status_code in (502, 503) and not waking(response):
            call_id = response.headers["X-Call-Id"]
            (line,) = [message for message in caplog.messages if call_id in message]
            assert site.logged in line
    assert statuses & site.statuses
    assert [secret for secret in OF_URLS if secret in caplog.text] == []


def waking(response: TestResponse) -> bool:
    """Whether it is the page that waits, with the same status as some failures."""
    return "Starting hello" in response.get_data(as_text=True)


def test_the_page_is_told_of_a_failure_and_the_id_of_its_call(caplog: pytest.LogCaptureFixture) -> None:
    failed = ReplicaStatus(1, 0, failure=f"failure-pass: {INSIDE}")
    site = Site(door(ScriptedProvider(failed)), {503})
    assert ask(site).status_code == 503
    response = ask(site, STATUS, headers={"X-Call-Id": "the-page"})
    assert [secret for secret in SECRETS if secret in told(response)] == []
    assert json.loads(response.get_data())["call_id"] == response.headers["X-Call-Id"] == "the-page"
    assert any("call the-page: " in line and "failure-pass" in line for line in caplog.messages)


@pytest.mark.parametrize("name", ["Hello", "h%C3%A9", "a..b", "x" * 100])
def test_a_bad_name_is_told_nothing_but_itself(name: str) -> None:
    site = Site(door(ScriptedProvider(replace(ZERO, **TELLING))), {400})
    for accept in ("application/json", "text/html", "text/plain"):
        response = ask(site, f"/function/{name}", headers={"Accept": accept})
        assert response.status_code == 400
        assert [secret for secret in SECRETS if secret in told(response)] == []
