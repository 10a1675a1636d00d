"""One request and its response on one connection, both ways at once.

Once the request is out the thread only waits in ``recv``. Until then the socket does not block, and
``poll`` waits for whichever comes first: the function's answer, room to send, or more of the client's body.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ..model import ClientGone
from ..servers.client import client_disconnected
from ..servers.slots import give_back
from .body import Body
from .errors import BadResponse, ClientBodyError, ConnectionUnusable, FunctionTimeout
from .parser import ResponseReader
from .pool import Connection, Pool, wait

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

SLICE = 0.5
"""Seconds after which the thread looks whether the client is still there."""

RECEIVE = 64 * 1024
"""Bytes that are read at once of a response."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Timeouts(NamedTuple):
    """How long to wait, in seconds.

    :param head: for the response's head, once the request is sent.
    :param read: for the function to take more of the request, or to send more of the response's body.
    :param body: for the client to send more of its body.
    :param slice: after how long any wait is interrupted for a check.
    """

    head: float
    read: float
    body: float
    slice: float = SLICE


class Outgoing:
    """The unsent rest of a request.

    :param head: the request line and the headers, with the empty line.
    :param body: ``None`` if there is none.
    :param chunked: whether the body is sent in chunks.
    :raises ClientBodyError: the body broke off.
    :ivar any_sent: whether a byte has gone out.
    """

    __slots__ = ("_body", "_chunked", "_data", "any_sent")

    def __init__(self, head: bytes, body: Body | None = None, chunked: bool = False) -> None:
        self._data: bytes | memoryview = head
        self._body = body
        self._chunked = chunked
        self.any_sent = False
        if body is not None:
            first = self._next_piece()
            if first:  # goes out along with the head
                self._data = head + first

    def _next_piece(self) -> bytes:
        if self._body is None:
            return b""
        piece = self._body.take() or b""
        if piece and self._chunked:
            # Not formatted by %b, which takes more memory than it needs and gives it back: at these sizes the
            # system does that page by page, and an upload took twice the processor time.
            piece = b"".join((b"%x\r\n" % len(piece), piece, b"\r\n"))
        if self._body.ended:
            self._body = None
            if self._chunked:
                piece += b"0\r\n\r\n"
        return piece

    def has_data(self) -> bool:
        """Take on the next piece of the body if it has come, and return whether there is something to send.

        :raises ClientBodyError: the body broke off.
        """
        if not self._data and self._body is not None:
            self._data = self._next_piece()
        return bool(self._data)

    @property
    def is_done(self) -> bool:
        """Whether all has been sent."""
        return self._body is None and not self._data

    @property
    def descriptor(self) -> int | None:
        """What to poll for more of the client's body; ``None`` if there is something to send."""
        return None if self._data or self._body is None else self._body.descriptor

    def send(self, sock: socket.socket) -> None:
        """Send as much as goes at once; raises what ``socket.send`` does."""
        size = sock.send(self._data)
        self.any_sent = True
        self._data = b"" if size == len(self._data) else memoryview(self._data)[size:]


class Exchange:
    """Sends a request and reads its response. For one thread; ``close()`` must be called in the end.

    :param environ: of the request: tells if the client is still connected.
    :param release_slot: whether to give the request's slot back in a wait that lasts.
    :ivar reader: what has been read of the response.
    """

    __slots__ = (
        "_connection", "_deadline", "_environ", "_gone", "_outgoing", "_pool", "_release_slot", "_sending",
        "_slice", "_sock", "_spoiled", "_timeouts", "reader",
    )  # fmt: skip

    def __init__(
        self,
        pool: Pool,
        connection: Connection,
        outgoing: Outgoing,
        reader: ResponseReader,
        timeouts: Timeouts,
        environ: WSGIEnvironment,
        release_slot: bool = False,
    ) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._sock = connection.sock
        self._outgoing = outgoing
        self._timeouts = timeouts
        self._environ = environ
        self._release_slot = release_slot
        self._gone: Callable[[], bool] | None = None
        self._sending = True
        self._spoiled = False  # whether part of the request is never sent
        self._deadline = 0.0
        self._slice = timeouts.slice
        self.reader = reader

    def begin(self) -> bytes:
        """Send the request, read the response's head, and return what has come of the body with it.

        :raises ConnectionUnusable: the connection was closed before the first byte of a response.
        :raises FunctionError: there is no valid response, or none in time.
        :raises ClientBodyError: the client's body broke off, or did not come in time.
        :raises ClientGone: the client has disconnected.
        """
        outgoing, reader = self._outgoing, self.reader
        self._sock.settimeout(self._slice)
        try:
            outgoing.send(self._sock)
        except (*_WOULD_BLOCK, TimeoutError):
            pass
        except OSError as error:
            raise ConnectionUnusable(f"the request could not be sent: {error}", True) from None
        self._sending = not outgoing.is_done
        self._deadline = time.monotonic() + self._timeouts.head
        while True:
            data = self._receive()
            if not data:
                if not reader.begun:
                    raise ConnectionUnusable("it closed the connection without an answer", False)
                reader.end()
            body = reader.feed(data)
            if reader.status:
                if reader.error is not None and not body:
                    raise reader.error
                return body
            self._check()  # it may send byte by byte, or one 1xx after another

    def next_piece(self) -> bytes:
        """Return the next piece of the response's body; ``b""`` at its end.

        :raises FunctionError: the body breaks off.
        :raises ClientBodyError: the client's body broke off, or did not come in time.
        :raises ClientGone: the client has disconnected.
        """
        reader = self.reader
        while not reader.complete:
            if reader.error is not None:
                raise reader.error
            self._deadline = time.monotonic() + self._timeouts.read
            data = self._receive()
            if not data:
                reader.end()
                break
            piece = reader.feed(data)
            if piece:
                return piece
        return b""

    def close(self) -> None:
        """Give the connection back if it can serve another request, or close it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self.reader.complete and self.reader.reusable and not self._sending and not self._spoiled:
            self._pool.give_back(connection)
        else:
            connection.close()

    def detach(self) -> Connection:
        """Hand the connection out, for a tunnel; ``close()`` does nothing any more."""
        connection, self._connection = self._connection, None
        return connection  # type: ignore[return-value]  # nobody has closed it yet

    def _receive(self) -> bytes:
        """Return what comes next, ``b""`` at the end; send meanwhile what is still to be sent."""
        if self._sending:
            data = self._receive_while_sending()
            if data is not None:
                return data
        try:
            return self._sock.recv(RECEIVE)
        except TimeoutError:
            with self._while_waiting():
                return self._receive_late()
        except OSError as error:
            self._raise_lost(error)

    def _receive_late(self) -> bytes:
        """Return what comes next from a function that takes longer than a slice."""
        while True:
            self._check()
            try:
                return self._sock.recv(RECEIVE)
            except TimeoutError:
                pass
            except OSError as error:
                self._raise_lost(error)

    def _receive_while_sending(self) -> bytes | None:
        """Send, and return what comes meanwhile; ``None`` once all is sent."""
        sock, outgoing, timeouts = self._sock, self._outgoing, self._timeouts
        sock.settimeout(0.0)
        try:
            self._deadline = time.monotonic() + timeouts.read
            body_deadline = time.monotonic() + timeouts.body
            while True:
                moved = False
                if outgoing.has_data():
                    try:
                        outgoing.send(sock)
                        moved = True
                        self._deadline = time.monotonic() + timeouts.read
                    except _WOULD_BLOCK:
                        pass
                    except OSError:  # it does not read on, but may have answered
                        self._sending, self._spoiled = False, True
                    body_deadline = time.monotonic() + timeouts.body
                if outgoing.is_done:
                    self._sending = False
                if not self._sending:
                    self._deadline = time.monotonic() + timeouts.head
                    return None
                try:
                    return sock.recv(RECEIVE)
                except _WOULD_BLOCK:
                    pass
                except OSError as error:
                    self._raise_lost(error)
                if not moved:
                    self._wait(body_deadline)
        finally:
            sock.settimeout(self._slice)

    def _wait(self, body_deadline: float) -> None:
        """Wait for room to send, for the client's body, or for the response."""
        descriptor, client = self._sock.fileno(), self._outgoing.descriptor
        if client is None:
            if not wait(self._slice, (descriptor, select.POLLIN | select.POLLOUT)):
                self._check()
        else:
            with self._while_waiting():
                came = wait(self._slice, (descriptor, select.POLLIN), (client, select.POLLIN))
            if not came and time.monotonic() >= body_deadline:
                raise ClientBodyError("it did not come in time", "408 REQUEST TIMEOUT")

    def _while_waiting(self) -> AbstractContextManager[None]:
        return give_back(self._environ) if self._release_slot else nullcontext()

    def _check(self) -> None:
        """Go on waiting, or raise."""
        if time.monotonic() >= self._deadline:
            if self._sending:
                raise FunctionTimeout("it did not take the request in time")
            what = "more of its response" if self.reader.status else "the response's head"
            raise FunctionTimeout(f"{what} did not come in time")
        if self._gone is None:
            self._gone = client_disconnected(self._environ) or _never
        if self._gone():
            raise ClientGone

    def _raise_lost(self, error: OSError) -> NoReturn:
        if not self.reader.begun:
            raise ConnectionUnusable(f"the connection broke: {error}", False) from None
        raise BadResponse(f"the response is incomplete: {error}") from None


def _never() -> bool:
    return False
