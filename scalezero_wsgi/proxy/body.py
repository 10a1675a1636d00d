"""The client's body, in pieces. ``wsgi.input`` blocks until a piece has come, and cannot be asked before."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from typing import TYPE_CHECKING, Protocol

from ..servers.client import bytes_at_hand, client_descriptor, client_socket
from .errors import ClientBodyError

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, WSGIEnvironment

PIECE = 64 * 1024  # bytes; what is read at once of a body that has arrived
FIRST_PIECE = 4 * 1024  # bytes; what a slow client is asked for, which blocks until it has come
LARGEST_PIECE = 256 * 1024  # bytes; what a fast one is asked for in the end
LARGEST_CHUNK = 64 * 1024  # bytes; the same for chunks: of larger ones malloc gives each copy's memory back
QUICK = 0.05  # seconds; a piece that came faster is followed by one of twice the size


class Body(Protocol):
    """A body that is read in pieces, to be sent on."""

    has_arrived: bool
    """Whether the server holds all of it, so that ``take()`` does not block."""

    alone: bool
    """Whether nothing can be answered while ``take()`` is under way, as the connection is for one thread."""

    ended: bool
    """Whether ``take()`` has returned the last piece: with a known length that is plain at once."""

    def take(self) -> bytes | None:
        """Return the next piece, ``None`` at the end.

        :raises ClientBodyError: there will be none.
        """

    def interrupt(self) -> None:
        """End a ``take()`` that blocks in another thread, where the server tells the client's socket."""


def body_of(environ: WSGIEnvironment, length: int | None) -> Body:
    """Return the body of a request.

    :param length: bytes; ``None`` if ``wsgi.input`` itself knows where it ends.
    """
    stream = environ["wsgi.input"]
    # waitress has read the whole body before it calls an app.
    if isinstance(stream, io.BytesIO) or "waitress.client_disconnected" in environ:
        return ArrivedBody(stream, length)
    if length is not None and length <= PIECE and bytes_at_hand(environ) >= length:
        return ArrivedBody(stream, length)
    # A connection of HTTP/2 has one state for both ways, and for its other requests.
    alone = not environ.get("SERVER_PROTOCOL", "HTTP/1.1").startswith("HTTP/1")
    return ArrivingBody(environ, length, alone)


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
    """A body that the server holds already."""

    has_arrived = True
    alone = False

    def __init__(self, stream: InputStream, length: int | None) -> None:
        self._reader = _Reader(stream, length)
        self.ended = False

    def take(self) -> bytes | None:
        """Return the next piece, or ``None``."""
        piece = self._reader.read(PIECE)
        self.ended = piece is None or self._reader.left == 0
        return piece

    def interrupt(self) -> None:
        """Do nothing: nobody waits."""


class ArrivingBody:
    """A body that the client is still sending."""

    has_arrived = False

    def __init__(self, environ: WSGIEnvironment, length: int | None, alone: bool = False) -> None:
        self.alone = alone
        self._reader = _Reader(environ["wsgi.input"], length)
        self._client = client_descriptor(environ)
        self._end_input = getattr(client_socket(environ), "end_input", None)  # a ClientSocket's
        self._size = FIRST_PIECE
        self._largest = LARGEST_CHUNK if length is None else LARGEST_PIECE
        self.ended = False

    def take(self) -> bytes | None:
        """Return the next piece once it has come, or ``None``."""
        begun = time.monotonic()
        piece = self._reader.read(self._size)
        quick = time.monotonic() - begun < QUICK
        self._size = min(2 * self._size, self._largest) if quick else FIRST_PIECE
        self.ended = piece is None or self._reader.left == 0
        return piece

    def interrupt(self) -> None:
        """End a ``take()`` that blocks. The server finds the connection at its end as well."""
        if self.ended:
            return
        if self._end_input is not None:
            self._end_input()
        elif self._client is not None:
            end_of_input(self._client)


def end_of_input(descriptor: int) -> None:
    """Let whoever reads from a socket find its end at once.

    By a second descriptor, since ``SSLSocket.shutdown`` would drop TLS for what is still to be sent.
    """
    with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(descriptor)) as twin:
        twin.shutdown(socket.SHUT_RD)
