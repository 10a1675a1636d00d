from __future__ import annotations

import threading

import pytest

from scalezero_wsgi.servers import server as server_module
from scalezero_wsgi.servers.server import ROOM, Server, room_for
from scalezero_wsgi.servers.slots import give_back, slots_of, waiting_in
from scalezero_wsgi.servers.thread_pool import ThreadPool
from tests.support.waiting import PATIENCE, until


def test_a_thread_of_no_such_pool_keeps_its_slot(server: Server) -> None:
    server.capacity = 8
    assert slots_of({}) is None
    waiting = waiting_in({})
    assert waiting.room() == 6
    with waiting.without_slot(), give_back({}):
        pass


def test_a_thread_of_a_pool_gives_it_back_while_it_waits() -> None:
    pool, begun, go_on = ThreadPool(1, 77), threading.Event(), threading.Event()

    def application() -> int:
        with give_back({}):
            begun.set()
            go_on.wait(PATIENCE)
        return waiting_in({}).room()

    first = pool.submit(application)
    assert begun.wait(PATIENCE)
    assert pool.submit(lambda: "another").result(PATIENCE) == "another"
    go_on.set()
    assert first.result(PATIENCE) == 77
    pool.shutdown()


@pytest.mark.parametrize(
    ("protocol", "in_app", "waits"),
    [("HTTP/1.1", False, False), ("HTTP/1.1", True, True), ("HTTP/2.0", False, True)],
)
def test_who_may_be_in_the_application_after_a_failed_wait_waits_for_a_slot(
    protocol: str, in_app: bool, waits: bool
) -> None:
    pool, fail, go_on = ThreadPool(1, 1000), threading.Event(), threading.Event()

    def request() -> None:
        with waiting_in({"SERVER_PROTOCOL": protocol}, in_app).without_slot():
            fail.wait(PATIENCE)
            raise ValueError

    failed = pool.submit(request)
    until(lambda: pool.waiting == 1)
    other = pool.submit(go_on.wait, PATIENCE)
    until(other.running)
    fail.set()
    until(lambda: pool.waiting == 0)
    if waits:
        assert not failed.done()
    else:
        assert isinstance(failed.exception(PATIENCE), ValueError)
    go_on.set()
    assert isinstance(failed.exception(PATIENCE), ValueError)
    pool.shutdown()


@pytest.mark.parametrize(
    ("connections", "files", "limit", "room"),
    [
        (None, None, None, ROOM),
        (None, None, 100_000, ROOM),
        (None, None, 1024, 768),
        (2000, None, 20_000, ROOM),
        (100, None, 20_000, 75),
        (2000, 1024, 20_000, 768),
        (1, None, None, 1),
    ],
)
def test_how_many_may_wait_is_what_connections_and_files_leave(
    connections: int | None, files: int | None, limit: int | None, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "open_files", lambda: limit)
    assert room_for(connections, files) == room
