"""The slots of a real waitress and a real cheroot, each with two threads, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import cheroot.wsgi
import pytest
import waitress.server

from scalezero_wsgi.model import TooManyWaiting
from scalezero_wsgi.servers.line import Slots
from scalezero_wsgi.servers.server import room_for
from scalezero_wsgi.servers.slots import slots_of, waiting_in, without_slot
from tests.support.waiting import PATIENCE, until

THREADS = 2


class Site:
    """Counts who is in the application, and holds requests whose path says so."""

    def __init__(self) -> None:
        self.address = ("", 0)
        self.slots: list[Slots | None] = []
        self.rooms: set[int] = set()
        self.released = threading.Event()
        self.inside = self.most = self.waiting = 0
        self._lock = threading.Lock()

    def count(self, inside: int = 0, waiting: int = 0) -> None:
        with self._lock:
            self.inside += inside
            self.waiting += waiting
            self.most = max(self.most, self.inside)

    def app(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path != "/warm":
            slots = slots_of(environ)
            self.slots.append(slots)
            self.rooms.add(waiting_in(environ).room())
            assert slots is not None
            try:
                with without_slot(slots):
                    self.count(waiting=1)
                    try:
                        self.released.wait(PATIENCE)
                        if path == "/refused":
                            raise ValueError
                    finally:
                        self.count(waiting=-1)
            except (ValueError, TooManyWaiting):
                start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
                return [b"refused"]
        self.count(inside=1)
        time.sleep(0.002)
        self.count(inside=-1)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"served"]

    def ask(self, path: str) -> int:
        connection = HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()


def waitress_server(app: Any) -> tuple[tuple[str, int], Callable[[], None], Callable[[], None]]:
    server: Any = waitress.server.create_server(
        app, host="127.0.0.1", port=0, threads=THREADS, connection_limit=200
    )

    stopped = threading.Event()

    def run() -> None:  # as server.run() does, but for what ends it
        while not stopped.is_set():
            server.asyncore.loop(timeout=0.05, map=server._map, use_poll=True, count=1)
        for each in list(server._map.values()):  # a connection that was just to be closed is among them
            each.close()

    def stop() -> None:
        server.task_dispatcher.shutdown(timeout=PATIENCE)
        stopped.set()

    return ("127.0.0.1", server.effective_port), run, stop


def cheroot_server(app: Any) -> tuple[tuple[str, int], Callable[[], None], Callable[[], None]]:
    server = cheroot.wsgi.Server(("127.0.0.1", 0), app, numthreads=THREADS, request_queue_size=128)
    server.expiration_interval = 0.05  # so often it looks whether it is to stop
    server.prepare()
    return server.bind_addr, server.serve, server.stop


@pytest.fixture(params=[waitress_server, cheroot_server], ids=["waitress", "cheroot"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    site, before = Site(), set(threading.enumerate())
    site.address, run, stop = request.param(site.app)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield site
    site.released.set()
    stop()
    thread.join(PATIENCE)
    until(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(80) as clients:
        yield clients


def test_who_waits_takes_no_thread_and_no_more_are_in_the_application(
    site: Site, clients: ThreadPoolExecutor
) -> None:
    usual = threading.active_count()
    for _ in range(2):
        site.released.clear()
        held = [clients.submit(site.ask, "/refused" if n % 5 == 0 else "/held") for n in range(40)]
        until(lambda: site.waiting == 40)
        warm = [clients.submit(site.ask, "/warm") for _ in range(20)]
        assert {each.result(PATIENCE) for each in warm} == {200}
        site.released.set()
        warm = [clients.submit(site.ask, "/warm") for _ in range(20)]
        assert sorted(each.result(PATIENCE) for each in held) == [200] * 32 + [503] * 8
        assert {each.result(PATIENCE) for each in warm} == {200}
    assert site.most <= THREADS
    assert len(set(map(id, site.slots))) == 1
    until(lambda: threading.active_count() <= usual + 80)  # the clients' own


def test_without_another_thread_a_request_is_refused_and_the_others_are_served(
    site: Site, clients: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, fails = threading.Thread.start, True

    def refuse(self: threading.Thread) -> None:
        if fails and ("waitress" in self.name or "CP Server" in self.name):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert clients.submit(site.ask, "/held").result(PATIENCE) == 503
    fails = False
    held = [clients.submit(site.ask, "/held") for _ in range(10)]
    until(lambda: site.waiting == 10)
    assert site.ask("/warm") == 200
    site.released.set()
    assert {each.result(PATIENCE) for each in held} == {200}


def test_how_many_may_wait_is_what_connections_and_files_leave(
    site: Site, clients: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> None:
    site.released.set()
    assert site.ask("/held") == 200
    expected = {"waitress": 150, "cheroot": room_for()}
    assert site.rooms == {expected[request.node.callspec.id]}
