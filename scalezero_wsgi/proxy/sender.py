"""The request on its way to the function.

The function may answer before it has the whole body, and may want its answer read before it reads on. So what
does not go out at once is sent by a thread of its own, while the request's own thread reads the answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from .body import Body, end_of_input
from .errors import ClientBodyError, FunctionTimeout, Refused
from .pool import wait

LAST_PIECE = 0.1
"""Seconds for the last piece to go out once the answer is complete."""

STOP_PATIENCE = 5.0
"""Seconds for a body that cannot be interrupted, as its server does not tell the client's socket."""

Result = TypeVar("Result")


class Socket(Protocol):
    """What an exchange needs of a connection's socket; both raise ``TimeoutError``."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Send as much as goes at once."""

    def recv(self, size: int, /) -> bytes:
        """Return what has come, ``b""`` at the end."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Outgoing:
    """The unsent rest of a request.

    :param head: the request line and the headers, with the empty line.
    :param body: ``None`` if there is none.
    :param chunked: whether the body is sent in chunks.
    :raises ClientBodyError: the body broke off.
    """

    __slots__ = ("_chunked", "_data", "body")

    def __init__(self, head: bytes, body: Body | None = None, chunked: bool = False) -> None:
        self._data: bytes | memoryview = head
        self.body = body
        self._chunked = chunked
        if body is not None and body.has_arrived:
            self._data = head + self._next_piece()

    def _next_piece(self) -> bytes:
        if self.body is None:
            return b""
        piece = self.body.take() or b""
        if piece and self._chunked:
            # Not formatted by %b, which takes more memory than it needs and gives it back: at these sizes the
            # system does that page by page, and an upload took twice the processor time.
            piece = b"".join((b"%x\r\n" % len(piece), piece, b"\r\n"))
        if self.body.ended and self._chunked:
            piece += b"0\r\n\r\n"
        return piece

    @property
    def has_data(self) -> bool:
        """Whether there is something to send without a look into the body."""
        return bool(self._data)

    @property
    def is_done(self) -> bool:
        """Whether all has been sent."""
        return not self._data and (self.body is None or self.body.ended)

    def load(self) -> None:
        """Take on the next piece of the body, once it has come.

        :raises ClientBodyError: the body broke off.
        """
        self._data = self._next_piece()

    def send(self, sock: Socket) -> None:
        """Send as much as goes at once; raises what ``socket.send`` does."""
        size = sock.send(self._data)
        self._data = b"" if size == len(self._data) else memoryview(self._data)[size:]


class Sender:
    """Sends the rest of a request in a thread; under gevent it is a greenlet.

    :param sock: with a time-out, and safe for one thread that sends and one that receives.
    :raises Refused: there is no thread for it.
    :ivar ended_at: when it ended, in monotonic seconds; 0.0: it still sends.
    :ivar error: why the body broke off; whoever reads from ``sock`` finds its end then.
    """

    def __init__(self, sock: Socket, outgoing: Outgoing) -> None:
        self._sock = sock
        self._outgoing = outgoing
        self._stopped = False
        self._client_since = 0.0
        self._moved_at = time.monotonic()
        self.ended_at = 0.0
        self.error: ClientBodyError | None = None
        self._thread = threading.Thread(target=self._run, name="scalezero-body", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # can't start new thread
            raise Refused("503 SERVICE UNAVAILABLE", "There is no thread for the request's body.") from None

    @property
    def is_done(self) -> bool:
        """Whether it has sent all."""
        return bool(self.ended_at) and self._outgoing.is_done

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it has ended."""
        self._thread.join(seconds)
        return bool(self.ended_at)

    def is_blocked(self, seconds: float) -> bool:
        """Return whether the function has taken nothing for so long, so that nobody looks at the client."""
        return not self._client_since and time.monotonic() >= self._moved_at + seconds

    def _run(self) -> None:
        try:
            self._send()
        except ClientBodyError as error:
            self.error = error
            end_of_input(self._sock.fileno())
        except (OSError, ValueError):  # the function does not read on, but may have answered; or it is closed
            pass
        finally:
            self.ended_at = time.monotonic()

    def _send(self) -> None:
        sock, outgoing = self._sock, self._outgoing
        while not (self._stopped or outgoing.is_done):
            if not outgoing.has_data:
                self._client_since = time.monotonic()
                outgoing.load()
                self._moved_at = time.monotonic()
                self._client_since = 0.0
            if outgoing.has_data:
                with contextlib.suppress(TimeoutError):  # it is check() that gives up
                    outgoing.send(sock)
                    self._moved_at = time.monotonic()

    def check(self, since: float, for_function: float, for_client: float) -> float | None:
        """Return when it ended, ``None`` while it sends; give up a request that stands still.

        :param since: the wait does not count before that, in monotonic seconds.
        :param for_function: seconds for the function to take more of it.
        :param for_client: seconds for the client to send more of it.
        :raises FunctionTimeout: the function does not take it.
        :raises ClientBodyError: the client does not send it, or its body broke off.
        """
        ended_at = self.ended_at  # before the error, which is there when it has ended by one
        if self.error is not None:
            raise self.error
        if ended_at:
            return ended_at
        now, client_since = time.monotonic(), self._client_since
        if client_since:
            if now >= max(client_since, since) + for_client:
                raise ClientBodyError("it did not come in time", "408 REQUEST TIMEOUT")
        elif now >= max(self._moved_at, since) + for_function:
            raise FunctionTimeout("it did not take the request in time")
        return None

    def stop(self) -> None:
        """End the thread, and with it what the server may still want to read of this connection.

        The server reads the connection again once the request is over, which two threads must not do.
        """
        thread, body = self._thread, self._outgoing.body
        if body is None or body.ended:
            thread.join(LAST_PIECE)
        self._stopped = True
        deadline = time.monotonic() + STOP_PATIENCE
        if thread.is_alive():
            _shut_down(self._sock.fileno())
        while thread.is_alive() and time.monotonic() < deadline:
            if body is not None:
                body.interrupt()
            thread.join(0.05)


class SharedTls:
    """A TLS socket for two threads: OpenSSL lets one in at a time, and neither may wait in there.

    :param timeout: seconds.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        self._lock = threading.Lock()
        sock.settimeout(0.0)

    def send(self, data: bytes | memoryview, /) -> int:
        """Send as much as goes at once."""
        return self._once_ready(lambda: self._send(data))

    def _send(self, data: bytes | memoryview) -> int:
        size = self._sock.send(data)
        if not size:  # what gevent returns in place of the error
            raise ssl.SSLWantWriteError
        return size

    def recv(self, size: int, /) -> bytes:
        """Return what has come, ``b""`` at the end."""
        return self._once_ready(lambda: self._sock.recv(size))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._sock.fileno()

    def _once_ready(self, action: Callable[[], Result]) -> Result:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                with self._lock:
                    return action()
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            if not wait(max(0.0, deadline - time.monotonic()), (self.fileno(), wanted)):
                raise TimeoutError


def _shut_down(descriptor: int) -> None:
    with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(descriptor)) as twin:
        twin.shutdown(socket.SHUT_RDWR)
