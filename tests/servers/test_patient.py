"""The patient worker under a real gunicorn: clients that neither send nor read keep nobody waiting."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.harness import Server, gunicorn
from tests.support.waiting import SOON, until

soak = pytest.mark.soak

THREADS = 2
CROWD = 80
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
PROBE = b"GET /probe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@contextlib.contextmanager
def serving(log: Path, worker: str, *options: str) -> Iterator[Server]:
    app = "tests.servers.patient_site:application"
    quick = {"QUICK": "1"} if worker.endswith("QuickWorker") else {}
    with gunicorn(app, log, "--threads", str(THREADS), *options, worker=worker, env=quick) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose time-outs take a second."""
    with serving(
        tmp_path_factory.mktemp("quick") / "log", "tests.servers.patient_site.QuickWorker"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with time-outs of 10 and 30 seconds."""
    log = tmp_path_factory.mktemp("patient") / "log"
    with serving(log, "scalezero_wsgi.servers.patient.PatientWorker") as server:
        yield server


def connect(server: Server, said: bytes = b"") -> socket.socket:
    assert isinstance(server.address, tuple)
    sock = socket.create_connection(server.address, 10)
    sock.sendall(said)
    return sock


def rest_of(sock: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            received += piece
    return received


def answer(server: Server, *said: bytes) -> bytes:
    with connect(server) as sock:
        for piece in said:
            sock.sendall(piece)
            time.sleep(0.002)  # so that it comes as a piece of its own; nothing depends on it
        return rest_of(sock)


@contextlib.contextmanager
def crowd(server: Server, said: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(server, said)) for _ in range(CROWD)]


FEW = ("silent", "half a head", "a body that does not come", "answered for the last time")
IDLE = {
    "silent": b"",
    "half a head": HEAD,
    "a body that does not come": HEAD + b"Content-Length: 10\r\n\r\n",
    "a body that has begun": HEAD + b"Content-Length: 10\r\n\r\n12345",
    "chunks that do not come": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    "a long body that has begun": HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 5000,
    "a body that waits for a 100": HEAD + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
    "kept alive": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "answered for the last time": PROBE,
    "an unread body": b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 20000,
}


@pytest.mark.parametrize("kind", [kind if kind in FEW else pytest.param(kind, marks=soak) for kind in IDLE])
def test_idle_connections_keep_nobody_waiting(kind: str, patient: Server) -> None:
    with crowd(patient, IDLE[kind]):
        begun = time.monotonic()
        assert answer(patient, PROBE).startswith(OK)
        assert time.monotonic() - begun < SOON


SLOW = ["half a head", pytest.param("a body that does not come", marks=soak)]


@pytest.mark.parametrize("kind", [*SLOW, pytest.param("chunks that do not come", marks=soak)])
def test_who_does_not_send_is_told_so(kind: str, server: Server) -> None:
    assert answer(server, IDLE[kind]).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


@soak
def test_who_says_nothing_is_told_nothing(server: Server) -> None:
    assert answer(server) == b""


@soak
def test_the_time_is_for_the_whole_of_a_head(server: Server) -> None:
    with connect(server, HEAD) as sock:
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < begun + 20:
                sock.sendall(b"X: y\r\n")
                time.sleep(0.05)
        assert time.monotonic() - begun < 10
        assert rest_of(sock)[:12] in (b"HTTP/1.1 408", b"")  # a reset may have come before it


@soak
def test_a_body_may_take_its_time(server: Server) -> None:
    pieces = [HEAD + b"Connection: close\r\nContent-Length: 8\r\n\r\n", *[b"x"] * 8]
    with connect(server) as sock:
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(0.2)  # longer in all than body_timeout
        assert b"\r\n\r\n8 " in rest_of(sock)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([HEAD + b"Connection: close\r\nContent-Length: 5\r\n\r\n12345"], "5 -"),
        ([bytes([byte]) for byte in PROBE], "0 -"),
        (
            [HEAD + b"Connection: close\r\nContent-Length: 50000\r\n\r\n", b"x" * 25000, b"x" * 25000],
            "50000 -",
        ),
        (
            [HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"],
            "3 -",
        ),
        (
            [
                HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3",
                b"\r\nabc\r\n",
                b"0\r\n\r\n",
            ],
            "3 -",
        ),
        ([b"GET / HTTP/1.0\r\n\r\n"], "0 -"),
        ([b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 8000 + b"\r\nConnection: close\r\n\r\n"], "0 -"),
    ],
)
def test_what_comes_in_pieces_is_one_request(said: list[bytes], told: str, server: Server) -> None:
    answered = answer(server, *said)
    assert answered[8:].startswith(b" 200 OK")
    assert answered.endswith(f"\r\n\r\n{told}\n".encode())


def test_requests_on_one_connection(server: Server) -> None:
    with connect(server) as sock:
        for _ in range(3):
            sock.sendall(HEAD + b"Content-Length: 3\r\n\r\n")
            sock.sendall(b"abc")
            received = b""
            while not received.endswith(b"3 -\n"):
                received += sock.recv(4096)
            assert received.startswith(OK)


@pytest.mark.parametrize("body", [b"\n" * 5, b"\r\n\r\n!"])
def test_an_unread_body_is_no_part_of_the_next_request(body: bytes, server: Server) -> None:
    with connect(server, b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n" + body) as sock:
        received = b""
        while not received.endswith(b"unread -\n"):
            received += sock.recv(4096)
        for byte in PROBE:
            sock.sendall(bytes([byte]))
        assert rest_of(sock).endswith(b"0 -\n")


def test_who_waits_for_a_100_gets_one(server: Server) -> None:
    with connect(
        server, HEAD + b"Connection: close\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n"
    ) as sock:
        assert sock.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        answered = rest_of(sock)
        assert answered.startswith(OK)
        assert answered.endswith(b"3 -\n")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X" * 100_000, 431),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"\x16\x03\x01\n\x00", 400),
        (HEAD + b"Content-Length: -5\r\n\r\n", 400),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    ],
)
def test_what_no_request_can_be_is_refused_at_once(said: bytes, status: int, server: Server) -> None:
    with connect(server) as sock:
        begun = time.monotonic()
        sock.sendall(said)
        answered = sock.recv(65536)
        assert re.match(rb"HTTP/1\.1 %d " % status, answered), answered
        assert time.monotonic() - begun < 0.9  # not after the second of a time-out


def test_who_leaves_in_between_is_forgotten(server: Server) -> None:
    for said in IDLE.values():
        connect(server, said).close()
    assert answer(server, PROBE).startswith(OK)


BEGUN = {
    "a long body": HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 20000,
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "an answer": b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n",
}


@soak
@pytest.mark.parametrize("kind", BEGUN)
def test_with_the_hook_a_thread_that_waits_for_its_client_does_not_count(kind: str, tmp_path: Path) -> None:
    worker = "scalezero_wsgi.servers.patient.PatientWorker"
    hook = ["-c", "python:scalezero_wsgi.integrations.gunicorn"]
    with serving(tmp_path / "log", worker, *hook) as server, crowd(server, BEGUN[kind]):
        # Each takes some of the processor first, and is given up after a minute or more.
        until(lambda: answer(server, PROBE).startswith(OK), timeout=20)


@soak
@pytest.mark.parametrize("kind", ["a long body", "an answer"])
def test_a_thread_is_not_kept_for_ever(kind: str, server: Server) -> None:
    """What has begun takes a thread, here both of them; after a second each is given up."""
    with connect(server, BEGUN[kind]), connect(server, BEGUN[kind]):
        time.sleep(0.1)
        begun = time.monotonic()
        assert answer(server, PROBE).startswith(OK)
        assert time.monotonic() - begun < 10


@soak
def test_a_stop_does_not_wait_for_idle_connections(tmp_path: Path) -> None:
    worker = "scalezero_wsgi.servers.patient.PatientWorker"
    with contextlib.ExitStack() as clients:
        with serving(tmp_path / "log", worker) as server:
            for said in (b"", HEAD):
                clients.enter_context(connect(server, said))
            until(lambda: answer(server, PROBE).startswith(OK))
            begun = time.monotonic()
        assert time.monotonic() - begun < 4.5  # a graceful time-out is 5 s, a head's 10
