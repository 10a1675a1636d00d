"""Since when a request in flight carries nothing, step by step, as its token says it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from scalezero_wsgi.web.streams import CARRIED, Streams
from tests.support.clock import Clock
from tests.support.wsgi import environ_of

COUNTS = math.inf
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}


class Server:
    """A server and the middleware's token in one."""

    def __init__(self, app: Any, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.heads: list[tuple[Any, ...]] = []
        self.written: list[bytes] = []
        self.since_while_written: list[float] = []
        self.environ = environ_of(**options)

        def token(*head: Any) -> Any:
            self.heads.append(head)
            return self._write

        self.token: Any = token
        self.streams = Streams(app, clock)

    def _write(self, data: bytes) -> None:
        self.since_while_written.append(self.since)
        self.written.append(data)

    @property
    def since(self) -> float:
        return float(self.token.silent_since)

    def ask(self) -> Any:
        self.clock.advance(1.0)
        return self.streams(self.environ, self.token)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1.0),
        ({"method": "HEAD"}, 1.0),
        ({"method": "POST"}, COUNTS),
        ({"method": "PUT", "data": b"body"}, COUNTS),
        ({"method": "GET", "data": b"body"}, COUNTS),
        ({"headers": UPGRADE}, COUNTS),
    ],
)
def test_before_the_answer_only_what_sends_and_changes_nothing_is_silent(
    options: dict[str, Any], expected: float, clock: Clock
) -> None:
    """A long poll. Others may be uploads, slow ones, or have work done."""
    seen = []

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        seen.append(server.since)
        return []

    server = Server(app, clock, **options)
    server.ask()
    assert seen == [expected]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_each_byte_counts_and_nothing_else(method: str, clock: Clock) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        clock.advance(1.0)
        start_response("200 OK", [])
        return chunks()

    def chunks() -> Iterator[bytes]:
        for chunk in (b"a", b"", b"b"):
            clock.advance(1.0)
            yield chunk

    server = Server(app, clock, method=method)
    stream = iter(server.ask())
    assert server.since == 2.0  # the head
    assert next(stream) == b"a"
    clock.advance(10.0)
    assert server.since == COUNTS  # the server is still sending
    assert next(stream) == b""
    assert server.since == 13.0
    assert next(stream) == b"b"
    assert server.since == COUNTS
    assert list(stream) == []
    assert server.since == 15.0


def test_an_application_that_begins_when_it_is_iterated(clock: Clock) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        clock.advance(1.0)
        start_response("200 OK", [])
        clock.advance(1.0)
        seen.append(server.since)
        yield b"a"

    seen: list[float] = []
    server = Server(app, clock, method="POST")
    stream = iter(server.ask())
    assert server.since == COUNTS
    assert next(stream) == b"a"
    assert seen == [2.0]


def test_what_is_written_counts(clock: Clock) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("X", "y")])
        clock.advance(5.0)
        write(b"a")
        return []

    server = Server(app, clock)
    assert server.ask() == []
    assert server.since_while_written == [COUNTS]
    assert server.since == 6.0
    assert server.written == [b"a"]
    assert server.heads == [("200 OK", [("X", "y")])]


def test_the_error_goes_along_with_the_head(clock: Clock) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("500 X", [], error)
        return []

    error = (ValueError, ValueError(), None)
    server = Server(app, clock)
    server.ask()
    assert server.heads == [("500 X", [], error)]


def test_a_list_a_tuple_and_the_servers_file_are_passed_on_as_they_are(clock: Clock) -> None:
    class Wrapper(io.BytesIO):
        pass

    for result in ([b"a"], (b"a",), Wrapper(b"a")):
        server = Server(lambda environ, start_response, result=result: result, clock)
        server.environ["wsgi.file_wrapper"] = Wrapper
        assert server.ask() is result
    assert server.since == COUNTS  # of the file: the server sends it by itself


def test_a_socket_that_was_taken_over_counts_until_its_application_says_what_it_carries(clock: Clock) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("101 Switching Protocols", [])
        seen.append(server.since)
        clock.advance(3.0)
        environ[CARRIED]()
        return iter(())

    seen: list[float] = []
    server = Server(app, clock, headers=UPGRADE)
    server.ask()
    assert seen == [COUNTS]
    assert server.since == 4.0


def test_an_upgrade_that_is_refused_is_a_response_like_any_other(clock: Clock) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return iter(())

    server = Server(app, clock, headers=UPGRADE)
    server.ask()
    assert server.since == 1.0


def test_the_applications_iterable_is_closed_and_its_error_passed_on(clock: Clock) -> None:
    class Result:
        closed = 0

        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            raise ConnectionResetError

        def close(self) -> None:
            self.closed += 1

    result = Result()
    stream = Server(lambda *_: result, clock).ask()
    pieces = []
    with pytest.raises(ConnectionResetError):
        pieces.extend(stream)
    stream.close()
    assert result.closed == 1
