"""A client and a function of raw sockets: they send any bytes, and tell exactly what has come."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

PATIENCE = 10.0
"""Seconds after which one side that hangs gives up."""


@dataclass
class Message:
    """A request or a response as it came.

    :ivar whole: whether it came to the end that it had announced.
    """

    line: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1]) if self.line else 0

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class Wire:
    """Reads from a socket what HTTP/1 says, and no more."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.held = b""
        self.reset = False

    def more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except (ConnectionError, OSError):
            self.reset = True
            return False
        self.held += data
        return bool(data)

    def line(self) -> bytes | None:
        while b"\n" not in self.held:
            if not self.more():
                return None
        line, _, self.held = self.held.partition(b"\n")
        return line.rstrip(b"\r")

    def exactly(self, size: int) -> bytes | None:
        pieces, length = [self.held], len(self.held)
        while length < size:
            self.held = b""
            if not self.more():
                self.held = b"".join(pieces)
                return None
            pieces.append(self.held)
            length += len(self.held)
        whole = b"".join(pieces)
        self.held = whole[size:]
        return whole[:size]

    def head(self) -> Message | None:
        message = Message()
        line = self.line()
        if not line:
            return None
        message.line = line.decode("latin-1")
        while True:
            line = self.line()
            if line is None:
                return None
            if not line:
                return message
            name, _, value = line.decode("latin-1").partition(":")
            message.headers.append((name, value.strip(" \t")))

    def body(self, message: Message, until_close: bool) -> None:
        """Read the body of a message; a response may end with the connection."""
        if message.get("Transfer-Encoding"):
            while True:
                size = self.line()
                if size is None:
                    return
                data = self.exactly(int(size.partition(b";")[0], 16))
                if data is None:
                    message.body += self.held
                    return
                message.body += data
                if not data:
                    break
                if self.line() is None:
                    return
            while self.line():
                pass
            message.whole = True
        elif message.get("Content-Length") is not None:
            length = int(message.get("Content-Length") or 0)
            data = self.exactly(length)
            message.body = self.held if data is None else data
            message.whole = data is not None
        elif until_close:
            while self.more():
                pass
            message.body, self.held = self.held, b""
            message.whole = not self.reset
        else:
            message.whole = True


Behaviour = Callable[[Wire, Message], object]
"""What a function does with a request; it returns something true to keep the connection."""


class RawFunction:
    """A function that does what it is told, request by request.

    :ivar requests: the heads of those that came, and their bodies where ``read_body`` is set.
    :ivar connections: how many were opened.
    :ivar closed: is set when the other side has closed one.
    """

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour
        self.read_body = True
        self.requests: list[Message] = []
        self.connections = 0
        self.closed = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> RawFunction:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in list(self._open):
            hang_up(sock)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.connections += 1
                self._open.add(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        try:
            sock.settimeout(6 * PATIENCE)
            while request := wire.head():
                if self.read_body:
                    wire.body(request, until_close=False)
                self.requests.append(request)
                assert self.behaviour is not None
                if not self.behaviour(wire, request):
                    break
        except OSError:
            pass
        finally:
            self._open.discard(sock)
            sock.close()
            self.closed.set()


def hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def says(data: bytes, then: str = "keep", pieces: int = 1) -> Behaviour:
    """Send some bytes, and then keep the connection, close it in order, or reset it."""

    def behave(wire: Wire, _: Message) -> bool:
        size = -(-len(data) // pieces) or 1
        for start in range(0, len(data), size):
            wire.sock.sendall(data[start : start + size])
            if pieces > 1:
                time.sleep(0.005)
        if then == "reset":
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return then == "keep"

    return behave


def ask(address: tuple[str, int], data: bytes, then: str = "read", expects_body: bool = True) -> Message:
    """Send bytes, and return the final response.

    :param then: ``"half-close"`` to say behind the request that no more will come.
    :param expects_body: false for HEAD.
    """
    with socket.create_connection(address, PATIENCE) as sock:
        with contextlib.suppress(ConnectionError):  # it may have answered and closed already
            sock.sendall(data)
            if then == "half-close":
                sock.shutdown(socket.SHUT_WR)
        wire = Wire(sock)
        return response_of(wire, expects_body)


def response_of(wire: Wire, expects_body: bool = True) -> Message:
    while True:
        response = wire.head()
        if response is None:
            return Message()
        if response.status >= 200 or response.status == 101:
            break
    if response.status in (101, 204, 304) or not expects_body:
        response.whole = True
    else:
        wire.body(response, until_close=True)
    return response
