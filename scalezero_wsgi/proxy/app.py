"""The WSGI app: it finds the function, has the request sent, and turns what happens into an answer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .._lib.per_process import PerProcess
from ..model import ClientGone, Function, SettingError
from ..servers.client import client_socket, reset_client
from .body import Body, body_of
from .errors import BrokenOff, ClientBodyError, ConnectionUnusable, FunctionError, Refused
from .exchange import SLICE, Exchange, Timeouts
from .parser import ResponseReader
from .pool import Endpoint, Pool, endpoint_of
from .request import check_method, framing_of, head_of
from .sender import Outgoing
from .upgrade import UPGRADED, Tunnel, asks_for_websocket

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger("scalezero_wsgi")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
DEFAULT_PREFIX = "/function/"


class FunctionProxy:
    """WSGI app that passes a request on to its function and the function's response back.

    A request without a function is answered with 404, an unreachable function or one that does not speak
    HTTP with 502, one that does not answer in time with 504, a client whose body does not come with 408; no
    address is in the answer, the reason goes to the logger ``scalezero_wsgi``. A failure in the midst of a
    response's body raises a ``ConnectionResetError``, so that the server breaks the connection off.

    ``Upgrade: websocket`` becomes a tunnel under gunicorn, which hands the client's socket out, and is
    answered with 501 elsewhere. CONNECT and TRACE are answered with 405.

    Safe for threads; sockets are opened on first use, in each process its own, so a fork is harmless. A
    request's body that has not arrived yet is read in a thread of its own, for as long as it takes.

    :param endpoint: where the function is: a template such as ``"http://{name}.{namespace}.svc:8080"``, or
        a callable that is given the ``Function`` and returns a base URL. By default what the middleware
        put into ``environ["scalezero_wsgi.endpoint"]``.
    :param prefix: ``<prefix><name>`` is taken off the path; a path that does not begin so is passed whole.
        By default the ``route`` of the middleware around it, or ``"/function/"`` without one.
    :param connect_timeout: seconds for one attempt to connect.
    :param head_timeout: seconds for the head of the function's response, once the request is sent; by
        default as ``read_timeout``.
    :param read_timeout: seconds without a byte of the response's body, or without room for another byte of
        the request's, before giving up.
    :param body_timeout: seconds without a byte of the client's body.
    :param connect_patience: seconds to go on trying to connect after a cold start, when a function counts
        as available a little before it listens. A request that did not wait is tried once.
    :param trust_forwarded: whether a client's ``Forwarded`` and ``X-Forwarded-*`` are kept, with ours
        behind them; only for a proxy in front that writes them. Otherwise they are ours alone.
    :param release_slot: whether a request gives its server's slot back while its client's body does not come,
        or the function sends nothing for half a second.
        Then more requests may be in this app than the server has threads.
    :raises SettingError: an argument has a value that is not allowed.
    """

    def __init__(
        self,
        endpoint: str | Callable[[Function], str] | None = None,
        *,
        prefix: str | None = None,
        connect_timeout: float = 5.0,
        head_timeout: float | None = None,
        read_timeout: float = 60.0,
        body_timeout: float = 60.0,
        connect_patience: float = 1.0,
        trust_forwarded: bool = False,
        release_slot: bool = False,
    ) -> None:
        self._endpoint = _template(endpoint) if isinstance(endpoint, str) else endpoint
        self._prefix, self._follows = prefix, prefix is None
        head_timeout = read_timeout if head_timeout is None else head_timeout
        named = {"read": read_timeout, "head": head_timeout, "body": body_timeout}
        for name, seconds in {**named, "connect": connect_timeout}.items():
            if not seconds > 0:
                raise SettingError(f"{name}_timeout must be more than 0 seconds, not {seconds!r}")
        self._timeouts = Timeouts(**named, slice=min(SLICE, *named.values()))
        self._connect_patience = connect_patience
        self._trust = trust_forwarded
        self._release_slot = release_slot
        self._pools = PerProcess(lambda: Pool(connect_timeout))

    def follow_route(self, prefix: str) -> None:
        """Take the prefix of the middleware around this app, unless one was given; it calls this.

        :param prefix: ``""`` if no path names the function.
        :raises SettingError: another middleware, with another route, has the same app.
        """
        if not self._follows:
            return
        if self._prefix not in (None, prefix):
            raise SettingError(
                f"one FunctionProxy cannot follow two routes, {self._prefix!r} and {prefix!r}:"
                " give each middleware its own, or set prefix="
            )
        self._prefix = prefix

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the function's response, or with an error in plain text."""
        identity = environ.get("scalezero_wsgi.function")
        if identity is None:
            return _answer(
                Refused("404 NOT FOUND", "The request names no function."), environ, start_response
            )
        function = Function(*identity)
        call = _Call(environ, function)
        try:
            return self._forward(call, start_response)
        except BaseException as error:
            call.close()
            if isinstance(error, FunctionError):
                logger.warning("function %s did not answer: %s", function, error)
                error = Refused(error.status, error.text)
            elif isinstance(error, ClientBodyError):
                logger.info("function %s: the client's body broke off: %s", function, error.reason)
            elif isinstance(error, ClientGone):
                logger.info("function %s: the client has disconnected", function)
                error = Refused("499 CLIENT CLOSED REQUEST", "")
            if isinstance(error, Refused):
                return _answer(error, environ, start_response)
            raise

    def _forward(self, call: _Call, start_response: StartResponse) -> Iterable[bytes]:
        environ = call.environ
        method: str = environ["REQUEST_METHOD"]
        check_method(method)
        upgrade = asks_for_websocket(environ)
        if upgrade and environ.get("gunicorn.socket") is None:
            raise Refused("501 NOT IMPLEMENTED", "This server cannot pass a websocket on.")
        framing = framing_of(environ)
        endpoint = self._endpoint_of(call)
        stripped = self._stripped(environ.get("PATH_INFO", ""), call.function)
        head = head_of(environ, endpoint, stripped, framing, upgrade, self._trust)
        if framing.has_body:
            call.body = body_of(environ, framing.length)
        first = self._send(call, endpoint, head, framing.length is None, upgrade)
        exchange: Exchange = call.exchange  # type: ignore[assignment]  # _send() made it
        reader = exchange.reader
        headers = [*UPGRADED, *reader.headers] if reader.status == 101 else reader.headers
        write = start_response(f"{reader.status} {reader.reason}", headers)
        if upgrade and reader.status == 101:
            _send_head(write)
            carried = environ.get("scalezero_wsgi.carried", lambda: None)
            return Tunnel(client_socket(environ), exchange.detach(), reader.rest, carried)
        if reader.complete and not exchange.is_sending:
            call.close()
            return [first] if first else []
        if not first and reader.status < 500:  # the middleware may hold an error's head back
            _send_head(write)
        return _Pieces(call, exchange, first)

    def _endpoint_of(self, call: _Call) -> Endpoint:
        if self._endpoint is not None:
            return endpoint_of(self._endpoint(call.function))
        return endpoint_of(call.environ.get("scalezero_wsgi.endpoint") or "")

    def _stripped(self, path: str, function: Function) -> str:
        """Return the part of the path that names the function; empty if the host or a header named it."""
        prefix = DEFAULT_PREFIX if self._prefix is None else self._prefix
        if not prefix or not path.startswith(prefix):
            return ""
        named = path[len(prefix) :].partition("/")[0]
        return prefix + named if (named == function.name or named == str(function)) else ""

    def _send(self, call: _Call, endpoint: Endpoint, head: bytes, chunked: bool, upgrade: bool) -> bytes:
        """Send the request, and return what comes of the response's body along with its head.

        The function may close an idle connection just when it is used (RFC 9112 section 9.3.1). Then a
        request of which nothing was sent is sent on a new one, and so is a safe one, once.
        """
        environ, pool = call.environ, self._pools.get()
        method: str = environ["REQUEST_METHOD"]
        outgoing = Outgoing(head, call.body, chunked)
        connection = pool.take(endpoint.origin)
        while True:
            if connection is None:
                waited = environ.get("scalezero_wsgi.waited", 0.0) > 0
                connection = pool.connect(endpoint.origin, self._connect_patience if waited else 0.0)
            reader = ResponseReader(method, upgrade)
            call.exchange = Exchange(
                pool, connection, outgoing, reader, self._timeouts, environ, self._release_slot
            )
            try:
                return call.exchange.begin()
            except ConnectionUnusable as error:
                if not connection.reused:
                    raise
                if not error.nothing_sent:
                    if call.body is not None or method not in SAFE_METHODS:
                        raise
                    outgoing = Outgoing(head)
                call.exchange.close()
                connection = None


class _Call:
    """What is open for one request."""

    __slots__ = ("body", "environ", "exchange", "function")

    def __init__(self, environ: WSGIEnvironment, function: Function) -> None:
        self.environ = environ
        self.function = function
        self.body: Body | None = None
        self.exchange: Exchange | None = None

    def close(self) -> None:
        """Give the connection back, and read no more of the client's body."""
        if self.exchange is not None:
            self.exchange.close()


class _Pieces:
    """The body of a response as it comes."""

    __slots__ = ("_call", "_exchange", "_first")

    def __init__(self, call: _Call, exchange: Exchange, first: bytes) -> None:
        self._call = call
        self._exchange = exchange
        self._first = first

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        piece = self._first
        if piece:
            self._first = b""
            return piece
        try:
            piece = self._exchange.next_piece()
        except (FunctionError, ClientBodyError, ClientGone) as error:
            raise self._broken_off(error) from None
        if not piece:
            raise StopIteration
        return piece

    def _broken_off(self, error: Exception) -> BrokenOff:
        call = self._call
        if isinstance(error, FunctionError):
            logger.warning("function %s broke off its response: %s", call.function, error)
        else:
            reason = error.reason if isinstance(error, ClientBodyError) else "it has disconnected"
            logger.info("function %s: the client broke off: %s", call.function, reason)
        if call.environ.get("SERVER_PROTOCOL") == "HTTP/1.0" and not self._exchange.reader.has_length:
            call.close()  # first: whoever reads the body from the client's socket would keep it open
            reset_client(call.environ)  # the end of the connection would be the end of the body
        return BrokenOff(str(error))

    def close(self) -> None:
        """End the exchange; the server calls it."""
        self._call.close()


def _template(endpoint: str) -> Callable[[Function], str]:
    try:
        endpoint.format(name="name", namespace="namespace")
    except (LookupError, ValueError) as error:
        raise SettingError(f"endpoint may hold {{name}} and {{namespace}} only, not {endpoint!r}") from error
    return lambda function: endpoint.format(name=function.name, namespace=function.namespace)


def _send_head(write: Callable[[bytes], object]) -> None:
    """Let the server send its head, which it would hold back until there is a piece of the body."""
    with contextlib.suppress(OSError):  # the client has gone, as the server will find out by itself
        write(b"")


def _answer(refused: Refused, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    body = f"{refused.text}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(refused.status, [*headers, *refused.headers])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]
