"""Whether a function that serves no request is busy: asked by HTTP of a real server, or by a callback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from scalezero_wsgi import ReplicaStatus
from scalezero_wsgi.activation.idling import busy as module
from scalezero_wsgi.activation.idling.busy import BUSY, Busy
from tests.support.clock import Clock
from tests.support.fakes import HELLO, UP

CAP = 60.0


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A server that answers ``/204`` with 204, and so on; ``/hangs`` with nothing until the test ends."""
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/hangs":
                end.wait(30)
                return
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        end.set()
        server.shutdown()


def status(endpoint: str | None, path: str) -> ReplicaStatus:
    return ReplicaStatus(1, 1, endpoint=endpoint, labels={BUSY: path})


def test_without_a_label_and_a_callback_it_is_not() -> None:
    assert not Busy(None, CAP)(HELLO, UP)


@pytest.mark.parametrize(
    ("path", "expected"), [("/200", True), ("/202", True), ("/204", False), ("/404", False)]
)
def test_it_is_asked_by_http(path: str, expected: bool, endpoint: str) -> None:
    clock = Clock()
    busy = Busy(None, CAP, clock)
    assert busy(HELLO, status(endpoint, path)) is expected
    clock.advance(2 * CAP)  # an answer has no end
    assert busy(HELLO, status(endpoint, path)) is expected


@pytest.mark.parametrize("path", ["/500", "/302", "/hangs"])
def test_one_that_cannot_be_asked_counts_as_busy_for_a_while(
    path: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    clock = Clock()
    busy = Busy(None, CAP, clock)
    assert busy(HELLO, status(endpoint, path))
    clock.advance(CAP)
    assert busy(HELLO, status(endpoint, path))
    clock.advance(1.0)
    assert not busy(HELLO, status(endpoint, path))


def test_one_without_an_address_counts_as_busy_for_a_while() -> None:
    clock = Clock()
    busy = Busy(None, CAP, clock)
    assert busy(HELLO, status(None, "/busy"))
    clock.advance(CAP + 1.0)
    assert not busy(HELLO, status(None, "/busy"))


def test_an_answer_begins_the_time_anew(endpoint: str) -> None:
    clock = Clock()
    busy = Busy(None, CAP, clock)
    for path, expected in (("/500", True), ("/204", False), ("/500", True)):
        assert busy(HELLO, status(endpoint, path)) is expected
        clock.advance(CAP - 1.0)
    assert busy(HELLO, status(endpoint, "/500"))


def fails(name: str, namespace: str) -> bool:
    raise RuntimeError("no answer")


@pytest.mark.parametrize(
    ("callback", "expected"), [(lambda *_: True, True), (lambda *_: False, False), (fails, True)]
)
def test_a_callback_is_asked(callback: Callable[[str, str], bool], expected: bool) -> None:
    assert Busy(callback, CAP)(HELLO, UP) is expected


def test_a_callback_that_hangs_is_not_asked_again_and_counts_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    calls, end = [], threading.Event()

    def hangs(name: str, namespace: str) -> bool:
        calls.append(name)
        return end.wait(30)

    busy = Busy(hangs, CAP)
    assert [busy(HELLO, UP) for _ in range(3)] == [True] * 3
    assert calls == ["hello"]
    end.set()
