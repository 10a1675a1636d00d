"""Environs that no server would make, and functions that answer anything, under two linters.

``SCALEZERO_SOAK`` sets how many environs with ``-m soak``: ``SCALEZERO_SOAK=20000``.
"""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from typing import Any
from wsgiref.validate import validator

import pytest
import webtest.lint

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.model import Function
from scalezero_wsgi.proxy import FunctionProxy
from tests.support.raw_http import Message, RawFunction, Wire
from tests.unit.proxy.test_settings import Up

SOME = 150
SOAK = int(os.environ.get("SCALEZERO_SOAK", "2000"))

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ANSWERS = [
    HEAD + b"Content-Length: 2\r\n\r\nok",
    HEAD + b"Content-Length: 9\r\n\r\nok",
    HEAD + b"Content-Length: -9\r\n\r\nok",
    HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    HEAD + b"\r\nok",
    HEAD + b"nocolon\r\n\r\nok",
    HEAD + b"X: \0\r\n\r\nok",
    CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    CHUNKED + b"2\r\nok\r\n",
    CHUNKED + b"2\r\nok\r\n-1\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n',
    b"HTTP/1.1 404 Not Found" + HEAD[15:] + b"Content-Length: 2\r\n\r\nno",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD + b"Content-Length: 0\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"",
]
METHODS = ["GET", "GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"]
TEXT = "aZ0/%.~+,;=&?#\"'<>[]{}|\\^` \t\xe9\xff\x80-_"
HEADERS = ["ACCEPT", "COOKIE", "CONNECTION", "UPGRADE", "TE", "EXPECT", "FORWARDED", "X_FORWARDED_FOR", "X_Y"]
HEADERS += ["PREFER", "RANGE", "KEEP_ALIVE", "PROXY_CONNECTION", "X_FORWARDED_PROTO", "X_FORWARDED_HOST"]
VALUES = [
    "close",
    "upgrade",
    "websocket",
    "keep-alive, x-y",
    "100-continue",
    "a=1,b=2",
    "host",
    "",
    "\r\nX: y",
    "\0",
]
LENGTHS = ["", "0", "1", "5", "5", "5", "9", "-1", "+5", "5_0", "\xb2", "99999999999999999999", "5" * 5000]


def any_text(chance: random.Random, most: int = 12) -> str:
    return "".join(chance.choice(TEXT) for _ in range(chance.randrange(most)))


def any_environ(chance: random.Random) -> dict[str, Any]:
    path = chance.choice([*["/function/hello/"] * 8, "/function/hello.ns", "/function/", ""]) + any_text(
        chance
    )
    if path and not path.startswith("/"):
        path = "/" + path
    environ: dict[str, Any] = {
        "REQUEST_METHOD": chance.choice(METHODS),
        "SCRIPT_NAME": chance.choice(["", "", "/mount"]),
        "PATH_INFO": path or "/",
        "QUERY_STRING": any_text(chance),
        "SERVER_NAME": "front",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": chance.choice(["HTTP/1.0", "HTTP/1.1"]),
        "REMOTE_ADDR": chance.choice(["192.0.2.7", "::1", "", any_text(chance)]),
        "RAW_URI": chance.choice([path, any_text(chance), "http://front" + path, "*"]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": chance.choice(["http", "https"]),
        "wsgi.input": io.BytesIO(b"hello"),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if chance.random() < 0.4:
        environ["CONTENT_LENGTH"] = chance.choice(LENGTHS)
    if chance.random() < 0.2:
        environ["HTTP_TRANSFER_ENCODING"] = chance.choice(
            ["chunked", "Chunked", "gzip", "", any_text(chance)]
        )
        environ["wsgi.input_terminated"] = chance.random() < 0.5
    if chance.random() < 0.9:
        environ["HTTP_HOST"] = chance.choice(["front", "front:80", any_text(chance)])
    for name in chance.sample(HEADERS, chance.randrange(6)):
        environ[f"HTTP_{name}"] = chance.choice([*VALUES, any_text(chance)])
    if chance.random() < 0.1:
        environ["HTTP_X_Y"] = chance.choice(["\r\nX: y", "\0"])
    return environ


def answer_of(app: Any, environ: dict[str, Any], linter: Any) -> str:
    """Return the status of the answer, read to its end; the linter is left out if it refuses the environ."""
    statuses: list[str] = []
    called: list[bool] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        statuses.append(status[:3])
        return lambda data: None

    def noted(environ: dict[str, Any], start_response: Any) -> Any:
        called.append(True)
        return app(environ, start_response)

    result = None
    try:
        try:
            result = linter(noted)(environ, start_response)
        except (AssertionError, ValueError):
            if called:
                raise
            result = app(environ, start_response)
        for _ in result:
            pass
    except ConnectionResetError:
        return "broken off"
    finally:
        if result is not None and hasattr(result, "close"):
            result.close()
    return statuses[-1]


@pytest.mark.parametrize("count", [SOME, pytest.param(SOAK, marks=pytest.mark.soak)])
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD", "ignore::webtest.lint.WSGIWarning")
def test_any_environ_gets_an_answer(count: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    answers: Counter[str] = Counter()

    def behave(wire: Wire, _: Message) -> bool:
        answer = chance.choice(ANSWERS)
        wire.sock.sendall(answer)
        return b"length: 2\r\n\r\nok" in answer.lower()

    with RawFunction(behave) as function:
        app = ScaleZeroMiddleware(FunctionProxy(read_timeout=5, body_timeout=5), Up(function.url))
        for number in range(count):
            environ = any_environ(chance)
            told = {**environ}
            try:
                answers[answer_of(app, environ, webtest.lint.middleware if number % 2 else validator)] += 1
            except Exception as error:
                raise AssertionError(f"{error!r}: seed {seed}, number {number}: {told}") from error
        assert app.queue.waiting() == 0
        state = app.cache.find_state(Function("hello"))
        assert state is not None
        assert not state.in_flight
    print(dict(answers))
    assert "500" not in answers
    assert sum(answers.values()) == count
    assert answers["200"] > 0
