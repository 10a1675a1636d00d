"""Websockets: a tunnel between the client's socket and the function's (RFC 9110 section 7.8, RFC 6455)."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..servers.server import Server, this_server
from .pool import Connection, wait

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

PIECE = 64 * 1024  # bytes; the most that is held in each direction
UPGRADED = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
"""Headers of a 101. PEP 3333 leaves them to the server, and gunicorn sends them if it is told to."""

SLICE = 0.5  # seconds between two looks whether the worker is to stop

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def asks_for_websocket(environ: WSGIEnvironment) -> bool:
    """Return whether the request asks to switch to a websocket."""
    upgrade = environ.get("HTTP_UPGRADE")
    if upgrade is None or upgrade.strip().lower() != "websocket" or environ["REQUEST_METHOD"] != "GET":
        return False
    if environ.get("SERVER_PROTOCOL") != "HTTP/1.1":  # others have no Upgrade: RFC 9110 section 7.8
        return False
    connection = environ.get("HTTP_CONNECTION", "").lower().split(",")
    return any(token.strip() == "upgrade" for token in connection)


class Tunnel:
    """An iterable without items that passes bytes both ways until one side closes.

    It runs while the server iterates it, so its request counts as in flight. Both sides are closed then,
    and the server finds its client gone.

    :param client: the socket that the server handed out; the head of the 101 has been sent.
    :param connection: to the function; it is kept here, or it would be closed.
    :param first: what came from the function behind its 101.
    :param carried: called each time bytes were passed on.
    """

    def __init__(
        self,
        client: socket.socket,
        connection: Connection,
        first: bytes,
        carried: Callable[[], object] = lambda: None,
    ) -> None:
        self._client = client
        self._connection = connection
        self._carried = carried
        self._function = function = connection.sock
        self._down = _Direction(function, client, first)
        self._up = _Direction(client, function, b"")

    def __iter__(self) -> Tunnel:
        return self

    def __next__(self) -> bytes:
        try:
            self._run(this_server())
        finally:
            self.close()
        raise StopIteration

    def _run(self, server: Server) -> None:
        client, function = self._client, self._function
        for sock in (client, function):
            sock.settimeout(0.0)
            with contextlib.suppress(OSError):  # a Unix socket has no peers that vanish
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with contextlib.suppress(OSError):  # a reset is an end as well
            self._carried()
            while not server.stopping():
                moved = self._down.move() | self._up.move()
                if moved:
                    self._carried()
                if self._down.has_ended or self._up.has_ended:
                    return
                if not moved:
                    wait(
                        SLICE,
                        (client.fileno(), self._up.reads | self._down.writes),
                        (function.fileno(), self._down.reads | self._up.writes),
                    )
                server.keep_alive()

    def close(self) -> None:
        """Close both sides; harmless twice."""
        self._function.close()
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._client.settimeout(None)  # as gunicorn had it


class _Direction:
    """What flows one way."""

    def __init__(self, source: socket.socket, target: socket.socket, data: bytes) -> None:
        self._source = source
        self._target = target
        self._data = memoryview(data)
        self._at_end = False

    def move(self) -> bool:
        """Pass on what there is, and return whether that was anything."""
        moved = False
        if not self._data and not self._at_end:
            with contextlib.suppress(*_WOULD_BLOCK):
                self._data = memoryview(self._source.recv(PIECE))
                self._at_end = not self._data
                moved = True
        if self._data:
            with contextlib.suppress(*_WOULD_BLOCK):
                size = self._target.send(self._data)  # 0 where gevent's TLS would block
                self._data = self._data[size:]
                moved = moved or bool(size)
        return moved

    @property
    def has_ended(self) -> bool:
        return self._at_end and not self._data

    @property
    def reads(self) -> int:
        return 0 if self._data else select.POLLIN

    @property
    def writes(self) -> int:
        return select.POLLOUT if self._data else 0
