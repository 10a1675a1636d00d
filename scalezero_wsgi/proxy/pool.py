"""Connections to functions: they are opened, kept for a while, and used again."""

from __future__ import annotations

import select
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from .errors import FunctionError, FunctionTimeout

MAX_IDLE = 30.0  # seconds that a connection is kept without use
MAX_AGE = 600.0  # seconds after which a connection is not kept any more, so that a new address is found
POOL_SIZE = 256  # idle connections kept for each origin; more may be in use
NUM_ORIGINS = 64  # an endpoint changes with every restart of its function, so old ones must go
FIRST_DELAY = 0.02  # seconds between two attempts to connect, growing by half


class Origin(NamedTuple):
    """Where a function listens."""

    scheme: str
    host: str
    port: int


class Endpoint(NamedTuple):
    """A function's base URL, taken apart.

    :ivar path: what stands before each request's path, without a slash at its end.
    :ivar authority: host and port, as the header ``Host`` has them.
    """

    origin: Origin
    path: str
    authority: str


@lru_cache(maxsize=1024)
def endpoint_of(url: str) -> Endpoint:
    """Take a base URL apart; a user and a password in it are not used.

    :raises FunctionError: it is none of HTTP.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise FunctionError("its endpoint is not a URL") from None
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise FunctionError("its endpoint is not an http:// or https:// URL")
    authority = parts.netloc.rpartition("@")[2]
    default = 443 if parts.scheme == "https" else 80
    return Endpoint(Origin(parts.scheme, host, port or default), parts.path.rstrip("/"), authority)


class Connection:
    """A socket to a function. Whoever loses it, in an error or a cycle of garbage, has it closed by that.

    :ivar born: when it was opened, in monotonic seconds.
    :ivar idle_since: when it was last given back.
    :ivar reused: whether it has served a request before.
    """

    __slots__ = ("__weakref__", "born", "idle_since", "origin", "reused", "sock")

    def __init__(self, origin: Origin, sock: socket.socket, now: float) -> None:
        self.origin = origin
        self.sock = sock
        self.born = self.idle_since = now
        self.reused = False
        # Not __del__: in a cycle of garbage the socket may be finalized first, and warns that it is open.
        weakref.finalize(self, sock.close).atexit = False

    def is_open(self) -> bool:
        """Whether the function has neither closed it nor sent what nobody asked for; never blocks."""
        try:
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close it; harmless twice."""
        self.sock.close()


class Pool:
    """The connections of one process. Safe for threads, without a lock: what is done to a dict or a deque is
    atomic, and a connection that gets lost between two threads is closed.

    :param connect_timeout: seconds for one attempt to connect.
    """

    def __init__(self, connect_timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._idle: dict[Origin, deque[Connection]] = {}
        self._next_sweep = 0.0
        self._tls: ssl.SSLContext | None = None

    def take(self, origin: Origin) -> Connection | None:
        """Return an idle connection that is still open, the one used last; ``None`` if there is none."""
        idle = self._idle.get(origin)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                break
            if self._may_serve(connection, self._clock()) and connection.is_open():
                connection.reused = True
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request, whose answer was read to its end."""
        now = self._clock()
        connection.idle_since = now
        try:
            connection.sock.settimeout(0.0)  # is_open() must not block
        except OSError:
            connection.close()
            return
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle.setdefault(connection.origin, deque())
        idle.append(connection)
        if len(idle) > POOL_SIZE or len(self._idle) > NUM_ORIGINS or now >= self._next_sweep:
            self._next_sweep = now + 1.0
            self._sweep(now)

    @staticmethod
    def _may_serve(connection: Connection, now: float) -> bool:
        return now <= connection.idle_since + MAX_IDLE and now <= connection.born + MAX_AGE

    def _sweep(self, now: float) -> None:
        """Close what has been idle for too long, and what is too much."""
        origins = list(self._idle.items())
        for number, (origin, idle) in enumerate(origins):
            keep = POOL_SIZE if len(origins) - number <= NUM_ORIGINS else 0
            while idle:
                try:
                    oldest = idle.popleft()
                except IndexError:  # another thread was faster
                    break
                if len(idle) < keep and self._may_serve(oldest, now):
                    idle.appendleft(oldest)
                    break
                oldest.close()
            if not idle:
                self._idle.pop(origin, None)

    def connect(self, origin: Origin, patience: float) -> Connection:
        """Open a new connection.

        :param patience: seconds to go on trying while it is refused.
        :raises FunctionError: that was in vain.
        """
        deadline = self._clock() + patience
        delay = FIRST_DELAY
        while True:
            try:
                return self._connect(origin)
            except TimeoutError:
                raise FunctionTimeout(f"no connection within {self._connect_timeout:g} s") from None
            except (OSError, UnicodeError) as error:  # UnicodeError: the host cannot be a name
                if isinstance(error, ssl.SSLError) or self._clock() + delay > deadline:
                    raise FunctionError(f"no connection: {error}") from None
            time.sleep(delay)
            delay *= 1.5

    def _connect(self, origin: Origin) -> Connection:
        sock = socket.create_connection((origin.host, origin.port), self._connect_timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if origin.scheme == "https":
                # An end without TLS's own is not the end of a body.
                sock = self._tls_context().wrap_socket(
                    sock, server_hostname=origin.host, suppress_ragged_eofs=False
                )
        except BaseException:
            sock.close()
            raise
        return Connection(origin, sock, self._clock())

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            self._tls = context
        return self._tls

    @property
    def idle(self) -> dict[Origin, int]:
        """How many connections are kept for each origin."""
        return {origin: len(idle) for origin, idle in list(self._idle.items())}


def wait(seconds: float, *wanted: tuple[int, int]) -> dict[int, int]:
    """Wait until one of the descriptors is ready.

    :param wanted: descriptors with what is waited for: ``select.POLLIN`` and ``POLLOUT``.
    :return: what has happened to which; empty if nothing did.
    """
    poll = select.poll()  # looked up late: gevent replaces it
    for descriptor, events in wanted:
        if events:  # else poll would still tell at once that it has hung up
            poll.register(descriptor, events)
    return dict(poll.poll(seconds * 1000))
