"""Websockets, with a pair of sockets for the one that gunicorn hands out."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.model import Function
from scalezero_wsgi.proxy import FunctionProxy, upgrade
from scalezero_wsgi.servers.server import this_server
from tests.support.raw_http import PATIENCE, Message, RawFunction, Wire
from tests.support.waiting import until
from tests.unit.proxy.test_proxy import environ_for
from tests.unit.proxy.test_settings import Up

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def echo(wire: Wire, _: Message) -> bool:
    wire.sock.sendall(SWITCH + b"first")
    while wire.held or wire.more():
        wire.sock.sendall(wire.held)
        wire.held = b""
    return False


class Visit:
    """A client's side of a websocket, and the request that serves it in a thread."""

    def __init__(self, app: Any, url: str, **more: Any) -> None:
        self.sock, self.server_side = socket.socketpair()
        self.sock.settimeout(PATIENCE)
        self.wire = Wire(self.sock)
        self.heads: list[tuple[str, dict[str, str]]] = []
        environ = environ_for("/function/hello", url)
        environ |= {"gunicorn.socket": self.server_side, "SERVER_PROTOCOL": "HTTP/1.1"}
        environ |= {"HTTP_CONNECTION": "keep-alive, Upgrade", "HTTP_UPGRADE": "WebSocket"}
        self._thread = threading.Thread(target=self._serve, args=(app, environ | more))
        self._thread.start()

    def _serve(self, app: Any, environ: dict[str, Any]) -> None:
        result = app(environ, self._start)
        assert list(result) == []
        result.close()

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        self.heads.append((status, dict(headers)))
        return lambda data: None

    def ends(self) -> bool:
        self._thread.join(PATIENCE)
        return not self._thread.is_alive()

    def close(self) -> None:
        self.sock.close()
        assert self.ends()
        self.server_side.close()


@pytest.fixture
def function() -> Iterator[RawFunction]:
    with RawFunction(echo) as it:
        yield it


def test_bytes_pass_both_ways_until_the_client_ends(function: RawFunction) -> None:
    visit = Visit(FunctionProxy(), function.url)
    assert visit.wire.exactly(5) == b"first"
    data = os.urandom(2_000_000)
    sender = threading.Thread(target=visit.sock.sendall, args=(data,))
    sender.start()
    assert visit.wire.exactly(len(data)) == data
    sender.join()
    visit.close()
    assert function.closed.wait(PATIENCE)
    ((status, headers),) = visit.heads
    assert status == "101 Switching Protocols"
    assert headers == {"Upgrade": "websocket", "Connection": "Upgrade"}


def test_the_client_is_cut_off_with_the_function(function: RawFunction) -> None:
    function.behaviour = lambda wire, _: wire.sock.sendall(SWITCH + b"bye")
    visit = Visit(FunctionProxy(), function.url)
    assert visit.wire.exactly(3) == b"bye"
    assert not visit.wire.more()
    visit.close()


def test_a_tunnel_is_in_flight_as_long_as_it_is_open(function: RawFunction) -> None:
    app = ScaleZeroMiddleware(FunctionProxy(), Up(function.url))
    visit = Visit(app, function.url)
    assert visit.wire.exactly(5) == b"first"
    state = app.cache.find_state(Function("hello"))
    assert state is not None
    assert len(state.in_flight) == 1
    visit.close()
    until(lambda: not state.in_flight)


def test_it_says_that_it_has_carried_something_and_nothing_while_it_is_silent(
    function: RawFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "SLICE", 0.02)  # it looks around as often
    calls: list[float] = []
    carried = {"scalezero_wsgi.carried": lambda: calls.append(time.monotonic())}
    visit = Visit(FunctionProxy(), function.url, **carried)
    assert visit.wire.exactly(5) == b"first"
    for _ in range(2):
        before = len(calls)
        visit.sock.sendall(b"more")
        assert visit.wire.exactly(4) == b"more"
        until(lambda before=before: len(calls) >= before + 2)  # type: ignore[misc]  # up, and down
    time.sleep(0.3)
    assert calls[-1] < time.monotonic() - 0.2
    visit.close()


def test_a_worker_that_is_told_to_stop_ends_its_tunnels(
    function: RawFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Visit(FunctionProxy(), function.url)
    assert visit.wire.exactly(5) == b"first"
    monkeypatch.setattr(this_server(), "stopping", lambda: True)
    begun = time.monotonic()
    assert not visit.wire.more()
    assert time.monotonic() - begun < PATIENCE / 2
    visit.close()


@pytest.mark.parametrize(
    "answer",
    [
        SWITCH.replace(b": websocket", b": h2c"),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_another_switch_is_502(function: RawFunction, answer: bytes) -> None:
    function.behaviour = lambda wire, _: wire.sock.sendall(answer)
    client, server_side = socket.socketpair()
    with client, server_side:
        environ = environ_for("/function/hello", function.url)
        environ |= {"gunicorn.socket": server_side, "HTTP_CONNECTION": "Upgrade", "HTTP_UPGRADE": "websocket"}
        statuses: list[str] = []
        FunctionProxy()(environ, lambda status, *_: statuses.append(status))  # type: ignore[arg-type]
        assert statuses == ["502 BAD GATEWAY"]
        assert function.requests[0].get("Upgrade") == "websocket"  # so it was asked for another
