"""A client that can wait, hang up, half-close and reset: bare sockets on TCP and Unix."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

Address = str | tuple[str, int]


@dataclass(frozen=True)
class Answer:
    """What came back, completely read, and after how many seconds."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def connect(address: Address, timeout: float = 30.0) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(timeout)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def ask(address: Address, path: str, timeout: float = 30.0) -> Answer:
    """One GET on a connection of its own; raises what a broken answer raises."""
    begun = time.monotonic()
    connection = HTTPConnection("localhost", timeout=timeout)
    connection.sock = connect(address, timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return read(connection.getresponse(), begun)
    finally:
        connection.close()


def read(response: HTTPResponse, begun: float) -> Answer:
    body = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body, time.monotonic() - begun)


def request(path: str, method: str = "GET", body: bytes = b"", *, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass
class Held:
    """Requests under way, each in a thread."""

    threads: list[threading.Thread] = field(default_factory=list)
    outcomes: list[Answer | Exception] = field(default_factory=list)

    def join(self, timeout: float = 60.0) -> list[Answer | Exception]:
        deadline = time.monotonic() + timeout
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return self.outcomes

    def statuses(self) -> list[int | Exception]:
        return [outcome.status if isinstance(outcome, Answer) else outcome for outcome in self.join()]


def hold(count: int, call: Callable[[], Answer]) -> Held:
    """Begin ``count`` requests at once."""
    held = Held()

    def run() -> None:
        try:
            held.outcomes.append(call())
        except (OSError, HTTPException) as error:
            held.outcomes.append(error)

    held.threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in held.threads:
        thread.start()
    return held


@contextlib.contextmanager
def sent(address: Address, data: bytes) -> Iterator[socket.socket]:
    """A connection on which ``data`` was sent."""
    with connect(address) as sock:
        sock.sendall(data)
        yield sock
