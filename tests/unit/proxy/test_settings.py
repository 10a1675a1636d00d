"""What a FunctionProxy is told: which route it follows, whom it trusts, and how long it waits."""

from __future__ import annotations

import io
import socket
import threading
import time
from typing import Any

import pytest
from werkzeug.test import run_wsgi_app

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.model import ReplicaStatus, SettingError
from scalezero_wsgi.proxy import FunctionProxy
from scalezero_wsgi.proxy.sender import Sender
from scalezero_wsgi.web.routing import by_host
from tests.support.raw_http import PATIENCE, Message, RawFunction, Wire, says
from tests.unit.proxy.test_proxy import OK, call, environ_for


class Up:
    """A provider whose functions are all up, at one endpoint."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return ReplicaStatus(1, 1, endpoint=self._url)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        raise AssertionError("nothing is to be started")


# Routes


@pytest.mark.parametrize(
    ("route", "path", "target"),
    [
        ("/function/", "/function/hello/a", "/a"),
        ("/fn/", "/fn/hello/a", "/a"),
        ("/", "/hello/a", "/a"),
        (by_host("{name}.example.com"), "/function/hello/a", "/function/hello/a"),
    ],
)
def test_the_prefix_follows_the_route(route: Any, path: str, target: str) -> None:
    with RawFunction(says(OK)) as function:
        app = ScaleZeroMiddleware(FunctionProxy(), Up(function.url), route=route)
        environ = environ_for(path, environ={"HTTP_HOST": "hello.example.com"})
        assert run_wsgi_app(app, environ, buffered=True)[1] == "200 OK"
    assert function.requests[0].target == target


def test_a_prefix_that_was_given_stays() -> None:
    with RawFunction(says(OK)) as function:
        app = ScaleZeroMiddleware(FunctionProxy(prefix="/x/"), Up(function.url), route="/fn/")
        run_wsgi_app(app, environ_for("/fn/hello/a"), buffered=True)
    assert function.requests[0].target == "/fn/hello/a"


def test_one_proxy_does_not_follow_two_routes() -> None:
    proxy = FunctionProxy()
    for _ in range(2):
        ScaleZeroMiddleware(proxy, Up("http://127.0.0.1:1"), route="/fn/")
    with pytest.raises(SettingError, match="two routes, '/fn/' and '/other/'"):
        ScaleZeroMiddleware(proxy, Up("http://127.0.0.1:1"), route="/other/")


# Trust


SENT = {
    "Forwarded": "for=198.51.100.1;proto=https",
    "X-Forwarded-For": "198.51.100.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "shop.example",
    "X-Forwarded-Prefix": "/shop/",
    "X-Forwarded-Port": "8443",
}
OURS = {
    "Forwarded": 'for=192.0.2.7;proto=http;host="localhost"',
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "localhost",
    "X-Forwarded-Prefix": "/function/hello",
}


@pytest.mark.parametrize("trust", [False, True])
def test_only_a_trusted_client_says_where_it_came_from(trust: bool) -> None:
    with RawFunction(says(OK)) as function:
        call(FunctionProxy(trust_forwarded=trust), "/function/hello", function.url, headers=SENT)
    forwarded = {name: value for name, value in function.requests[0].headers if "orwarded" in name}
    expected = {
        "Forwarded": f"{SENT['Forwarded']}, {OURS['Forwarded']}",
        "X-Forwarded-For": "198.51.100.1, 192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "shop.example",
        "X-Forwarded-Prefix": "/shop/function/hello",
        "X-Forwarded-Port": "8443",
    }
    assert forwarded == (expected if trust else OURS)


@pytest.mark.parametrize(
    ("address", "node"), [("2001:db8::1", '"[2001:db8::1]"'), ("", "unknown"), ("a b", "unknown")]
)
def test_forwarded_is_of_its_form(address: str, node: str) -> None:
    environ = {"REMOTE_ADDR": address, "HTTP_HOST": 'a"b'}
    with RawFunction(says(OK)) as function:
        call(FunctionProxy(), "/function/hello", function.url, environ=environ)
    assert function.requests[0].get("Forwarded") == f'for={node};proto=http;host="a\\"b"'


# Time


@pytest.mark.parametrize("name", ["connect", "head", "read", "body"])
@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_no_time_is_not_allowed(name: str, seconds: float) -> None:
    with pytest.raises(SettingError, match=f"{name}_timeout must be more than 0 seconds"):
        FunctionProxy(**{f"{name}_timeout": seconds})  # type: ignore[arg-type]


def test_a_head_that_takes_too_long_is_504_however_often_a_byte_comes() -> None:
    over = threading.Event()

    def behave(wire: Wire, _: Message) -> bool:
        for byte in OK:
            wire.sock.sendall(bytes([byte]))
            if over.wait(0.1):
                break
        return False

    with RawFunction(behave) as function:
        begun = time.monotonic()
        answer = call(FunctionProxy(head_timeout=0.3, read_timeout=60), "/function/hello", function.url)
        over.set()
    assert answer.status == "504 GATEWAY TIMEOUT"
    assert time.monotonic() - begun < PATIENCE / 2


def test_a_head_may_take_longer_than_a_pause_in_the_body() -> None:
    def behave(wire: Wire, _: Message) -> bool:
        time.sleep(0.5)
        wire.sock.sendall(OK)
        return True

    with RawFunction(behave) as function:
        proxy = FunctionProxy(head_timeout=PATIENCE, read_timeout=0.1)
        assert call(proxy, "/function/hello", function.url).status == "200 OK"


def test_a_pause_in_the_body_breaks_off(caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()

    def behave(wire: Wire, _: Message) -> bool:
        wire.sock.sendall(OK[:-1])
        over.wait(PATIENCE)
        return False

    with RawFunction(behave) as function:
        environ = environ_for("/function/hello", function.url)
        body, status, _ = run_wsgi_app(FunctionProxy(read_timeout=0.2), environ)
        assert status == "200 OK"
        pieces = iter(body)
        assert next(pieces) == b"o"
        with pytest.raises(ConnectionResetError, match="did not come in time"):
            next(pieces)
        body.close()  # type: ignore[attr-defined]
        over.set()
    assert [record.levelname for record in caplog.records if record.name == "scalezero_wsgi"] == ["WARNING"]


class Slow(io.RawIOBase):
    """A body of which nothing comes."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def read(self, size: int = -1, /) -> bytes:
        self.released.wait(PATIENCE)
        return b""


def test_a_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalezero_wsgi.proxy.sender.STOP_PATIENCE", 0.1)
    stream = Slow()
    with RawFunction(says(OK)) as function:
        environ = {"wsgi.input": stream, "CONTENT_LENGTH": "10", "REQUEST_METHOD": "POST"}
        environ = environ_for("/function/hello", function.url, environ=environ)
        status = run_wsgi_app(FunctionProxy(body_timeout=0.2), environ, buffered=True)[1]
        stream.released.set()
        assert status == "408 REQUEST TIMEOUT"
        assert function.closed.wait(PATIENCE)
        assert not function.requests or not function.requests[0].whole


def test_a_body_that_breaks_off_is_400_however_late_its_reader_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that has sent its last byte counts as gone, but how its body ended says more."""
    begin = Sender._send

    def late(sender: Sender) -> None:
        time.sleep(0.1)
        begin(sender)

    monkeypatch.setattr(Sender, "_send", late)
    with (
        RawFunction(says(OK)) as function,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
        server.makefile("rb") as stream,
    ):
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        more = {"wsgi.input": stream, "CONTENT_LENGTH": "50", "REQUEST_METHOD": "POST"}
        environ = environ_for("/function/hello", function.url, environ=more | {"werkzeug.socket": server})
        status = run_wsgi_app(FunctionProxy(), environ, buffered=True)[1]
    assert status == "400 BAD REQUEST"


# Methods


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_what_is_no_request_for_a_function_is_405(method: str) -> None:
    environ = environ_for("/function/hello", "http://127.0.0.1:1", method=method)
    _, status, headers = run_wsgi_app(FunctionProxy(), environ, buffered=True)
    assert status == "405 METHOD NOT ALLOWED"
    assert "GET" in headers["Allow"]


def test_a_websocket_is_501_where_the_server_keeps_its_socket() -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    answer = call(FunctionProxy(), "/function/hello", "http://127.0.0.1:1", headers=headers)
    assert answer.status == "501 NOT IMPLEMENTED"
    assert b"websocket" in answer.body


@pytest.mark.parametrize(
    "wrong",
    [
        {"HTTP_X_Y": "a\r\nX-Evil: 1"},
        {"HTTP_X_Y": "a\0b"},
        {"HTTP_X_Y": "snow \u2603"},
        {"HTTP_HOST": "a\nb"},
        {"HTTP_COOKIE": "a\rb"},
        {"CONTENT_TYPE": "a\nb"},
        {"REQUEST_METHOD": "GET /x HTTP/1.1\r\nX:"},
        {"REQUEST_METHOD": ""},
        {"CONTENT_LENGTH": "1_0"},
        {"CONTENT_LENGTH": "\u0665"},
    ],
)
def test_what_cannot_be_sent_is_400(wrong: dict[str, str]) -> None:
    environ = environ_for("/function/hello", "http://127.0.0.1:1", environ=wrong)
    assert run_wsgi_app(FunctionProxy(), environ, buffered=True)[1] == "400 BAD REQUEST"


def test_a_length_of_5000_digits_is_413() -> None:
    environ = environ_for("/function/hello", "http://127.0.0.1:1", environ={"CONTENT_LENGTH": "5" * 5000})
    assert run_wsgi_app(FunctionProxy(), environ, buffered=True)[1] == "413 CONTENT TOO LARGE"
