"""When a request has come as far as a thread may take it. The worker itself is in tests/servers."""

from __future__ import annotations

import pytest

from scalezero_wsgi.servers.patient import BODY_AHEAD, MAX_HEAD, Refused, bytes_needed, without_expectation

LINE = b"POST / HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "received", [b"", b"G", LINE, LINE + b"A: b\r\n", LINE + b"A: b\r\n\r", b"\r\n" + LINE]
)
def test_a_head_without_an_end(received: bytes) -> None:
    assert bytes_needed(received) is None


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"", 0),
        (b"Content-Length: 7\r\n", 7),
        (b"content-length:\t0007 \r\n", 7),
        (b"Content-Length: 100000\r\n", BODY_AHEAD),
        (b"Transfer-Encoding: chunked\r\n", 5),
        (b"TRANSFER-ENCODING: gzip\r\nContent-Length: 7\r\n", 5),
        # Not valid, so gunicorn refuses it at once.
        (b"Content-Length: -7\r\n", 0),
        (b"Content-Length: +7\r\n", 0),
        (b"Content-Length: 7, 7\r\n", 0),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n", 0),
        (b"Content-Length : 7\r\n", 0),
        (b"X-Content-Length: 7\r\n", 0),
        (b"X: Content-Length: 7\r\n", 0),
    ],
)
def test_how_much_of_a_body_is_waited_for(head: bytes, body: int) -> None:
    received = LINE + head + b"\r\n"
    assert bytes_needed(received) == len(received) + body
    assert bytes_needed(received + b"Content-Length: 9\r\n\r\n") == len(received) + body


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (LINE + b"A: b\n", 400),
        (b"\n", 400),
        (b"x" * MAX_HEAD, 431),
        (LINE + b"A: b\r\n" * MAX_HEAD + b"\r\n", 431),
    ],
)
def test_what_will_never_be_a_head(received: bytes, status: int) -> None:
    with pytest.raises(Refused) as raised:
        bytes_needed(received)
    assert raised.value.status == status


EXPECT = b"Expect: 100-continue\r\n"


@pytest.mark.parametrize(
    ("received", "without"),
    [
        (LINE + EXPECT + b"A: b\r\n\r\n", LINE + b"A: b\r\n\r\n"),
        (LINE + b"A: b\r\nEXPECT:100-Continue \r\n\r\nbody", LINE + b"A: b\r\n\r\nbody"),
        (LINE + b"A: b\r\n\r\n" + EXPECT, LINE + b"A: b\r\n\r\n" + EXPECT),
        (b"POST / HTTP/1.0\r\n" + EXPECT + b"\r\n", b"POST / HTTP/1.0\r\n" + EXPECT + b"\r\n"),
        (LINE + b"Expect: 200-ok\r\n\r\n", LINE + b"Expect: 200-ok\r\n\r\n"),
    ],
)
def test_the_demand_for_a_100_is_taken_out_once_it_is_met(received: bytes, without: bytes) -> None:
    assert without_expectation(received) == without
