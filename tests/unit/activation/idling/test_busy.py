"""Whether a function that serves no request is busy: asked by HTTP of a real server, or by a callback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from scalezero_wsgi import Function, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation.idling import busy as module
from scalezero_wsgi.activation.idling import listing, retries
from scalezero_wsgi.activation.idling.busy import BUSY, Busy
from scalezero_wsgi.activation.idling.drain import Outcome
from scalezero_wsgi.coordination.base import Drain, DrainPhase, WorkerReport
from scalezero_wsgi.coordination.memory import MemoryCoordination
from tests.support.clock import Clock
from tests.support.fakes import HELLO, UP, ZERO, FakeEngine
from tests.support.waiting import until
from tests.support.wsgi import App, ask

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


# The whole


class Listing(FakeEngine):
    def list_functions(self) -> list[Function]:
        return [HELLO]


class Site:
    """``busy`` says what the callback does."""

    def __init__(self) -> None:
        self.engine = Listing(time.monotonic)
        self.store = MemoryCoordination()
        self.busy = True
        self.asked: list[str] = []
        self.door = ScaleZeroMiddleware(
            App(), self.engine, idle_after=0.05, idle_default="all", coordination=self.store, busy=self._busy
        )
        assert self.door._idler is not None
        self.idler = self.door._idler

    def _busy(self, name: str, namespace: str) -> bool:
        self.asked.append(name)
        return self.busy

    def report_use(self) -> None:
        """Be another worker, which has used the function, and for which no drain waits."""
        self.store.report(WorkerReport("other/apart/use", unused_for={HELLO: 1.0}), 60)

    def stops(self) -> int:
        return self.engine.sets.count((HELLO, 0))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("known", [True, False], ids=["as at zero", "not at all"])
def test_a_function_that_others_have_started_is_asked(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker that decides knows it by their reports alone."""
    monkeypatch.setattr(listing, "LIST_EVERY", 1e9)
    monkeypatch.setattr(retries, "PUT_OFF", {**retries.PUT_OFF, Outcome.VETOED: 0.05})
    site = Site()
    if known:
        site.door.cache.set("hello", ZERO, asked_at=time.monotonic() - 10.0)
    site.engine.put_up("hello")
    monkeypatch.setattr(site.idler._listing, "turn", lambda now: None)
    site.report_use()
    site.idler.start(multiprocess=False)
    until(lambda: len(site.asked) >= 3)
    assert site.engine.sets == []
    assert site.store.drains() == {}
    site.busy = False
    until(site.stops)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("stopped", [True, False])
def test_what_a_dead_worker_has_left_is_ended_though_it_is_busy(stopped: bool) -> None:
    """Nothing is passed to it until then."""
    site = Site()
    ask(site.door)
    until(lambda: site.asked)  # from here on it is vetoed
    if stopped:
        site.engine.put_down()
    assert site.store.change_drain(HELLO, None, Drain(DrainPhase.STOPPING, 7), 60)
    until(lambda: site.store.drains().get(HELLO) != Drain(DrainPhase.STOPPING, 7))
    assert ask(site.door)[0] == "200 OK"
    assert site.stops() == 0
