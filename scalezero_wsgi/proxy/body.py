"""The client's body on its way to the function.

``wsgi.input`` blocks, and the function may answer before it has the whole body. So a body that has not
arrived yet is read in a thread of its own, while the request's own thread watches the function.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import socket
import threading
import time
from typing import TYPE_CHECKING, Protocol

from ..servers.client import bytes_at_hand, client_descriptor
from .errors import ClientBodyError, Refused

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, WSGIEnvironment

PIECE = 64 * 1024  # bytes; what is read at once of a body that has arrived
FIRST_PIECE = 4 * 1024  # bytes; what a slow client is asked for, which blocks until it has come
LARGEST_PIECE = 256 * 1024  # bytes; what a fast one is asked for in the end
QUICK = 0.05  # seconds; a piece that came faster is followed by one of twice the size
STOP_PATIENCE = 5.0  # seconds; for a server that does not tell the client's socket


class Body(Protocol):
    """A body that is read in pieces, to be sent on."""

    descriptor: int | None
    """Becomes readable when there is another piece; ``None`` if there always is one."""

    ended: bool
    """Whether ``take()`` has returned the last piece: with a known length that is plain at once."""

    def take(self) -> bytes | None:
        """Return the next piece, ``b""`` if it has not come yet, ``None`` at the end; never block.

        :raises ClientBodyError: there will be none.
        """

    def stop(self) -> None:
        """Read no more."""


def body_of(environ: WSGIEnvironment, length: int | None) -> Body:
    """Return the body of a request.

    :param length: bytes; ``None`` if ``wsgi.input`` itself knows where it ends.
    """
    stream = environ["wsgi.input"]
    # waitress has read the whole body before it calls an app. A connection of HTTP/2 serves other requests as
    # well, and one thread alone may read it: there nothing can be answered before the body has come.
    shared = not environ.get("SERVER_PROTOCOL", "HTTP/1.1").startswith("HTTP/1")
    if isinstance(stream, io.BytesIO) or "waitress.client_disconnected" in environ or shared:
        return ArrivedBody(stream, length)
    if length is not None and length <= PIECE and bytes_at_hand(environ) >= length:
        return ArrivedBody(stream, length)
    return PumpedBody(environ, length)


class _Reader:
    """Reads a body to its end, and not beyond."""

    def __init__(self, stream: InputStream, left: int | None) -> None:
        self._stream = stream
        self.left = left

    def read(self, size: int) -> bytes | None:
        left = self.left
        if left is not None:
            if left == 0:
                return None
            size = min(size, left)
        try:
            piece = self._stream.read(size)
        except Exception as error:  # each server has errors of its own for a chunk that is not valid
            raise ClientBodyError(str(error) or type(error).__name__) from error
        if left is None:
            return piece or None
        if not piece:
            raise ClientBodyError(f"{left} bytes are missing")
        self.left = left - len(piece)
        return piece


class ArrivedBody:
    """A body that the server holds already, so that reading it does not block."""

    descriptor: int | None = None

    def __init__(self, stream: InputStream, length: int | None) -> None:
        self._reader = _Reader(stream, length)
        self.ended = False

    def take(self) -> bytes | None:
        """Return the next piece, or ``None``."""
        piece = self._reader.read(PIECE)
        self.ended = piece is None or self._reader.left == 0
        return piece

    def stop(self) -> None:
        """Do nothing: nobody reads."""


class PumpedBody:
    """A body that a thread reads; under gevent it is a greenlet.

    The thread is started by the first ``take()``, and ends with the body or with ``stop()``.
    """

    def __init__(self, environ: WSGIEnvironment, length: int | None) -> None:
        self._reader = _Reader(environ["wsgi.input"], length)
        self._client = client_descriptor(environ)
        self._pieces: queue.Queue[bytes | ClientBodyError | None] = queue.Queue(2)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._untaken = length
        self.ended = False
        self._ready, self._signal = socket.socketpair()
        self.descriptor: int | None = self._ready.fileno()

    def _start(self) -> None:
        self._ready.setblocking(False)
        self._thread = threading.Thread(target=self._pump, name="scalezero-body", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # can't start new thread
            self._thread = None
            raise Refused("503 SERVICE UNAVAILABLE", "There is no thread for the request's body.") from None

    def _pump(self) -> None:
        size = FIRST_PIECE
        while not self._stopped:
            begun = time.monotonic()
            try:
                piece: bytes | ClientBodyError | None = self._reader.read(size)
            except ClientBodyError as error:
                piece = error
            quick = time.monotonic() - begun < QUICK
            size = min(2 * size, LARGEST_PIECE) if quick else FIRST_PIECE
            self._pieces.put(piece)
            with contextlib.suppress(OSError):  # closed, as nobody listens any more
                self._signal.send(b"x")
            if not isinstance(piece, bytes) or self._reader.left == 0:
                return

    def take(self) -> bytes | None:
        """Return the next piece, ``b""`` if it has not come yet, ``None`` at the end."""
        if self.ended:
            return None
        if self._thread is None:
            self._start()
        with contextlib.suppress(BlockingIOError):
            self._ready.recv(16)  # before the look into the queue, or a signal could be missed
        try:
            piece = self._pieces.get_nowait()
        except queue.Empty:
            return b""
        if isinstance(piece, ClientBodyError):
            raise piece
        if piece is not None and self._untaken is not None:
            self._untaken -= len(piece)
        self.ended = piece is None or self._untaken == 0
        return piece

    def stop(self) -> None:
        """End the thread, and with it what the server may still want to read of this connection.

        The server reads the connection again once the request is over, which two threads must not do.
        """
        self._stopped = True
        thread, deadline = self._thread, time.monotonic() + STOP_PATIENCE
        while thread is not None and thread.is_alive() and time.monotonic() < deadline:
            if self._client is not None and not self.ended:
                _end_of_input(self._client)
            with contextlib.suppress(queue.Empty):  # it may wait for room
                self._pieces.get_nowait()
            thread.join(0.05)
        self._ready.close()
        self._signal.close()


def _end_of_input(client: int) -> None:
    """Let reading from a client end at once.

    By a second descriptor, since ``SSLSocket.shutdown`` would drop TLS for what is still to be sent.
    """
    with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(client)) as twin:
        twin.shutdown(socket.SHUT_RD)
