"""HTTP calls with a deadline: their time-out is for the whole of an answer, not for each read of it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
from collections import deque
from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from ..._lib.per_process import PerProcess
from ...model import ProviderError
from ..answer import read_whole

PIECE = 2**16
"""Bytes that are read at a time."""

MAX_IDLE = 32
"""Sessions that a process keeps while nobody uses them."""


class Answer(NamedTuple):
    """An answer that was read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body's content.

        :raises ProviderError: it is no JSON.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ProviderError(f"the gateway's answer is not JSON: {error}") from error


class Client:
    """Makes calls over kept connections.

    Safe for threads and after a fork: a session belongs to one process and serves one thread at a time. It
    does not belong to the thread for good, since each flight has a thread of its own and would find no
    connection to use again.

    :param connect_timeout: seconds for a connection.
    :param ca_file: the certificates to trust; ``None``: those that come with requests.
    """

    def __init__(self, connect_timeout: float, ca_file: str | None) -> None:
        self._connect_timeout = connect_timeout
        self._ca_file = ca_file
        self._idle: PerProcess[deque[requests.Session]] = PerProcess(deque)

    def ask(self, method: str, url: str, deadline: float, **options: Any) -> Answer:
        """Make one call. Redirects are not followed.

        :param deadline: monotonic seconds by which the answer must have been read.
        :param options: of ``requests.Session.request``.
        :raises ProviderError: there was no answer in time, or it is too long.
        """
        try:
            return self._exchange(method, url, deadline, options)
        except (requests.RequestException, HTTPError) as error:
            raise ProviderError(f"{method} {url}: {type(error).__name__}: {error}") from error

    def _exchange(self, method: str, url: str, deadline: float, options: dict[str, Any]) -> Answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise requests.Timeout("no time is left")
        timeout: Any = urllib3.Timeout(total=left, connect=min(left, self._connect_timeout))
        idle = self._idle.get()
        try:
            session, used = idle.pop(), True
        except IndexError:
            session, used = _new_session(self._ca_file), False
        try:
            answer = _read(
                session.request(method, url, timeout=timeout, allow_redirects=False, stream=True, **options)
            )
        except BaseException as error:
            session.close()
            if (
                used
                and isinstance(error, requests.ConnectionError)
                and not isinstance(error, requests.Timeout)
            ):
                # A kept connection may be closed just when it is used. All calls made here are idempotent.
                return self._exchange(method, url, deadline, options)
            raise
        if len(idle) < MAX_IDLE:
            idle.append(session)
        else:
            session.close()
        return answer


def _read(response: requests.Response) -> Answer:
    with response:
        pieces = iter(lambda: response.raw.read(PIECE, decode_content=False), b"")
        body = read_whole(pieces, "the gateway")
        if response.status_code < 200:  # the real answer follows on the connection, which therefore must go
            raise ProviderError(f"the gateway answered {response.status_code}")
    return Answer(response.status_code, response.headers, body)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """There is none: even one that is not followed would have its body read, whatever its length."""


def _new_session(ca_file: str | None) -> requests.Session:
    session = _Session()
    session.trust_env = False
    session.verify = ca_file or True
    # A gateway's cookies must not reach its functions, nor theirs the gateway.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.clear()
    session.headers.update({"User-Agent": "scalezero_wsgi", "Accept": "*/*", "Accept-Encoding": "identity"})
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_maxsize=1))
    return session


class _WholeTimeout(io.RawIOBase):
    """Reads from a socket until its present time-out has passed, however the bytes come."""

    def __init__(self, raw: Any, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **keywords: Any) -> None:
        super().__init__(sock, *arguments, **keywords)
        self.fp = io.BufferedReader(_WholeTimeout(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        try:
            return _connect(self._dns_host, self.port, time.monotonic() + float(self.timeout or 0.0))
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "no connection in time") from error
        except OSError as error:
            raise NewConnectionError(self, f"no connection: {error}") from error


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    """Connect by the deadline; each of the name's addresses gets its share of the time."""
    error = OSError("the name has no address")
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for tried, (*_, address) in enumerate(addresses):
        share = (deadline - time.monotonic()) / (len(addresses) - tried)
        try:
            sock = socket.create_connection((str(address[0]), address[1]), max(share, 0.001))
        except OSError as failed:
            error = failed
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise error


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        super().init_poolmanager(*arguments, **keywords)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
