"""A gthread worker of gunicorn in which slow clients take no thread.

gunicorn's own reads a request's head in a thread of its pool, so as many clients as there are threads need
only send half a head each, and nothing else is answered. Here a connection stays in the poller until the
head has come, and of the body what there is, ``BODY_AHEAD`` bytes at most. A client that does not send is
told 408, too long a head 431.

The rest of a long body, and the answer, need the app's thread. :class:`ClientSocket` gives up a client that
is too slow there, and in our thread pool the thread gives its slot back while it waits.

It stands on the methods that it overrides, on ``poller`` and ``nr_conns``, and on the buffer of the parser's
``unreader``, in gunicorn 23 to 27. TLS, which gunicorn begins in a thread, is left to gunicorn.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import selectors
import socket
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from .slots import without_slot
from .thread_pool import PoolThread

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_HEAD = 2**16
"""Bytes of a request's head."""

BODY_AHEAD = 2**14
"""Bytes of a request's body that are waited for before a thread takes the request."""

LINGER = 2.0
"""Seconds that a client has to read its last answer until the connection is closed (RFC 9112 section 9.6)."""

MAX_DRAINED = 2**20
"""Bytes that are read, and dropped, of what a client goes on sending meanwhile."""

_PIECE = 2**14
_SWEEP_EVERY = 0.25
_SHORTEST_CHUNKED_BODY = len(b"0\r\n\r\n")

_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n")
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)


class ClientSocket(socket.socket):
    """A connection that gives up a client that neither sends nor reads."""

    body_timeout = 90.0
    """Seconds without a byte of a body. More than ``FunctionProxy`` has, which knows how to answer then."""

    answer_timeout = 60.0
    """Seconds in which the client takes nothing of its answer."""

    _is_given_up = False

    def end_input(self) -> None:
        """Have ``recv()`` find the end, also one that waits in another thread: within a tenth of a second.

        Not by ``shutdown()``: then what still comes could not be drained, and would destroy the answer.
        """
        self._is_given_up = True

    def _is_ended(self) -> bool:
        return self._is_given_up

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what has come, or what comes next.

        :raises TimeoutError: nothing came for ``body_timeout`` seconds.
        """
        if self._is_ended():
            return b""
        try:
            return super().recv(size, flags | socket.MSG_DONTWAIT)
        except BlockingIOError:
            if not self._wait(select.POLLIN, self.body_timeout):
                if self._is_ended():
                    return b""
                why = f"the client sent nothing for {self.body_timeout:g} s"
                raise TimeoutError(errno.ETIMEDOUT, why) from None
            return super().recv(size, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """Send all.

        :raises BrokenPipeError: nothing was taken for ``answer_timeout`` seconds.
        """
        left = memoryview(data).cast("B")
        while left:
            try:
                left = left[self.send(left, flags | socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                if not self._wait(select.POLLOUT, self.answer_timeout):
                    why = f"the client took nothing for {self.answer_timeout:g} s"
                    raise BrokenPipeError(errno.EPIPE, why) from None

    def _wait(self, event: int, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self, event)
        until = time.monotonic() + timeout
        with _without_slot():
            while (left := until - time.monotonic()) > 0:
                if poll.poll(min(left, 0.1) * 1000):
                    return True
                if event == select.POLLIN and self._is_ended():
                    break
        return False


def _without_slot() -> AbstractContextManager[None]:
    """Return the block in which a thread waits for its client; one of our pool does not count meanwhile."""
    thread = threading.current_thread()
    if isinstance(thread, PoolThread):
        return without_slot(thread.pool, in_order=True)
    return contextlib.nullcontext()


@dataclass(slots=True)
class Arrival:
    """A request that is coming in.

    :ivar since: monotonic seconds since when the head is awaited, or the next byte of the body.
    :ivar needed: how many bytes must have come before a thread takes it; ``None`` while the head has no end.
    """

    since: float
    needed: int | None = None


class Refused(Exception):
    """The request is answered with an error before a thread has seen it."""

    def __init__(self, status: HTTPStatus) -> None:
        self.status = status
        super().__init__(status.phrase)


def bytes_needed(received: bytes) -> int | None:
    """Return how many bytes of a request must have come before a thread takes it.

    Whether head and framing are valid is for gunicorn's parser to say. What is wrong here can only take a
    thread too early.

    :param received: what has come of it.
    :return: ``None`` while the head has no end.
    :raises Refused: the head is too long, or will never end as it is.
    """
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        if len(received) >= MAX_HEAD:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if _BARE_LF.search(received):
            raise Refused(HTTPStatus.BAD_REQUEST)  # RFC 9112 section 2.2; gunicorn would wait for more
        return None
    end += 4
    head = received[:end].lower()
    if b"\r\ntransfer-encoding:" in head:
        return end + _SHORTEST_CHUNKED_BODY
    length = _LENGTH.search(head) if b"\r\ncontent-length:" in head else None
    return end + min(int(length[1]), BODY_AHEAD) if length else end


def without_expectation(received: bytes) -> bytes:
    """Return a request without the demand to be told when to send its body (RFC 9110 section 10.1.1)."""
    end = received.find(b"\r\n\r\n") + 2
    line = received[: received.find(b"\r\n")]
    return _EXPECT.sub(b"", received[:end], 1) + received[end:] if line.endswith(b"HTTP/1.1") else received


class PatientWorker(ThreadWorker):
    """Hands a request to the thread pool when its head, and the beginning of its body, are there.

    ``worker_connections`` of them may come in slowly at once, with ``MAX_HEAD`` and ``BODY_AHEAD`` bytes
    each; beyond that no connection is accepted until one of these is through or given up.
    """

    head_timeout = 10.0
    """Seconds for the whole of a head."""

    body_timeout = 30.0
    """Seconds without a byte of a body's beginning."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._arriving: dict[Any, Arrival] = {}
        self._leaving: dict[ClientSocket, float] = {}
        self._next_sweep = 0.0

    # -- what gunicorn calls

    def accept(self, *where: Any) -> None:
        """Accept a connection; in the main thread. gunicorn 23 would let it be silent for ever."""
        *address, listener = where
        if not address:
            super().accept(listener)
            return
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, client = listener.accept()
            self.nr_conns += 1
            self.enqueue_req(TConn(self.cfg, sock, client, address[0]))

    def enqueue_req(self, conn: Any) -> None:
        """Await the next request of a connection; in the main thread."""
        if self.cfg.is_ssl:
            super().enqueue_req(conn)
            return
        if not conn.initialized:
            sock = conn.sock
            conn.sock = ClientSocket(sock.family, sock.type, sock.proto, sock.detach())
            conn.close = partial(self._close, conn.sock)
            conn.init()
        self._receive(conn, Arrival(time.monotonic()), None)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer; in a thread of the pool. A connection with an unread body is not kept.

        gunicorn would read the body to its end, and 24 and 25 for as long as that takes.
        """
        return bool(super().handle_request(req, conn)) and _finish_body(req, conn)

    def murder_keepalived(self, *args: Any, **options: Any) -> None:
        """Close what is idle; in the main thread, at least once a second."""
        super().murder_keepalived(*args, **options)
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_EVERY
        for conn, arrival in list(self._arriving.items()):
            if now >= arrival.since + self._patience(conn, arrival):
                self._give_up(conn)
        for sock, until in list(self._leaving.items()):
            if now >= until:
                self._left(sock)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """Wait for a second at most: gunicorn 24 to 26 would wait for all of the graceful time-out."""
        super().wait_for_and_dispatch_events(1.0 if timeout is None else min(timeout, 1.0))

    # -- requests that come in

    def _receive(self, conn: Any, arrival: Arrival, _readable: Any) -> None:
        """Take what has come, and hand the request over if that is enough."""
        try:
            while not self._has_come(conn, arrival):
                piece = socket.socket.recv(conn.sock, _PIECE, socket.MSG_DONTWAIT)
                if not piece:
                    break  # it has left: a thread will not wait for it
                _buffer(conn).write(piece)
                if arrival.needed is not None:
                    arrival.since = time.monotonic()
        except BlockingIOError:
            if conn not in self._arriving:
                self._arriving[conn] = arrival
                callback = partial(self._receive, conn, arrival)
                self.poller.register(conn.sock, selectors.EVENT_READ, callback)
            return
        except OSError:
            pass  # the connection is broken; the thread will meet the error, too
        except Refused as refused:
            self._refuse(conn, refused.status)
            return
        self._forget(conn)
        super().enqueue_req(conn)

    def _has_come(self, conn: Any, arrival: Arrival) -> bool:
        size = _buffer(conn).tell()
        if arrival.needed is None and size:
            received = _buffer(conn).getvalue()
            arrival.needed = bytes_needed(received)
            if arrival.needed is not None and size < arrival.needed:
                told = without_expectation(received)
                if told != received:
                    conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n", socket.MSG_DONTWAIT)
                    conn.parser.unreader.buf = io.BytesIO(told)
                    arrival.needed -= len(received) - len(told)
                    size = len(told)
        return arrival.needed is not None and size >= arrival.needed

    def _patience(self, conn: Any, arrival: Arrival) -> float:
        if not self.alive:
            return LINGER if _buffer(conn).tell() else 0.0
        return self.head_timeout if arrival.needed is None else self.body_timeout

    def _give_up(self, conn: Any) -> None:
        if _buffer(conn).tell():
            self._refuse(conn, HTTPStatus.REQUEST_TIMEOUT)
        else:  # a browser that has connected ahead would take a 408 for the answer to its next request
            self._forget(conn)
            self.nr_conns -= 1
            conn.close()

    def _refuse(self, conn: Any, status: HTTPStatus) -> None:
        self._forget(conn)
        self.nr_conns -= 1
        text = f"{status.phrase}\n"
        head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        with contextlib.suppress(OSError):
            answer = f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode("ascii")
            conn.sock.send(answer, socket.MSG_DONTWAIT)
        conn.close(graceful=True)

    def _forget(self, conn: Any) -> None:
        if self._arriving.pop(conn, None):
            self.poller.unregister(conn.sock)

    # -- connections that end

    def _close(self, sock: ClientSocket, graceful: bool = False) -> None:
        """Close a connection; take the place of ``TConn.close``.

        That of gunicorn 26 and 27 waits in the main loop until the client has closed its side, 2 s for each.
        """
        if not graceful or len(self._leaving) >= self.worker_connections:
            sock.close()
            return
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        self._leaving[sock] = time.monotonic() + LINGER
        self.poller.register(sock, selectors.EVENT_READ, self._drain)

    def _drain(self, sock: Any) -> None:
        """Drop what still comes: closing with unread bytes would have the kernel destroy the answer (RST)."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_DRAINED // _PIECE):
                try:
                    if socket.socket.recv(sock, _PIECE, socket.MSG_DONTWAIT):
                        continue
                except BlockingIOError:
                    raise
                except OSError:
                    pass
                break
            self._left(sock)

    def _left(self, sock: ClientSocket) -> None:
        del self._leaving[sock]
        self.poller.unregister(sock)
        sock.close()


def _buffer(conn: Any) -> io.BytesIO:
    """Return what has come and was not parsed, to be written to at its end."""
    buffer: io.BytesIO = conn.parser.unreader.buf
    buffer.seek(0, os.SEEK_END)
    return buffer


def _finish_body(req: Any, conn: Any) -> bool:
    """Drop what the app has not read of a body, if all of it has come; return whether it has."""
    reader = req.body.reader
    if getattr(reader, "parser", None) is not None:  # of chunks, which have not come to their end
        return False
    left = getattr(reader, "length", 0)
    if left > _buffer(conn).tell():
        return False
    if left:
        reader.read(left)
    return True
