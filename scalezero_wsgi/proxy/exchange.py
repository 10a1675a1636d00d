"""One request and its response on one connection, both ways at once: the thread of the request reads."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ..model import ClientGone
from ..servers.client import client_disconnected
from ..servers.slots import give_back
from .errors import BadResponse, ConnectionUnusable, FunctionTimeout
from .parser import ResponseReader
from .pool import Connection, Pool
from .sender import Outgoing, Sender, SharedTls, Socket

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


class Exchange:
    """Sends a request and reads its response. For one thread; ``close()`` must be called in the end.

    :param environ: of the request: tells if the client is still connected.
    :param release_slot: whether to give the request's slot back in a wait that lasts.
    :ivar reader: what has been read of the response.
    """

    __slots__ = (
        "_asked_at", "_connection", "_environ", "_gone", "_outgoing", "_pool", "_release_slot", "_sender",
        "_sock", "_timeouts", "reader",
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
        self._sock: Socket = connection.sock
        self._outgoing = outgoing
        self._timeouts = timeouts
        self._environ = environ
        self._release_slot = release_slot
        self._gone: Callable[[], bool] | None = None
        self._sender: Sender | None = None
        self._asked_at = 0.0
        self.reader = reader

    def begin(self) -> bytes:
        """Send the request, read the response's head, and return what has come of the body with it.

        :raises ConnectionUnusable: the connection was closed before the first byte of a response.
        :raises FunctionError: there is no valid response, or none in time.
        :raises ClientBodyError: the client's body broke off, or did not come in time.
        :raises ClientGone: the client has disconnected.
        """
        connection: Connection = self._connection  # type: ignore[assignment]  # nobody has closed it yet
        outgoing, reader, sock = self._outgoing, self.reader, connection.sock
        sock.settimeout(self._timeouts.slice)
        try:
            outgoing.send(sock)
        except (*_WOULD_BLOCK, TimeoutError):
            pass
        except OSError as error:
            raise ConnectionUnusable(f"the request could not be sent: {error}", True) from None
        if not outgoing.is_done:
            if connection.origin.scheme == "https":
                self._sock = SharedTls(sock, self._timeouts.slice)
            self._sender = Sender(self._sock, outgoing)
        self._asked_at = time.monotonic()
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
                self._let_the_client_be()
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
            self._asked_at = time.monotonic()
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
        sender = self._sender
        if sender is not None:
            sender.stop()
        if self.reader.complete and self.reader.reusable and (sender is None or sender.is_done):
            self._pool.give_back(connection)
        else:
            connection.close()

    @property
    def is_sending(self) -> bool:
        """Whether the request is not sent to its end, and may be sent still."""
        return self._sender is not None and not self._sender.ended_at

    def detach(self) -> Connection:
        """Hand the connection out, for a tunnel; ``close()`` does nothing any more."""
        connection, self._connection = self._connection, None
        if self._sender is not None:
            self._sender.stop()
        return connection  # type: ignore[return-value]  # nobody has closed it yet

    def _let_the_client_be(self) -> None:
        """Wait until nobody reads from the client, where nothing can be answered before."""
        sender, body = self._sender, self._outgoing.body
        if sender is None or body is None or not body.alone:
            return
        if self.reader.complete:
            sender.stop()
            return
        with self._while_waiting():
            while not sender.wait(self._timeouts.slice):
                self._check()
        self._check_request()

    def _receive(self) -> bytes:
        """Return what comes next, ``b""`` at the end."""
        data = None
        if self._sender is None or self._sender.ended_at:
            data = self._receive_at_once()
        if data is None:
            with self._while_waiting():
                data = self._receive_late()
        if not data:
            self._check_request()  # which may have broken off, and ended the waiting by that
        return data

    def _receive_at_once(self) -> bytes | None:
        """Return what comes within a slice, or ``None``."""
        try:
            return self._sock.recv(RECEIVE)
        except TimeoutError:
            return None
        except OSError as error:
            self._raise_lost(error)

    def _receive_late(self) -> bytes:
        """Return what comes next from a function that takes longer, or that the request is still sent to."""
        while True:
            self._check()
            data = self._receive_at_once()
            if data is not None:
                return data

    def _while_waiting(self) -> AbstractContextManager[None]:
        return give_back(self._environ) if self._release_slot else nullcontext()

    def _check(self) -> None:
        """Go on waiting, or raise."""
        since, timeouts = self._check_request(), self._timeouts
        if since is not None:
            head = not self.reader.status
            if time.monotonic() >= since + (timeouts.head if head else timeouts.read):
                what = "the response's head" if head else "more of its response"
                raise FunctionTimeout(f"{what} did not come in time")
        sender = self._sender
        if since is None and sender is not None and not sender.is_blocked(timeouts.slice):
            return  # it reads the body, and so finds out that the client has gone, and how the body ended
        if self._gone is None:
            self._gone = client_disconnected(self._environ) or _never
        if self._gone():
            raise ClientGone

    def _check_request(self) -> float | None:
        """Return since when the response alone is waited for; ``None`` while the request is sent."""
        sender = self._sender
        if sender is None:
            return self._asked_at
        ended_at = sender.check(self._asked_at, self._timeouts.read, self._timeouts.body)
        return None if ended_at is None else max(self._asked_at, ended_at)

    def _raise_lost(self, error: OSError) -> NoReturn:
        self._check_request()
        if not self.reader.begun:
            raise ConnectionUnusable(f"the connection broke: {error}", False) from None
        raise BadResponse(f"the response is incomplete: {error}") from None


def _never() -> bool:
    return False
