"""A small streaming reverse proxy: the app behind the middleware for ``serve`` and the examples.

.. code-block:: python

    app = ScaleZeroMiddleware(FunctionProxy(), provider)

Bodies are streamed both ways and never held whole, content codings stay as they are, redirects are passed
on, not followed. A request goes out as it came in but for what RFC 9110 section 7.6.1 demands of an
intermediary, and the ``X-Forwarded-*`` headers.

It needs urllib3 2.2 or later, which the extra ``serve`` brings.
"""

from __future__ import annotations

import http.client
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response
from werkzeug.wsgi import ClosingIterator

from ._lib.per_process import PerProcess
from .model import Function, OldLibrary, SettingError

try:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError, ReadTimeoutError
    from urllib3.util import SKIP_HEADER, parse_url

    BaseHTTPResponse.read1  # noqa: B018  # since 2.2
except (ImportError, AttributeError):  # requests takes urllib3 1.26 too, which has no BaseHTTPResponse
    raise OldLibrary("urllib3", version("urllib3"), "2.2", "serve") from None

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger("scalezero_wsgi")

PIECE = 64 * 1024  # bytes; the most that is held of a body at a time
FIRST_DELAY = 0.02  # seconds between two attempts to connect, growing by half
NUM_POOLS = 64  # an endpoint changes with every restart of its function, so old pools must go
POOL_SIZE = 256  # idle connections kept per endpoint; more may be in use

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# RFC 9110 section 7.6.1, and RFC 2616 section 13.5.1 for Proxy-Authenticate and Proxy-Authorization.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"}) | {
    "proxy-authenticate", "proxy-authorization", "transfer-encoding"}  # fmt: skip
_NOT_COPIED = HOP_BY_HOP | {"content-type", "content-length", "x-forwarded-prefix"}

_SCHEME_AND_HOST = re.compile(r"^[a-z][a-z0-9+.-]*://[^/?#]*", re.IGNORECASE)
_OCTET = re.compile(r"%[0-9a-f]{2}|.", re.IGNORECASE | re.DOTALL)
_FOLD = re.compile(r"[ \t]*[\r\n]+[ \t]*")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))  # what may stand in a request line
_PCHAR = "/!$&'()*+,;=:@"  # RFC 3986 section 3.3


class FunctionProxy:
    """WSGI app that passes a request on to its function and the function's response back.

    A request without a function is answered with 404, an unreachable function with 502, one that does not
    answer in time with 504; no address is in the answer, the reason goes to the logger ``scalezero_wsgi``.
    A failure in the midst of a response's body raises, so that the server breaks the connection off.

    Safe for threads; sockets are opened on first use, in each process its own, so a fork is harmless.

    :param endpoint: where the function is: a template such as ``"http://{name}.{namespace}.svc:8080"``, or
        a callable that is given the ``Function`` and returns a base URL. By default what the middleware
        put into ``environ["scalezero_wsgi.endpoint"]``.
    :param prefix: ``<prefix><name>`` is taken off the path; a path that does not begin so is passed whole.
    :param connect_timeout: seconds for one attempt to connect.
    :param read_timeout: seconds without a byte, from the function or towards it, before giving up.
    :param connect_patience: seconds to go on trying to connect after a cold start, when a function counts
        as available a little before it listens. A request that did not wait is tried once.
    :raises SettingError: if the template is not one.
    """

    def __init__(
        self,
        endpoint: str | Callable[[Function], str] | None = None,
        *,
        prefix: str = "/function/",
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
        connect_patience: float = 1.0,
    ) -> None:
        self._endpoint = _template(endpoint) if isinstance(endpoint, str) else endpoint
        self._prefix = prefix
        self._timeout = Timeout(connect=connect_timeout, read=read_timeout)
        self._connect_patience = connect_patience
        self._pools = PerProcess(self._make_pools)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the function's response, or with an error in plain text."""
        identity = environ.get("scalezero_wsgi.function")
        if identity is None:
            return _answer(404, "The request names no function.")(environ, start_response)
        function = Function(*identity)
        try:
            response = self._forward(environ, function)
        except HTTPException as answer:
            return answer(environ, start_response)
        except (HTTPError, _ClientBodyError) as error:
            return _failure(function, error)(environ, start_response)
        start_response(f"{response.status} {response.reason or ''}", _response_headers(response))
        return ClosingIterator(_pieces(response, function), response.close)

    def _forward(self, environ: WSGIEnvironment, function: Function) -> BaseHTTPResponse:
        url = self._endpoint(function) if self._endpoint else environ.get("scalezero_wsgi.endpoint")
        base = parse_url(url or "")
        base_path = (base.path or "").rstrip("/")
        stripped = self._stripped(environ.get("PATH_INFO", ""), function)
        path = _path_as_sent(environ, stripped)
        if base_path and not {".", ".."}.isdisjoint(unquote(path).split("/")):
            raise _answer(400, "The path has dot segments.")  # they could lead out of base_path
        query = environ.get("QUERY_STRING", "")
        target = quote(f"{base_path}{path}{'?' if query else ''}{query}", safe=_VISIBLE, encoding="latin-1")
        framing, body = _framing(environ)
        headers = _request_headers(environ, stripped) | framing
        outgoing = _Outgoing(target, body, self._timeout.read_timeout)
        pool = self._pools.get().connection_from_host(base.host, base.port, base.scheme)
        waited = environ.get("scalezero_wsgi.waited", 0.0) > 0
        patience = self._connect_patience if waited else 0.0
        response = _send(pool, environ["REQUEST_METHOD"], outgoing, headers, patience)
        if response.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            response.close()
            raise ProtocolError("a transfer coding that nobody asked for")  # RFC 9112 section 7.4
        if response.chunked and response.status in (204, 304):
            response.close()  # no chunks will come, but http.client would wait for them
        return response

    def _stripped(self, path: str, function: Function) -> str:
        """Return the part of the path that names the function; empty if the host or a header named it."""
        if not path.startswith(self._prefix):
            return ""
        named = path[len(self._prefix) :].partition("/")[0]
        return self._prefix + named if named in (function.name, str(function)) else ""

    def _make_pools(self) -> PoolManager:
        pools = PoolManager(NUM_POOLS, maxsize=POOL_SIZE, block=False, timeout=self._timeout)
        pools.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        return pools


class _ClientBodyError(Exception):
    """The client's body broke off. Not an ``OSError``, which urllib3 takes for the function's or swallows."""


@dataclass(slots=True)
class _Outgoing:
    """Travels as ``urlopen``'s body to the connection, as ``urlopen`` would rewrite the target on its way."""

    target: str
    body: Iterator[bytes] | None
    timeout: float | None
    fresh: bool = False  # demand a new connection
    reused: bool = False  # the connection had served before


class _FinalResponse(http.client.HTTPResponse):
    """Skips every interim response, not only 100.

    http.client takes a 103 for the response, and the next request on that connection would get the real
    one, which is another client's.
    """

    def begin(self) -> None:
        super().begin()
        while self.status < 200:
            self.headers = cast(Any, None)  # begin() reads on only while there are none
            super().begin()


class _Connection(HTTPConnection):
    response_class = _FinalResponse
    _served = False

    def connect(self) -> None:
        self._served = False
        super().connect()

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **options: Any) -> None:
        del url  # what urlopen made of the target
        outgoing: _Outgoing = body
        if outgoing.fresh:
            self.close()
        if self.is_closed:
            self.connect()
        outgoing.reused, self._served = self._served, True
        self.timeout = outgoing.timeout  # else a slow upload has to keep to the connect timeout
        super().request(method, outgoing.target, body=outgoing.body, headers=headers, **options)


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def _template(endpoint: str) -> Callable[[Function], str]:
    try:
        endpoint.format(name="name", namespace="namespace")
    except (LookupError, ValueError) as error:
        raise SettingError(f"endpoint may hold {{name}} and {{namespace}} only, not {endpoint!r}") from error
    return lambda function: endpoint.format(name=function.name, namespace=function.namespace)


def _send(
    pool: HTTPConnectionPool, method: str, outgoing: _Outgoing, headers: dict[str, str], patience: float
) -> BaseHTTPResponse:
    deadline = time.monotonic() + patience
    delay = FIRST_DELAY
    options: Any = {"redirect": False, "preload_content": False, "decode_content": False, "headers": headers}
    while True:
        try:
            return pool.urlopen(method, "/", body=cast(Any, outgoing), retries=False, **options)
        except NewConnectionError:  # nothing was sent, so any method may be tried again
            if time.monotonic() + delay > deadline:
                raise
            time.sleep(delay)
            delay *= 1.5
        except ProtocolError as error:
            # The function may close an idle connection just when it is used (RFC 9112 section 9.3.1).
            closed = outgoing.reused and isinstance(error.args[-1], ConnectionError)
            if not closed or outgoing.body is not None or method not in SAFE_METHODS:
                raise
            outgoing.fresh = True


def _path_as_sent(environ: WSGIEnvironment, stripped: str) -> str:
    """Return the path after ``stripped``, still encoded: as the client wrote it, where the server tells that.

    ``PATH_INFO`` is decoded, so ``%2F`` and ``/`` look the same in it. ``RAW_URI`` (gunicorn, werkzeug) and
    ``REQUEST_URI`` (uWSGI, waitress, werkzeug) are not, but something may have changed the path since, so
    they count only if they say the same. A proxy in front may have cut the mount point off them.
    """
    path = environ.get("PATH_INFO", "")
    for key in ("RAW_URI", "REQUEST_URI"):
        raw = _SCHEME_AND_HOST.sub("", environ.get(key, "")).partition("?")[0]
        for mount in (environ.get("SCRIPT_NAME", ""), ""):
            if unquote(raw, "latin-1") == mount + path:
                rest = "".join(_OCTET.findall(raw)[len(mount) + len(stripped) :]) or "/"
                if rest.startswith("/"):
                    return rest
    return quote(path[len(stripped) :], safe=_PCHAR, encoding="latin-1") or "/"


def _request_headers(environ: WSGIEnvironment, stripped: str) -> dict[str, str]:
    dropped = _NOT_COPIED | _listed(environ.get("HTTP_CONNECTION", ""))
    sent = {key[5:].replace("_", "-").title(): environ[key] for key in environ if key.startswith("HTTP_")}
    headers = {name: value for name, value in sent.items() if name.lower() not in dropped}
    clients = (environ.get("HTTP_X_FORWARDED_FOR"), environ.get("REMOTE_ADDR"))
    ours = {
        "Host": environ.get("HTTP_HOST"),
        "Content-Type": environ.get("CONTENT_TYPE"),
        "X-Forwarded-For": ", ".join(filter(None, clients)),
        "X-Forwarded-Proto": environ["wsgi.url_scheme"],
        "X-Forwarded-Host": environ.get("HTTP_HOST"),
        "X-Forwarded-Prefix": quote(environ.get("SCRIPT_NAME", "") + stripped, _PCHAR, "latin-1"),
    }
    added_by_urllib3 = {"Accept-Encoding": SKIP_HEADER, "User-Agent": SKIP_HEADER}
    return added_by_urllib3 | headers | {name: value for name, value in ours.items() if value}


def _framing(environ: WSGIEnvironment) -> tuple[dict[str, str], Iterator[bytes] | None]:
    """Return the header that frames the request's body, and the body, which is read only as it is sent."""
    coding = environ.get("HTTP_TRANSFER_ENCODING", "").strip().lower()
    if coding == "chunked" and environ.get("wsgi.input_terminated"):
        return {"Transfer-Encoding": "chunked"}, _client_body(environ, None)
    if coding:  # without wsgi.input_terminated nobody can tell where a chunked body ends
        raise _answer(411, "The request needs a Content-Length.")
    length = environ.get("CONTENT_LENGTH") or ""
    if not length:
        return {}, None
    if not (length.isascii() and length.isdecimal()):
        raise _answer(400, "The Content-Length is not a number.")
    return {"Content-Length": length}, _client_body(environ, int(length)) if int(length) else None


def _client_body(environ: WSGIEnvironment, left: int | None) -> Iterator[bytes]:
    while left is None or left > 0:
        try:
            piece = environ["wsgi.input"].read(PIECE if left is None else min(PIECE, left))
        except OSError as error:
            raise _ClientBodyError(str(error)) from error
        if not piece and left is None:
            return
        if not piece:
            raise _ClientBodyError(f"{left} bytes are missing")
        left = left and left - len(piece)
        yield piece


def _response_headers(response: BaseHTTPResponse) -> list[tuple[str, str]]:
    dropped = HOP_BY_HOP | _listed(response.headers.get("Connection", ""))
    if response.chunked:
        dropped |= {"content-length"}  # RFC 9112 section 6.3: it does not count beside chunks
    headers = response.headers.items()  # a folded line goes on in one piece: RFC 9112 section 5.2
    return [(name, _FOLD.sub(" ", value)) for name, value in headers if name.lower() not in dropped]


def _listed(connection: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in connection.split(","))


def _pieces(response: BaseHTTPResponse, function: Function) -> Iterator[bytes]:
    try:
        while piece := response.read1(PIECE):
            yield piece
    except HTTPError as error:
        logger.warning("function %s broke off its response: %s", function, error)
        raise


def _failure(function: Function, error: Exception) -> HTTPException:
    if isinstance(error, _ClientBodyError):
        logger.info("function %s: the client's body broke off: %s", function, error)
        return _answer(400, "The request's body broke off.")
    logger.warning("function %s did not answer: %s", function, error)
    if isinstance(error, ReadTimeoutError):
        return _answer(504, "The function did not answer in time.")
    return _answer(502, "The function cannot be reached.")


def _answer(status: int, text: str) -> HTTPException:
    return HTTPException(response=Response(f"{text}\n", status, mimetype="text/plain"))
