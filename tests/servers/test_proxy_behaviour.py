"""What takes its time: early answers, streams, clients that leave, websockets, and who gives up when."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.harness import gunicorn
from tests.support.raw_http import (
    PATIENCE,
    Message,
    RawFunction,
    Wire,
    ask,
    response_of,
    says,
)
from tests.support.waiting import SOON, until

SITE = "tests.servers.raw_proxy_site:app"
GET = b"GET /function/hello HTTP/1.1\r\nHost: front\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
GOOD = HEAD + b"Content-Length: 2\r\n\r\nok"
WEBSOCKET = (
    b"GET /function/hello HTTP/1.1\r\nHost: front\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


class Front:
    """A server with the proxy, and the function behind it."""

    def __init__(self, address: tuple[str, int], function: RawFunction, log: Path, worker: int) -> None:
        self.address = address
        self.function = function
        self.log = log
        self.worker = worker

    @contextlib.contextmanager
    def asked(self, data: bytes = GET) -> Iterator[Wire]:
        with socket.create_connection(self.address, PATIENCE) as sock:
            sock.sendall(data)
            yield Wire(sock)

    def is_well(self) -> bool:
        self.function.behaviour, self.function.read_body = says(GOOD), True
        return ask(self.address, GET).body == b"ok"


ELSEWHERE = [pytest.param(worker, marks=pytest.mark.engine) for worker in ("gevent", "sync")]


@pytest.fixture(scope="module", params=["gthread", *ELSEWHERE])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    log = tmp_path_factory.mktemp("front") / "log"
    options = ["--threads", "4"] if request.param == "gthread" else []
    with RawFunction() as function:
        env = {"FUNCTION": function.url, "BODY_TIMEOUT": "1"}
        with gunicorn(SITE, log, *options, worker=request.param, env=env) as server:
            assert isinstance(server.address, tuple)
            until(lambda: len(server.workers()) == 1)
            yield Front(server.address, function, log, server.workers()[0])
    assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")


@pytest.fixture
def front(site: Front) -> Iterator[Front]:
    site.function.behaviour, site.function.read_body = says(GOOD), True
    site.function.requests.clear()
    site.function.closed.clear()
    yield site
    until(site.is_well)


def waits(event: threading.Event) -> bool:
    return event.wait(PATIENCE)


# Both ways at once


@pytest.mark.parametrize("first", [HEAD + b"\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n"])
def test_the_head_goes_out_before_the_body(front: Front, first: bytes) -> None:
    seen = threading.Event()

    def behave(wire: Wire, _: Message) -> bool:
        wire.sock.sendall(first)
        waits(seen)
        wire.sock.sendall(b"2\r\nok\r\n0\r\n\r\n" if b"chunked" in first else b"ok")
        return False

    front.function.behaviour = behave
    with front.asked() as wire:
        begun = time.monotonic()
        response = wire.head()
        assert response is not None
        assert response.status == 200
        assert time.monotonic() - begun < PATIENCE / 2
        seen.set()
        wire.body(response, until_close=True)
        assert response.body == b"ok"


@pytest.mark.parametrize("framing", [b"Content-Length: 100000000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("then", ["keep", "close"])
def test_an_early_refusal_reaches_a_client_that_still_sends(front: Front, framing: bytes, then: str) -> None:
    front.function.read_body = False
    front.function.behaviour = says(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig", then)
    head = b"POST /function/hello HTTP/1.1\r\nHost: front\r\n" + framing + b"\r\n\r\n"
    with front.asked(head + b"5\r\nhello\r\n") as wire:
        begun = time.monotonic()
        response = response_of(wire)
        assert (response.status, response.body) == (413, b"big")
        assert time.monotonic() - begun < SOON


@pytest.mark.parametrize("chunked", [False, True])
def test_a_function_echoes_while_it_reads(front: Front, chunked: bool) -> None:
    size, piece = 20_000_000, os.urandom(50_000)

    def behave(wire: Wire, request: Message) -> bool:
        wire.sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size)
        left = size
        if chunked:
            while data := wire.exactly(int(wire.line() or b"0", 16)):
                wire.sock.sendall(data)
                wire.line()
            return False
        while left:
            data = wire.held or wire.sock.recv(min(left, 65536))
            wire.held = b""
            wire.sock.sendall(data)
            left -= len(data)
        return False

    front.function.behaviour, front.function.read_body = behave, False
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    with front.asked(b"POST /function/hello HTTP/1.1\r\nHost: front\r\n" + framing + b"\r\n\r\n") as wire:

        def send() -> None:
            for _ in range(size // len(piece)):
                wire.sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                wire.sock.sendall(b"0\r\n\r\n")

        sender = threading.Thread(target=send)
        sender.start()
        response = response_of(wire)
        sender.join()
    assert response.whole
    assert response.body == piece * (size // len(piece))


# Clients that leave


@pytest.mark.parametrize("when", ["before the head", "on an idle stream", "while it sends"])
def test_a_client_that_leaves_is_noticed_within_a_second(front: Front, when: str) -> None:
    reached, left = threading.Event(), threading.Event()

    def behave(wire: Wire, _: Message) -> bool:
        if when == "on an idle stream":
            wire.sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        reached.set()
        while wire.more():  # until the proxy closes
            pass
        left.set()
        return False

    front.function.behaviour, front.function.read_body = behave, False
    head = GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 99\r\n\r\n") if when == "while it sends" else GET
    with front.asked(head) as wire:
        waits(reached)
        if when == "on an idle stream":
            assert wire.head()
    begun = time.monotonic()
    assert waits(left)
    assert time.monotonic() - begun < 1.0 + SOON / 2


@pytest.mark.soak
def test_four_clients_that_left_hold_no_thread(front: Front) -> None:
    front.function.behaviour = lambda wire, _: wire.more()
    for _ in range(4):
        with front.asked():
            until(lambda: front.function.requests)
        front.function.requests.clear()
    begun = time.monotonic()
    assert front.is_well()
    assert time.monotonic() - begun < 4 * 1.0 + SOON  # under sync one after another


# Who is too slow


@pytest.mark.soak
def test_a_client_whose_body_does_not_come_is_answered_408(front: Front) -> None:
    head = b"POST /function/hello HTTP/1.1\r\nHost: front\r\nContent-Length: 10\r\n\r\nhello"
    with front.asked(head) as wire:
        assert response_of(wire).status == 408
    until(lambda: front.function.closed.is_set())


# Connections that are kept


def test_a_connection_that_was_closed_meanwhile_costs_no_request(front: Front) -> None:
    front.function.behaviour = says(GOOD, "close")
    body = b"POST /function/hello HTTP/1.1\r\nHost: front\r\nContent-Length: 5\r\n\r\nhello"
    for _ in range(20):
        front.function.closed.clear()
        response = ask(front.address, body)
        assert (response.status, response.body) == (200, b"ok")
        assert waits(front.function.closed)


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_client_goes_on_using_its_connection_after_uploads(front: Front, size: int) -> None:
    head = b"POST /function/hello HTTP/1.1\r\nHost: front\r\nContent-Length: %d\r\n\r\n" % size
    with front.asked(b"") as wire:
        for _ in range(30):
            wire.sock.sendall(head + bytes(size))
            response = response_of(wire)
            assert (response.status, response.body) == (200, b"ok")
            if response.get("Connection") == "close":  # gunicorn's sync worker keeps none
                break
        else:
            assert len(front.function.requests) == 30


# Broken answers, as a client of each kind sees them


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_broken_answer_does_not_look_complete(front: Front, version: bytes) -> None:
    front.function.behaviour = says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n", "close")
    response = ask(front.address, GET.replace(b"1.1", version))
    assert not response.whole


# Websockets


def test_a_websocket_is_tunnelled(front: Front) -> None:
    def behave(wire: Wire, request: Message) -> bool:
        assert request.get("Connection") == "Upgrade"
        assert request.get("Upgrade") == "websocket"
        assert request.get("Sec-WebSocket-Key")
        wire.sock.sendall(SWITCH + b"first")
        while wire.held or wire.more():
            wire.sock.sendall(wire.held)
            wire.held = b""
        return False

    front.function.behaviour, front.function.read_body = behave, False
    with front.asked(WEBSOCKET) as wire:
        response = wire.head()
        assert response is not None
        assert response.status == 101
        assert (response.get("Upgrade") or "").lower() == "websocket"
        assert (response.get("Connection") or "").lower() == "upgrade"
        assert response.get("Sec-WebSocket-Accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert wire.exactly(5) == b"first"
        data = os.urandom(1_000_000)
        sender = threading.Thread(target=wire.sock.sendall, args=(data,))
        sender.start()
        assert wire.exactly(len(data)) == data
        sender.join()
    assert waits(front.function.closed)


def test_a_function_that_ends_the_websocket_ends_it_for_the_client(front: Front) -> None:
    front.function.behaviour = says(SWITCH + b"bye", "close")
    with front.asked(WEBSOCKET) as wire:
        assert response_of(wire).status == 101
        assert wire.exactly(3) == b"bye"
        assert not wire.more()


def test_a_websocket_may_be_refused(front: Front) -> None:
    front.function.behaviour = says(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
    with front.asked(WEBSOCKET) as wire:
        response = response_of(wire)
        assert (response.status, response.body) == (403, b"no")


def test_a_switch_to_something_else_is_502(front: Front) -> None:
    front.function.behaviour = says(SWITCH.replace(b": websocket", b": h2c"))
    with front.asked(WEBSOCKET) as wire:
        assert response_of(wire).status == 502
