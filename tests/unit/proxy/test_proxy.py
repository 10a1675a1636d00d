from __future__ import annotations

import importlib
import io
import logging
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
import trustme
from gunicorn import config as gunicorn_config
from werkzeug.middleware.lint import LintMiddleware
from werkzeug.serving import make_server
from werkzeug.test import EnvironBuilder, run_wsgi_app

from scalezero_wsgi.model import Function, MissingExtra, SettingError
from scalezero_wsgi.proxy import FunctionProxy
from scalezero_wsgi.proxy.body import LARGEST_PIECE

PATIENCE = 10.0  # seconds after which a test that hangs fails
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Request:
    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def get(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name} was sent twice"
        return values[0] if values else None


Respond = Callable[[Request, socket.socket], object]


@dataclass
class Upstream:
    """A function made of raw sockets. ``respond`` returns something true to keep the connection."""

    respond: Respond
    tls: ssl.SSLContext | None = None
    read_body: bool = True
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    closed: threading.Event = field(default_factory=threading.Event)  # a connection has ended

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
                if self.tls:
                    connection = self.tls.wrap_socket(connection, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb", -1 if self.read_body else 0) as stream:
                while request := read_request(stream, self.read_body):
                    self.requests.append(request)
                    if not self.respond(request, connection):
                        break
        except OSError:
            pass
        finally:
            self.closed.set()


def read_request(stream: Any, read_body: bool = True) -> Request | None:
    line = stream.readline().decode("latin-1").strip()
    if not line:
        return None
    headers = []
    while header := stream.readline().decode("latin-1").strip():
        name, _, value = header.partition(": ")
        headers.append((name, value))
    request = Request(line, headers)
    if read_body and request.get("Transfer-Encoding"):
        while size := int(stream.readline(), 16):
            request.body += stream.read(size)
            stream.readline()
        stream.readline()
    elif read_body:
        request.body = stream.read(int(request.get("Content-Length") or 0))
    return request


def reply(data: bytes, keep: bool = True) -> Respond:
    def respond(_: Request, connection: socket.socket) -> bool:
        connection.sendall(data)
        return keep

    return respond


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(reply(OK)) as server:
        yield server


def environ_for(path: str, url: str | None = None, **options: Any) -> dict[str, Any]:
    base = {
        "scalezero_wsgi.function": Function("hello"),
        "scalezero_wsgi.endpoint": url,
        "REMOTE_ADDR": "192.0.2.7",
        "wsgi.multithread": True,
    }
    raw = options.pop("raw", None)
    overrides = base | options.pop("environ", {})
    builder = EnvironBuilder(path, **options)
    environ = builder.get_environ()
    builder.close()
    for key in ("RAW_URI", "REQUEST_URI"):
        del environ[key]
    if raw is not None:
        environ["RAW_URI"] = raw
    environ.update(overrides)
    return environ


@dataclass
class Answer:
    status: str
    headers: Any
    body: bytes


def call(proxy: FunctionProxy, path: str, url: str | None = None, **options: Any) -> Answer:
    # werkzeug's lint wants as many bytes as Content-Length says even of an answer to HEAD.
    lint = options.pop("lint", options.get("method") != "HEAD")
    environ = environ_for(path, url, **options)
    before = dict(environ)
    checked = validator(LintMiddleware(proxy) if lint else proxy)
    pieces, status, headers = run_wsgi_app(checked, environ, buffered=True)
    assert {key: environ[key] for key in before} == before, "the environ was changed"
    return Answer(status, headers, b"".join(pieces))


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Untouchable(io.RawIOBase):
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"wsgi.input.{name}")


# The way to the function


def test_passes_on_and_back(upstream: Upstream) -> None:
    answer = call(FunctionProxy(), "/function/hello", upstream.url)
    assert (answer.status, answer.body) == ("200 OK", b"ok")
    assert upstream.requests[0].line == "GET / HTTP/1.1"


def test_no_function_is_404() -> None:
    for function in (None, "absent"):
        environ = environ_for("/function/hello", environ={"scalezero_wsgi.function": function})
        if function:
            del environ["scalezero_wsgi.function"]
        _, status, headers = run_wsgi_app(FunctionProxy(), environ, buffered=True)
        assert status == "404 NOT FOUND"
        assert headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize("url", [None, "", "http://", "gopher://example.com", "http://[::1"])
def test_no_usable_endpoint_is_502(url: str | None, caplog: pytest.LogCaptureFixture) -> None:
    answer = call(FunctionProxy(), "/function/hello", url)
    assert answer.status == "502 BAD GATEWAY"
    assert answer.body == b"The function cannot be reached.\n"
    assert "hello" in caplog.text


def test_endpoint_template_and_callable(upstream: Upstream) -> None:
    environ = {"scalezero_wsgi.function": ("127", "0.0.1")}
    template = FunctionProxy(f"http://{{name}}.{{namespace}}:{upstream.port}")
    assert call(template, "/function/127.0.0.1/a", environ=environ).body == b"ok"
    asked: list[Function] = []

    def endpoint(function: Function) -> str:
        asked.append(function)
        return upstream.url

    assert call(FunctionProxy(endpoint), "/function/hello/a").body == b"ok"
    assert asked == [Function("hello")]
    assert [request.target for request in upstream.requests] == ["/a", "/a"]


@pytest.mark.parametrize("template", ["http://{host}", "http://{}", "http://{name"])
def test_wrong_template(template: str) -> None:
    with pytest.raises(SettingError, match="endpoint"):
        FunctionProxy(template)


PATHS = [
    # path_info, raw, what the function sees
    ("/function/hello", None, "/"),
    ("/function/hello/", None, "/"),
    ("/function/hello/a/b", None, "/a/b"),
    ("/function/hello/a b%", None, "/a%20b%25"),
    ("/function/hello/\xc3\xa9", None, "/%C3%A9"),
    ("/function/hello/a/b c", "/function/hello/a%2fb%20c", "/a%2fb%20c"),
    ("/function/hello//a//", "/function/hello//a//", "//a//"),
    ("/function/hello/../a/./b", "/function/hello/../a/./b", "/../a/./b"),
    ("/function/hello/a%zz[]\"|'", "/function/hello/a%zz[]\"|'", "/a%zz[]\"|'"),
    ("/function/hello/\xc3\xa9", "/function/hello/\xc3\xa9", "/%C3%A9"),
    ("/function/hello/a", "/func%74ion/hell%6F/%61", "/%61"),
    ("/function/hello/a", "/function/hello%2Fa", "/a"),
    ("/function/hello/a", "/something/else", "/a"),
    ("/function/hello/a", "http://example.com:80/function/hello/%61", "/%61"),
    ("/function/hello", "/function/hello?", "/"),
    ("/function/hello.ns/a", "/function/hello.ns/a", "/a"),
    ("/functions/hello/a", None, "/functions/hello/a"),
    ("", None, "/"),
    ("/", "HTTP://example.com", "/"),
    ("/a/b%", "/a%2Fb%25", "/a%2Fb%25"),
]


@pytest.mark.parametrize(("path_info", "raw", "seen"), PATHS)
def test_path_as_sent(upstream: Upstream, path_info: str, raw: str | None, seen: str) -> None:
    function = Function("hello", "ns" if ".ns" in path_info else "")
    environ = {"PATH_INFO": path_info, "scalezero_wsgi.function": function}
    call(FunctionProxy(), "/", upstream.url, raw=raw, environ=environ)
    assert upstream.requests[0].target == seen


def test_path_that_names_another_is_passed_whole(upstream: Upstream) -> None:
    call(FunctionProxy(), "/function/other/a", upstream.url)
    assert upstream.requests[0].target == "/function/other/a"
    assert upstream.requests[0].get("X-Forwarded-Prefix") is None


@pytest.mark.parametrize("key", ["RAW_URI", "REQUEST_URI"])
@pytest.mark.parametrize("raw", ["/m%6Funt/function/hello/%61?x", "/function/hello/%61?x"])
def test_path_below_a_mount_point(upstream: Upstream, key: str, raw: str) -> None:
    environ = {"SCRIPT_NAME": "/mount", "PATH_INFO": "/function/hello/a", "QUERY_STRING": "x", key: raw}
    call(FunctionProxy(), "/", upstream.url, environ=environ)
    assert upstream.requests[0].target == "/%61?x"
    assert upstream.requests[0].get("X-Forwarded-Prefix") == "/mount/function/hello"


def test_other_prefix(upstream: Upstream) -> None:
    call(FunctionProxy(prefix="/fn/"), "/fn/hello/a", upstream.url)
    assert upstream.requests[0].target == "/a"


@pytest.mark.parametrize("query", ["a=1&a=%2f&b=[x]|'\"%zz", "x?y/z", "q=\xe9"])
def test_query_verbatim(upstream: Upstream, query: str) -> None:
    call(FunctionProxy(), "/function/hello", upstream.url, environ={"QUERY_STRING": query})
    assert upstream.requests[0].target == "/?" + query.replace("\xe9", "%E9")


def test_endpoint_with_a_path(upstream: Upstream) -> None:
    url = f"{upstream.url}/base/"
    call(FunctionProxy(), "/function/hello/a", url)
    assert upstream.requests[0].target == "/base/a"
    for path in ("/../admin", "/a/%2e%2E/b", "/a%2f.."):
        answer = call(FunctionProxy(), f"/function/hello{path}", url)
        assert answer.status == "400 BAD REQUEST"
    assert len(upstream.requests) == 1


# Headers


def test_request_headers(upstream: Upstream) -> None:
    sent = {
        "Host": "example.com:8080",
        "Connection": "X-Private, keep-alive, Host, Content-Length",
        "X-Private": "1",
        "Keep-Alive": "timeout=5",
        "Proxy-Connection": "keep-alive",
        "Proxy-Authorization": "Basic x",
        "Proxy-Authenticate": "Basic",
        "TE": "trailers",
        "Trailer": "X",
        "Upgrade": "websocket",
        "Authorization": "Bearer token",
        "Cookie": "a=1; b=2",
        "X-Custom": "caf\xe9",
        "X-Forwarded-For": "198.51.100.1",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Prefix": "/evil",
    }
    call(FunctionProxy(), "/function/hello", upstream.url, method="POST", data=b"body", headers=sent)
    (request,) = upstream.requests
    assert dict(request.headers) == {
        "Host": "example.com:8080",
        "Content-Length": "4",
        "Authorization": "Bearer token",
        "Cookie": "a=1; b=2",
        "X-Custom": "caf\xe9",
        "Forwarded": 'for=192.0.2.7;proto=http;host="example.com:8080"',
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "example.com:8080",
        "X-Forwarded-Prefix": "/function/hello",
    }
    assert len(request.headers) == len(dict(request.headers))
    assert request.body == b"body"


def test_request_headers_of_urllib3_kept_if_sent(upstream: Upstream) -> None:
    sent = {"User-Agent": "curl/8", "Accept-Encoding": "br", "Content-Type": "text/x"}
    call(FunctionProxy(), "/function/hello", upstream.url, headers=sent)
    (request,) = upstream.requests
    assert {name: request.get(name) for name in sent} == sent


def test_forwarded_for_without_a_client_address(upstream: Upstream) -> None:
    call(FunctionProxy(), "/", upstream.url, environ={"REMOTE_ADDR": "", "wsgi.url_scheme": "https"})
    (request,) = upstream.requests
    assert request.get("X-Forwarded-For") is None
    assert request.get("X-Forwarded-Proto") == "https"
    assert request.get("X-Forwarded-Prefix") is None


def test_response_headers() -> None:
    head = (
        b"HTTP/1.1 201 Made It\r\nContent-Type: text/plain\r\nContent-Length: 4\r\nSet-Cookie: a=1\r\n"
        b"Set-Cookie: b=2\r\nContent-Encoding: gzip\r\nConnection: X-Private\r\nX-Private: 1\r\n"
        b"Keep-Alive: timeout=5\r\nX-Folded: one\r\n two\r\nUpgrade: h2c\r\n\r\n"
    )
    with Upstream(reply(head + b"\x00zip")) as server:
        answer = call(FunctionProxy(), "/function/hello", server.url)
    assert answer.status == "201 Made It"
    assert answer.body == b"\x00zip"
    assert list(answer.headers) == [
        ("Content-Type", "text/plain"),
        ("Content-Length", "4"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Content-Encoding", "gzip"),
        ("X-Folded", "one two"),
    ]


def test_redirect_is_passed_on(upstream: Upstream) -> None:
    upstream.respond = reply(
        b"HTTP/1.1 302 Found\r\nLocation: http://a.example/b\r\n"
        b"Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
    )
    answer = call(FunctionProxy(), "/function/hello", upstream.url)
    assert (answer.status, answer.headers["Location"]) == ("302 Found", "http://a.example/b")
    assert len(upstream.requests) == 1


# Request bodies


class Recording(io.BytesIO):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.sizes: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.sizes.append(size if size is not None and size >= 0 else sys.maxsize)
        return super().read(size)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_body_with_a_length(upstream: Upstream, method: str) -> None:
    body = os.urandom(300_000)
    stream = Recording(body + b"the next request")
    environ = {"wsgi.input": stream, "CONTENT_LENGTH": "300000"}
    call(FunctionProxy(), "/function/hello", upstream.url, method=method, environ=environ)
    (request,) = upstream.requests
    assert request.line.startswith(f"{method} / ")
    assert request.body == body
    assert request.get("Content-Length") == "300000"
    assert stream.getvalue()[stream.tell() :] == b"the next request"
    assert max(stream.sizes) <= LARGEST_PIECE


def test_chunked_body(upstream: Upstream) -> None:
    environ = {
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input_terminated": True,
        "CONTENT_LENGTH": "3",  # does not count beside chunks
        "wsgi.input": (stream := Recording(b"abc" * 50_000)),
    }
    call(FunctionProxy(), "/function/hello", upstream.url, method="POST", environ=environ)
    (request,) = upstream.requests
    assert request.get("Transfer-Encoding") == "chunked"
    assert request.get("Content-Length") is None
    assert request.body == b"abc" * 50_000
    assert max(stream.sizes) <= LARGEST_PIECE


@pytest.mark.parametrize(("length", "seen"), [("", None), ("0", "0"), (None, None)])
def test_no_body_leaves_the_input_alone(upstream: Upstream, length: str | None, seen: str | None) -> None:
    environ = environ_for("/function/hello", upstream.url)
    environ |= {"wsgi.input": Untouchable(), "wsgi.input_terminated": True, "CONTENT_LENGTH": length}
    if length is None:
        del environ["CONTENT_LENGTH"]
    assert run_wsgi_app(FunctionProxy(), environ, buffered=True)[1] == "200 OK"
    assert upstream.requests[0].get("Content-Length") == seen


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"CONTENT_LENGTH": "abc"}, "400 BAD REQUEST"),
        ({"CONTENT_LENGTH": "-1"}, "400 BAD REQUEST"),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, "411 LENGTH REQUIRED"),
        ({"HTTP_TRANSFER_ENCODING": "gzip", "wsgi.input_terminated": True}, "411 LENGTH REQUIRED"),
    ],
)
def test_body_without_an_end(upstream: Upstream, wrong: dict[str, Any], status: str) -> None:
    environ = environ_for("/function/hello", upstream.url, environ=wrong)
    assert run_wsgi_app(FunctionProxy(), environ, buffered=True)[1] == status
    assert upstream.connections == 0


class Failing(io.BytesIO):
    def __init__(self, first: bytes, error: Exception) -> None:
        super().__init__(first)
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        if piece := super().read(size):
            return piece
        raise self.error


@pytest.mark.parametrize(
    "body",
    [
        Failing(b"abc", ConnectionResetError("peer")),  # urllib3 by itself would swallow it
        Failing(b"abc", BrokenPipeError("peer")),
        Failing(b"abc", TimeoutError("peer")),
        io.BytesIO(b"abc"),
    ],
)
def test_client_that_leaves_while_sending(body: io.BytesIO, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    environ = {"wsgi.input": body, "CONTENT_LENGTH": "10"}
    with Upstream(reply(OK)) as server:
        answer = call(FunctionProxy(), "/function/hello", server.url, method="POST", environ=environ)
        assert answer.status == "400 BAD REQUEST"
        assert server.closed.wait(PATIENCE), "the connection to the function was kept"
    ours = [record for record in caplog.records if record.name == "scalezero_wsgi"]
    assert [record.levelname for record in ours] == ["INFO"]


# Response bodies


def pieces_of(framing: str) -> tuple[bytes, Callable[[bytes], bytes], bytes]:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    if framing == "chunked":
        return (
            head + b"Transfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n",
            lambda piece: b"%x;ext=1\r\n%b\r\n" % (len(piece), piece),
            b"0\r\nX-Trailer: 1\r\n\r\n",
        )
    if framing == "length":
        return head + b"Content-Length: 15\r\n\r\n", lambda piece: piece, b""
    return head + b"Connection: close\r\n\r\n", lambda piece: piece, b""


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_response_comes_in_pieces(framing: str) -> None:
    head, encode, end = pieces_of(framing)
    seen = threading.Semaphore(0)

    def respond(_: Request, connection: socket.socket) -> bool:
        connection.sendall(head)
        for number in range(3):
            seen.acquire(timeout=PATIENCE)  # the next one only when the last has arrived
            connection.sendall(encode(b"piece%d" % number)[: None if framing != "length" else 5])
        connection.sendall(end)
        return framing != "close"

    with Upstream(respond) as server:
        proxy = FunctionProxy()
        for _ in range(2):
            environ = environ_for("/function/hello", server.url)
            started = time.monotonic()
            seen.release()
            body, _status, headers = run_wsgi_app(validator(LintMiddleware(proxy)), environ)
            assert ("Content-Length" in headers) == (framing == "length")
            got = b""
            for piece in body:
                got += piece
                seen.release()
            body.close()  # type: ignore[attr-defined]
            assert got == (b"piece" * 3 if framing == "length" else b"piece0piece1piece2")
            assert time.monotonic() - started < PATIENCE / 2, "a piece was held back"
            while seen.acquire(blocking=False):
                pass
        assert server.connections == (2 if framing == "close" else 1)


BODILESS = [
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 12345\r\n\r\n", 1),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n", 1),
    ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 1),
    ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', 1),
    ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 2),
    ("GET", b"HTTP/1.1 200 \r\nContent-Type: a/b\r\nContent-Length: 0\r\n\r\n", 1),
]


@pytest.mark.parametrize(("method", "head", "connections"), BODILESS)
def test_response_without_a_body(method: str, head: bytes, connections: int) -> None:
    with Upstream(reply(head)) as server:
        proxy = FunctionProxy()
        for _ in range(2):
            lint = method != "HEAD" and b" 204 " not in head  # RFC 9110 has no Content-Length in a 204
            answer = call(proxy, "/function/hello", server.url, method=method, lint=lint)
            assert answer.body == b""
            assert answer.status[:4] == head.decode()[9:13]
            if b"12345" in head:
                assert answer.headers["Content-Length"] == "12345"
        assert server.connections == connections


def test_interim_responses_are_skipped() -> None:
    hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2
    with Upstream(reply(hints + OK)) as server:
        proxy = FunctionProxy()
        for _ in range(2):
            answer = call(proxy, "/function/hello", server.url)
            assert (answer.status, answer.body) == ("200 OK", b"ok")
            assert "Link" not in answer.headers
        assert server.connections == 1


def test_close_in_mid_stream_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(_: Request, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 99\r\n\r\nfirst")
        return True  # and waits for the next request, which ends when the proxy closes

    proxy = FunctionProxy()
    forward = proxy._forward
    kept: list[Any] = []  # else the garbage collector would close it

    def forward_and_keep(*args: Any) -> Any:
        kept.append(forward(*args))
        return kept[-1]

    monkeypatch.setattr(proxy, "_forward", forward_and_keep)
    with Upstream(respond) as server:
        body, _, _ = run_wsgi_app(proxy, environ_for("/function/hello", server.url))
        assert next(iter(body)) == b"first"
        assert not server.closed.is_set()
        body.close()  # type: ignore[attr-defined]
        assert server.closed.wait(PATIENCE)


BROKEN = [
    b"Content-Length: 10\r\n\r\nfirst",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n9\r\nfirst",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\nnonsense\r\n",
]


@pytest.mark.parametrize("broken", BROKEN)
def test_response_that_breaks_off_raises(broken: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with Upstream(reply(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n" + broken, keep=False)) as server:
        body, _, _ = run_wsgi_app(FunctionProxy(), environ_for("/function/hello", server.url))
        pieces = iter(body)
        assert next(pieces) == b"first"
        with pytest.raises(Exception, match=r"(?i)connection broken|incomplete|prematurely"):
            next(pieces)
        body.close()  # type: ignore[attr-defined]
    assert "broke off its response" in caplog.text


# Failures before the response


def assert_gateway_error(answer: Answer, status: str, caplog: pytest.LogCaptureFixture) -> None:
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"127.0.0.1" not in answer.body
    assert b"rror" not in answer.body
    (record,) = (record for record in caplog.records if record.name == "scalezero_wsgi")
    assert record.levelname == "WARNING"


NONSENSE = [
    b"",
    b"nonsense\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
]


@pytest.mark.parametrize("data", NONSENSE)
def test_nonsense_is_502(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with Upstream(reply(data, keep=False)) as server:
        answer = call(FunctionProxy(), "/function/hello", server.url)
        assert len(server.requests) == 1
    assert_gateway_error(answer, "502 BAD GATEWAY", caplog)


def test_refused_is_502_at_once_when_warm(caplog: pytest.LogCaptureFixture) -> None:
    proxy = FunctionProxy(connect_patience=20.0)
    started = time.monotonic()
    answer = call(proxy, "/function/hello", f"http://127.0.0.1:{refused_port()}")
    assert time.monotonic() - started < 10
    assert_gateway_error(answer, "502 BAD GATEWAY", caplog)


def test_error_answer_to_head_has_no_body() -> None:
    url = f"http://127.0.0.1:{refused_port()}"
    assert call(FunctionProxy(), "/function/hello", url, method="HEAD").body == b""


def test_refused_after_a_cold_start_is_tried_until_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    answer = call(
        FunctionProxy(connect_patience=0.2),
        "/function/hello",
        f"http://127.0.0.1:{refused_port()}",
        environ={"scalezero_wsgi.waited": 1.5},
    )
    assert 0.1 < time.monotonic() - started < PATIENCE
    assert_gateway_error(answer, "502 BAD GATEWAY", caplog)


def test_function_that_listens_late_gets_the_whole_request() -> None:
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))  # taken, but refusing until it listens
        received: list[Request | None] = []

        def listen() -> None:
            late.listen()
            connection, _ = late.accept()
            with connection, connection.makefile("rb") as stream:
                received.append(read_request(stream))
                connection.sendall(OK)

        timer = threading.Timer(0.2, listen)
        timer.start()
        answer = call(
            FunctionProxy(connect_patience=PATIENCE),
            "/function/hello",
            f"http://127.0.0.1:{late.getsockname()[1]}",
            method="POST",
            data=b"whole",
            environ={"scalezero_wsgi.waited": 0.3},
        )
        timer.join()
    assert answer.body == b"ok"
    assert received[0]
    assert received[0].body == b"whole"


def test_read_timeout_is_504(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    with Upstream(lambda *_: done.wait(PATIENCE)) as server:
        answer = call(FunctionProxy(read_timeout=0.1), "/function/hello", server.url)
        done.set()
        assert_gateway_error(answer, "504 GATEWAY TIMEOUT", caplog)
        assert server.closed.wait(PATIENCE)


def test_upload_that_stalls_is_504(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    with Upstream(lambda *_: done.wait(PATIENCE), read_body=False) as server:
        environ = {"wsgi.input": io.BytesIO(bytes(30_000_000)), "CONTENT_LENGTH": "30000000"}
        proxy = FunctionProxy(read_timeout=0.2)
        answer = call(proxy, "/function/hello", server.url, method="POST", environ=environ)
        done.set()
    assert_gateway_error(answer, "504 GATEWAY TIMEOUT", caplog)


def test_slow_upload_is_not_held_to_the_connect_timeout() -> None:
    def respond(_: Request, connection: socket.socket) -> bool:
        time.sleep(0.5)
        left = 20_000_000
        while left:
            left -= len(connection.recv(min(left, 1 << 20)))
        connection.sendall(OK)
        return False

    with Upstream(respond, read_body=False) as server:
        environ = {"wsgi.input": io.BytesIO(bytes(20_000_000)), "CONTENT_LENGTH": "20000000"}
        proxy = FunctionProxy(connect_timeout=0.2)
        assert call(proxy, "/function/hello", server.url, method="POST", environ=environ).body == b"ok"


# Connections


def test_connection_is_reused(upstream: Upstream) -> None:
    proxy = FunctionProxy()
    for _ in range(3):
        call(proxy, "/function/hello", upstream.url)
    assert upstream.connections == 1


def closing_when_reused(answer: bytes = OK, reset: bool = False) -> Respond:
    """Answers the first request of a connection and closes at the second, without a word."""
    served: set[socket.socket] = set()

    def respond(_: Request, connection: socket.socket) -> bool:
        if connection in served:
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        served.add(connection)
        connection.sendall(answer)
        return True

    return respond


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_kept_connection_that_closes_is_replaced(method: str, reset: bool) -> None:
    with Upstream(closing_when_reused(OK if method != "HEAD" else OK[:-2], reset=reset)) as server:
        proxy = FunctionProxy()
        for _ in range(3):
            assert call(proxy, "/function/hello", server.url, method=method).status == "200 OK"
        assert server.connections == 3
        assert len(server.requests) == 5


def test_retry_takes_no_other_kept_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalezero_wsgi.proxy.pool.POOL_SIZE", 1)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n"
    close_when_reused = closing_when_reused()
    proxy = FunctionProxy()
    first: list[socket.socket] = []

    def respond(request: Request, connection: socket.socket) -> object:
        if not first:  # answers, but not to the end
            first.append(connection)
            connection.sendall(head + b"2\r\nok\r\n")
            return True
        if len(server.requests) == 3:  # meanwhile the other connection comes back to the pool
            first[0].sendall(b"0\r\n\r\n")
            bodies.append(b"".join(other))
            other.close()  # type: ignore[attr-defined]
        return connection not in first and close_when_reused(request, connection)

    bodies: list[bytes] = []
    with Upstream(respond) as server:
        other, _, _ = run_wsgi_app(proxy, environ_for("/function/hello", server.url))
        for _ in range(2):
            assert call(proxy, "/function/hello", server.url).body == b"ok"
        assert bodies == [b"ok"]
        assert len(server.requests) == 4, "the retry fell on the other stale connection"


@pytest.mark.parametrize("options", [{"method": "POST"}, {"method": "GET", "data": b"body"}])
def test_kept_connection_that_closes_is_502_for_others(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with Upstream(closing_when_reused()) as server:
        proxy = FunctionProxy()
        assert call(proxy, "/function/hello", server.url).body == b"ok"
        answer = call(proxy, "/function/hello", server.url, **options)
        assert len(server.requests) == 2
    assert_gateway_error(answer, "502 BAD GATEWAY", caplog)


def test_fresh_connection_that_closes_too_is_502(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([True])

    def respond(_: Request, connection: socket.socket) -> bool:
        if next(answers, False):
            connection.sendall(OK)
            return True
        return False

    with Upstream(respond) as server:
        proxy = FunctionProxy()
        assert call(proxy, "/function/hello", server.url).body == b"ok"
        answer = call(proxy, "/function/hello", server.url)
        assert len(server.requests) == 3
    assert_gateway_error(answer, "502 BAD GATEWAY", caplog)


def test_pools_are_bounded_and_made_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalezero_wsgi.proxy.pool.NUM_ORIGINS", 2)
    proxy = FunctionProxy()
    assert not proxy._pools._values
    with ExitStack() as stack:
        for _ in range(4):
            server = stack.enter_context(Upstream(reply(OK)))
            assert call(proxy, "/function/hello", server.url).body == b"ok"
        assert len(proxy._pools.get().idle) == 2


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    authority, certificates = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(certificates)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Upstream(reply(OK), tls=context) as server:
        answer = call(FunctionProxy(), "/function/hello", server.url)
        assert_gateway_error(answer, "502 BAD GATEWAY", caplog)  # nobody vouches for it
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
        proxy = FunctionProxy()
        for _ in range(2):
            assert call(proxy, "/function/hello/a%2Fb", server.url, raw="/function/hello/a%2Fb").body == b"ok"
        assert [request.target for request in server.requests] == ["/a%2Fb", "/a%2Fb"]
        assert server.connections == 1


def echo_over_tls(listener: socket.socket, context: ssl.SSLContext, length: int) -> None:
    """Send back what comes of one request's body, as it comes."""
    accepted, _ = listener.accept()
    with context.wrap_socket(accepted, server_side=True) as sock:
        received = b""
        while b"\r\n\r\n" not in received:
            received += sock.recv(65536)
        body = received.partition(b"\r\n\r\n")[2]
        sock.sendall(OK.replace(b"2\r\n\r\nok", b"%d\r\n\r\n" % length) + body)
        left = length - len(body)
        while left:
            piece = sock.recv(65536)
            sock.sendall(piece)
            left -= len(piece)


def test_tls_both_ways_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one socket of TLS serves the thread that sends and the one that receives."""
    authority, certificates = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(certificates)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    sent = os.urandom(4 << 20)  # more than all buffers on the way hold
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client, server = (stack.enter_context(sock) for sock in socket.socketpair())
        stream = stack.enter_context(server.makefile("rb"))
        threads = [
            threading.Thread(target=echo_over_tls, args=(listener, context, len(sent))),
            threading.Thread(target=client.sendall, args=(sent,)),
        ]
        for thread in threads:
            thread.start()
        environ = {"wsgi.input": stream, "CONTENT_LENGTH": str(len(sent)), "REQUEST_METHOD": "POST"}
        endpoint = f"https://127.0.0.1:{listener.getsockname()[1]}"
        answer = call(FunctionProxy(read_timeout=PATIENCE), "/function/hello", endpoint, environ=environ)
        for thread in threads:
            thread.join(PATIENCE)
    assert answer.status == "200 OK"
    assert answer.body == sent


# Behind real servers

FRONT = """
from scalezero_wsgi.model import Function
from scalezero_wsgi.proxy import FunctionProxy

proxy = FunctionProxy()

def app(environ, start_response):
    environ["scalezero_wsgi.function"] = Function("hello")
    environ["scalezero_wsgi.endpoint"] = environ["HTTP_X_ENDPOINT"]
    return proxy(environ, start_response)
"""


@contextmanager
def gunicorn(directory: Path) -> Iterator[int]:
    (directory / "front.py").write_text(FRONT)
    quiet = "--no-control-socket" if hasattr(gunicorn_config, "ControlSocket") else ""  # 23 has none
    command = f"-m gunicorn --worker-class gthread --threads 4 {quiet} front:app --bind"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, *command.split(), f"fd://{listener.fileno()}"],
            cwd=directory,
            pass_fds=[listener.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])},
            stderr=subprocess.DEVNULL,
        )
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            process.wait(PATIENCE)


@contextmanager
def werkzeug_server(directory: Path) -> Iterator[int]:
    names: dict[str, Any] = {}
    exec(FRONT, names)
    server = make_server("127.0.0.1", 0, names["app"], threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module", params=[pytest.param(gunicorn, marks=pytest.mark.server), werkzeug_server])
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with request.param(tmp_path_factory.mktemp("front")) as port:
        yield port


def connect(front: int) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", front, timeout=PATIENCE)


def test_server_passes_the_target_as_sent(front: int, upstream: Upstream) -> None:
    for path in ("/a%2Fb%20c/../d?x=%2f&y=[1]", "//double//", "/%c3%a9", ""):
        with closing(connect(front)) as client:
            client.request("GET", f"/function/hello{path}", headers={"X-Endpoint": upstream.url})
            assert client.getresponse().read() == b"ok"
        assert upstream.requests[-1].target == (path or "/")


def test_server_streams_both_ways(front: int) -> None:
    parts = [os.urandom(100_000) for _ in range(5)]

    def respond(request: Request, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(request.body), request.body))
        return True

    with Upstream(respond) as server, closing(connect(front)) as client:
        headers = {"X-Endpoint": server.url, "Transfer-Encoding": "chunked"}
        client.request("POST", "/function/hello", iter(parts), headers, encode_chunked=True)
        assert client.getresponse().read() == b"".join(parts)
        assert server.requests[0].get("Transfer-Encoding") == "chunked"


def test_server_sends_pieces_as_they_come(front: int) -> None:
    seen = threading.Event()

    def respond(_: Request, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 11\r\n\r\nfirst ")
        seen.wait(PATIENCE)
        connection.sendall(b"later")
        return True

    with Upstream(respond) as server, closing(connect(front)) as client:
        client.request("GET", "/function/hello", headers={"X-Endpoint": server.url})
        response = client.getresponse()
        assert response.read(6) == b"first "
        seen.set()
        assert response.read() == b"later"


def test_server_breaks_off_with_the_function(front: int) -> None:
    broken = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    with Upstream(reply(broken, keep=False)) as server, closing(connect(front)) as client:
        client.request("GET", "/function/hello", headers={"X-Endpoint": server.url})
        response = client.getresponse()
        assert response.read(5) == b"first"
        if response.chunked:  # else an end by close is all that HTTP/1.0 can say
            with pytest.raises((HTTPException, ConnectionError)):
                response.read()


def test_client_that_leaves_closes_the_function_connection(front: int) -> None:
    def respond(_: Request, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 999999999\r\n\r\n")
        while True:
            connection.sendall(bytes(10_000))  # until the proxy closes

    with Upstream(respond) as server:
        with closing(connect(front)) as client:
            client.request("GET", "/function/hello", headers={"X-Endpoint": server.url})
            response = client.getresponse()
            assert response.read(10)
            response.close()
        assert server.closed.wait(PATIENCE)


def test_without_httptools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("scalezero_wsgi.proxy")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httptools", None)
    with pytest.raises(MissingExtra, match=r"httptools .*scalezero_wsgi\[proxy\]") as caught:
        importlib.import_module("scalezero_wsgi.proxy")
    assert isinstance(caught.value, ImportError)
