"""Cases of what a reverse proxy meets: what one side sends, and what must reach the other.

Each is what RFC 9110 and 9112 ask of an intermediary, so that any reverse proxy can be tried by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.raw_http import Behaviour, Message, says

Check = Callable[[Message, list[Message]], object]
"""Looks at the response and at the requests that reached the function, and returns whether they are right."""

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
SAYS_GOOD = says(GOOD)


@dataclass(frozen=True)
class Case:
    name: str
    check: Check
    request: bytes = b"GET {path} HTTP/1.1\r\nHost: front\r\n\r\n"
    function: Behaviour = SAYS_GOOD
    read_body: bool = True
    then: str = "read"

    @property
    def is_head(self) -> bool:
        return self.request.startswith(b"HEAD")


def bad_gateway(response: Message, _: object) -> bool:
    return response.status == 502 and response.whole


def good(response: Message, requests: list[Message]) -> bool:
    return response.status == 200 and response.body == b"ok" and response.whole


def broken(response: Message, _: object) -> bool:
    """Either nothing of it went out, or it does not look complete."""
    return response.status == 502 or not response.whole


def status(*expected: int) -> Check:
    return lambda response, _: response.status in expected and response.whole


def refused(*expected: int) -> Check:
    """Answered so, and the function knows nothing of it."""
    return lambda response, requests: response.status in expected and not requests


def answer(**expected: object) -> Check:
    def check(response: Message, _: object) -> bool:
        wanted_body = expected.get("body", b"ok")
        return (
            response.status == expected.get("status", 200) and response.whole and response.body == wanted_body
        )

    return check


def header(name: str, *values: str) -> Check:
    return lambda response, _: response.whole and response.all(name) == list(values)


def seen(name: str, *values: str) -> Check:
    return lambda response, requests: good(response, requests) and requests[0].all(name) == list(values)


def seen_target(target: str) -> Check:
    return lambda response, requests: good(response, requests) and requests[0].target.endswith(target)


def seen_body(body: bytes) -> Check:
    def check(response: Message, requests: list[Message]) -> bool:
        return good(response, requests) and requests[0].whole and requests[0].body == body

    return check


def bad_head(name: str, data: bytes, then: str = "close") -> Case:
    return Case(name, bad_gateway, function=says(data, then))


def lines(*extra: bytes, body: bytes = b"ok", length: bool = True) -> bytes:
    head = OK + (b"Content-Length: %d\r\n" % len(body) if length else b"")
    return head + b"".join(line + b"\r\n" for line in extra) + b"\r\n" + body


def request(*extra: bytes, method: bytes = b"GET", body: bytes = b"", path: bytes = b"{path}") -> bytes:
    head = b"%b %b HTTP/1.1\r\nHost: front\r\n" % (method, path)
    return head + b"".join(line + b"\r\n" for line in extra) + b"\r\n" + body


BAD_HEADS = [
    bad_head("nothing at all", b""),
    bad_head("a reset before anything", b"", "reset"),
    bad_head("nonsense", b"nonsense\r\n\r\n"),
    bad_head("empty lines only", b"\r\n\r\n\r\n\r\n"),
    bad_head("an end in the status line", b"HTTP/1.1 200"),
    bad_head("an end in the head", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"),
    bad_head("a reset in the head", b"HTTP/1.1 200 OK\r\nContent-Le", "reset"),
    bad_head("TLS", b"\x15\x03\x01\x00\x02\x02\x16"),
    bad_head("two digits of a status", b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("four digits of a status", b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("letters for a status", b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("a negative status", b"HTTP/1.1 -20 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("a status below 100", b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("no status", b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
    bad_head("two spaces before the status", b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("another protocol", b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("HTTP/2", b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("HTTP/9", b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("http in small letters", b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("NUL in the reason", b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n"),
    bad_head("a control character in the reason", b"HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n"),
    bad_head("CR in the reason", b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n"),
    bad_head("length -5", OK + b"Content-Length: -5\r\n\r\nhello"),
    bad_head("length +5", OK + b"Content-Length: +5\r\n\r\nhello"),
    bad_head("length 1_0", OK + b"Content-Length: 1_0\r\n\r\n0123456789"),
    bad_head("length 0x5", OK + b"Content-Length: 0x5\r\n\r\nhello"),
    bad_head("length 5.0", OK + b"Content-Length: 5.0\r\n\r\nhello"),
    bad_head("length with a space", OK + b"Content-Length: 5 5\r\n\r\nhello"),
    bad_head("an empty length", OK + b"Content-Length:\r\n\r\nhello"),
    bad_head("length of other digits", OK + "Content-Length: ٥\r\n\r\nhello".encode()),
    bad_head("length of 5,000 digits", OK + b"Content-Length: " + b"5" * 5000 + b"\r\n\r\nhello"),
    bad_head("length of 2 ** 64", OK + b"Content-Length: 18446744073709551616\r\n\r\nhello"),
    bad_head("two lengths", OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    bad_head("two lengths in one line", OK + b"Content-Length: 5, 6\r\n\r\nhello!"),
    bad_head("a length and a bad one", OK + b"Content-Length: 5\r\nContent-Length: x\r\n\r\nhello"),
    bad_head("a line without a colon", lines(b"nocolon")),
    bad_head("a line without a name", lines(b": value")),
    bad_head("a space in a name", lines(b"X Y: value")),
    bad_head("a space before the colon", lines(b"X-Y : value")),
    bad_head("a name that is not ASCII", lines("X-\u00e9: value".encode())),
    bad_head("NUL in a name", lines(b"X-\0Y: value")),
    bad_head("NUL in a value", lines(b"X-Y: a\0b")),
    bad_head("a control character in a value", lines(b"X-Y: a\x01b")),
    bad_head("DEL in a value", lines(b"X-Y: a\x7fb")),
    bad_head("CR in a value", lines(b"X-Y: a\rb")),
    bad_head("a space before the first line", b"HTTP/1.1 200 OK\r\n X: y\r\nContent-Length: 0\r\n\r\n"),
    bad_head("another transfer coding", OK + b"Transfer-Encoding: gzip\r\n\r\nxx"),
    bad_head("a coding before chunked", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    bad_head("a coding behind chunked", OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    bad_head("chunked twice", OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    bad_head("a coding much like chunked", OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    bad_head("an unasked 101", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    bad_head(
        "an unasked 101 that names a protocol",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ),
    bad_head("a flood of 1xx", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10_000),
    bad_head("an endless line", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000_000),
    bad_head("an endless head", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4_000_000),
    Case(
        "chunks of HTTP/1.0",
        broken,
        function=says(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "close"),
    ),
]

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def breaks(name: str, data: bytes, then: str = "close") -> Case:
    return Case(f"broken off: {name}", broken, function=says(data, then))


BROKEN = [
    breaks("a short body", OK + b"Content-Length: 10\r\n\r\nfirst"),
    breaks("a reset in the body", OK + b"Content-Length: 10\r\n\r\nfirst", "reset"),
    breaks("no body", OK + b"Content-Length: 10\r\n\r\n"),
    breaks("an end between chunks", CHUNKED + b"5\r\nfirst\r\n"),
    breaks("an end in a chunk", CHUNKED + b"9\r\nfirst"),
    breaks("an end in a size", CHUNKED + b"5\r\nfirst\r\n5"),
    breaks("an end behind the last size", CHUNKED + b"5\r\nfirst\r\n0\r\n"),
    breaks("an end before any chunk", CHUNKED),
    breaks("a reset between chunks", CHUNKED + b"5\r\nfirst\r\n", "reset"),
    breaks("a size of nonsense", CHUNKED + b"5\r\nfirst\r\nnonsense\r\n", "keep"),
    breaks("a negative size", CHUNKED + b"5\r\nfirst\r\n-5\r\nfirst\r\n0\r\n\r\n", "keep"),
    breaks("a size with 0x", CHUNKED + b"0x5\r\nfirst\r\n0\r\n\r\n", "keep"),
    breaks("a size with _", CHUNKED + b"0_5\r\nfirst\r\n0\r\n\r\n", "keep"),
    breaks("an empty size", CHUNKED + b"\r\nfirst\r\n0\r\n\r\n", "keep"),
    breaks("a size beyond 64 bits", CHUNKED + b"fffffffffffffffff\r\nfirst\r\n0\r\n\r\n", "keep"),
    breaks("a chunk that is longer than its size", CHUNKED + b"5\r\nfirstXX0\r\n\r\n", "keep"),
    breaks("an extension without an end", CHUNKED + b"5;" + b"x" * 10_000_000),
    breaks("trailers without an end", CHUNKED + b"0\r\n" + b"X: y\r\n" * 4_000_000),
    breaks("a bad chunk behind good ones", CHUNKED + b"5\r\nfirst\r\n" * 50 + b"?\r\n", "keep"),
    Case(
        "broken off: chunks, for a client of HTTP/1.0",
        broken,
        b"GET {path} HTTP/1.0\r\nHost: front\r\n\r\n",
        says(CHUNKED + b"5\r\nfirst\r\n", "close"),
    ),
]

ANSWERS = [
    Case("an answer", good),
    Case("an answer in many pieces", good, function=says(GOOD, pieces=20)),
    Case("an empty reason", answer(), function=says(b"HTTP/1.1 200 \r\n" + GOOD[17:])),
    Case("no reason", answer(), function=says(b"HTTP/1.1 200\r\n" + GOOD[17:])),
    Case("a reason that is not ASCII", answer(), function=says(b"HTTP/1.1 200 \xc3\xa9\r\n" + GOOD[17:])),
    Case("a status of one's own", answer(status=599), function=says(b"HTTP/1.1 599 Own" + GOOD[15:])),
    Case("404", answer(status=404), function=says(b"HTTP/1.1 404 Not Found" + GOOD[15:])),
    Case("503", answer(status=503), function=says(b"HTTP/1.1 503 No" + GOOD[15:])),
    Case("equal lengths", answer(), function=says(OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok")),
    Case(
        "one value of equal lengths",
        header("Content-Length", "2"),
        function=says(lines(b"content-length: 2")),
    ),
    Case(
        "a length beside chunks",
        answer(),
        function=says(lines(b"Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n")),
    ),
    Case("a folded line", header("X-F", "one two"), function=says(lines(b"X-F: one\r\n two"))),
    Case("a value without a space before it", header("X-Y", "z"), function=says(lines(b"X-Y:z"))),
    Case("spaces around a value", header("X-Y", "z"), function=says(lines(b"X-Y: \t z \t"))),
    Case("an empty value", header("X-Y", ""), function=says(lines(b"X-Y:"))),
    Case("a value that is not ASCII", header("X-Y", "caf\xe9"), function=says(lines(b"X-Y: caf\xe9"))),
    Case(
        "cookies",
        header("Set-Cookie", "a=1", "b=2"),
        function=says(lines(b"Set-Cookie: a=1", b"Set-Cookie: b=2")),
    ),
    Case("a long value", header("X-Y", "z" * 6000), function=says(lines(b"X-Y: " + b"z" * 6000))),
    Case(
        "a header that Connection names",
        header("X-Private"),
        function=says(lines(b"Connection: X-Private", b"X-Private: 1")),
    ),
    Case("Keep-Alive", header("Keep-Alive"), function=says(lines(b"Keep-Alive: timeout=5"))),
    Case(
        "Proxy-Authenticate", header("Proxy-Authenticate"), function=says(lines(b"Proxy-Authenticate: Basic"))
    ),
    Case(
        "a coding of the content",
        header("Content-Encoding", "gzip"),
        function=says(lines(b"Content-Encoding: gzip")),
    ),
    Case(
        "a redirect",
        header("Location", "/b"),
        function=says(b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"),
    ),
    Case("204", answer(status=204, body=b""), function=says(b"HTTP/1.1 204 No Content\r\n\r\n")),
    Case(
        "204 with a length",
        answer(status=204, body=b""),
        function=says(b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n"),
    ),
    Case(
        "304", answer(status=304, body=b""), function=says(b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n')
    ),
    Case(
        "304 with a length",
        answer(status=304, body=b""),
        function=says(b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n"),
    ),
    Case("no body", answer(body=b""), function=says(lines(body=b""))),
    Case(
        "HEAD",
        header("Content-Length", "12345"),
        request(method=b"HEAD"),
        says(OK + b"Content-Length: 12345\r\n\r\n"),
    ),
    Case("HEAD of chunks", answer(body=b""), request(method=b"HEAD"), says(CHUNKED)),
    Case("until the end", answer(), function=says(OK + b"\r\nok", "close")),
    Case("until the end, HTTP/1.0", answer(), function=says(b"HTTP/1.0 200 OK\r\n\r\nok", "close")),
    Case(
        "HTTP/1.0 with a length", answer(), function=says(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
    ),
    Case("Connection: close", answer(), function=says(lines(b"Connection: close"), "close")),
    Case("more than was announced", answer(), function=says(GOOD + b"and more")),
    Case("another response behind it", answer(), function=says(GOOD + GOOD)),
    Case(
        "interim responses",
        answer(),
        function=says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + GOOD),
    ),
    Case("chunks", answer(), function=says(CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n")),
    Case(
        "chunks byte by byte",
        answer(),
        function=says(CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n", pieces=1000),
    ),
    Case("chunks with extensions", answer(), function=says(CHUNKED + b'2;a=b;c="d;e"\r\nok\r\n0;x\r\n\r\n')),
    Case(
        "chunks with zeros before their size", answer(), function=says(CHUNKED + b"0002\r\nok\r\n000\r\n\r\n")
    ),
    Case(
        "chunks with capitals",
        answer(body=b"x" * 10),
        function=says(CHUNKED + b"A\r\nxxxxxxxxxx\r\n0\r\n\r\n"),
    ),
    Case("trailers", answer(), function=says(CHUNKED + b"2\r\nok\r\n0\r\nX-T: 1\r\n\r\n")),
    Case(
        "Chunked in capitals",
        answer(),
        function=says(OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    ),
    Case("a large body", answer(body=b"x" * 3_000_000), function=says(lines(body=b"x" * 3_000_000))),
    Case(
        "a large body in chunks",
        answer(body=b"x" * 3_000_000),
        function=says(CHUNKED + (b"186a0\r\n" + b"x" * 100_000 + b"\r\n") * 30 + b"0\r\n\r\n"),
    ),
]

REQUESTS = [
    Case("HTTP/1.0", good, b"GET {path} HTTP/1.0\r\nHost: front\r\n\r\n"),
    Case("a path as it was sent", seen_target("/a%2Fb%20c/%c3%a9"), request(path=b"{path}/a%2Fb%20c/%c3%a9")),
    Case("slashes", seen_target("//double//"), request(path=b"{path}//double//")),
    Case(
        "a query as it was sent", seen_target("/a?x=%2f&y=[1]&&z"), request(path=b"{path}/a?x=%2f&y=[1]&&z")
    ),
    Case("the host", seen("Host", "front"), request()),
    Case(
        "a header twice",
        lambda a, r: good(a, r) and ",".join(r[0].all("X-Y")).replace(" ", "") == "1,2",
        request(b"X-Y: 1", b"X-Y: 2"),
    ),
    Case(
        "cookies in two lines",
        lambda a, r: good(a, r) and "; ".join(r[0].all("Cookie")) == "a=1; b=2",
        request(b"Cookie: a=1", b"Cookie: b=2"),
    ),
    Case("cookies in one line", seen("Cookie", "a=1; b=2"), request(b"Cookie: a=1; b=2")),
    Case("Authorization", seen("Authorization", "Bearer x"), request(b"Authorization: Bearer x")),
    Case("a value that is not ASCII going up", seen("X-Y", "caf\xe9"), request(b"X-Y: caf\xe9")),
    Case("Keep-Alive going up", seen("Keep-Alive"), request(b"Keep-Alive: timeout=5")),
    Case("Proxy-Connection", seen("Proxy-Connection"), request(b"Proxy-Connection: keep-alive")),
    Case("Proxy-Authorization", seen("Proxy-Authorization"), request(b"Proxy-Authorization: Basic x")),
    Case(
        "TE",
        lambda a, r: good(a, r) and r[0].all("TE") in ([], ["trailers"]),
        request(b"TE: trailers, deflate", b"Connection: TE"),
    ),
    Case("Trailer", lambda a, r: good(a, r), request(b"Trailer: X")),
    Case(
        "an upgrade to what nobody knows", seen("Upgrade"), request(b"Connection: Upgrade", b"Upgrade: h3c")
    ),
    Case(
        "a header that Connection names going up",
        seen("X-Private"),
        request(b"Connection: X-Private", b"X-Private: 1"),
    ),
    Case(
        "X-Forwarded-For of a client",
        lambda a, r: good(a, r) and "198.51.100.1" not in ",".join(r[0].all("X-Forwarded-For")),
        request(b"X-Forwarded-For: 198.51.100.1"),
    ),
    Case(
        "X-Forwarded-Proto of a client",
        seen("X-Forwarded-Proto", "http"),
        request(b"X-Forwarded-Proto: gopher"),
    ),
    Case(
        "X-Forwarded-Host of a client",
        seen("X-Forwarded-Host", "front"),
        request(b"X-Forwarded-Host: evil.example"),
    ),
    Case(
        "Forwarded of a client",
        lambda a, r: good(a, r) and "evil" not in ",".join(r[0].all("Forwarded")),
        request(b"Forwarded: for=evil"),
    ),
    Case("OPTIONS", good, request(method=b"OPTIONS")),
    Case(
        "a method of one's own",
        lambda a, r: good(a, r) and r[0].line.startswith("BREW "),
        request(method=b"BREW"),
    ),
    Case("DELETE", good, request(method=b"DELETE")),
    Case("POST", seen_body(b"hello"), request(b"Content-Length: 5", method=b"POST", body=b"hello")),
    Case("PUT of nothing", seen_body(b""), request(b"Content-Length: 0", method=b"PUT")),
    Case("GET with a body", seen_body(b"hello"), request(b"Content-Length: 5", body=b"hello")),
    Case(
        "chunks going up",
        seen_body(b"hello"),
        request(
            b"Transfer-Encoding: chunked",
            method=b"POST",
            body=b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-T: 1\r\n\r\n",
        ),
    ),
    Case(
        "a large body going up",
        seen_body(b"x" * 3_000_000),
        request(b"Content-Length: 3000000", method=b"POST", body=b"x" * 3_000_000),
    ),
    Case(
        "Expect",
        seen_body(b"hello"),
        request(b"Expect: 100-continue", b"Content-Length: 5", method=b"POST", body=b"hello"),
    ),
    Case("CONNECT", refused(400, 404, 405), b"CONNECT front:80 HTTP/1.1\r\nHost: front:80\r\n\r\n"),
    Case(
        "a length that is no number",
        refused(400),
        request(b"Content-Length: +5", method=b"POST", body=b"hello"),
    ),
    Case(
        "two lengths going up",
        refused(400),
        request(b"Content-Length: 5", b"Content-Length: 6", method=b"POST", body=b"hello!"),
    ),
    Case(
        "a length and chunks going up",
        lambda a, r: a.status in (200, 400),
        request(b"Content-Length: 5", b"Transfer-Encoding: chunked", method=b"POST", body=b"0\r\n\r\n"),
    ),
    Case("a line without a colon going up", refused(400), request(b"nocolon")),
    Case(
        "a bad chunk going up",
        lambda a, r: a.status in (400, 502) and not (r and r[0].whole),
        request(b"Transfer-Encoding: chunked", method=b"POST", body=b"zz\r\nhello\r\n0\r\n\r\n"),
        read_body=True,
    ),
    Case(
        "a body that breaks off",
        lambda a, r: a.status in (0, 400, 502) and not (r and r[0].whole),
        request(b"Content-Length: 50", method=b"POST", body=b"hello"),
        then="half-close",
    ),
    Case(
        "an answer before the body",
        answer(status=413),
        request(b"Content-Length: 50", method=b"POST", body=b"hello"),
        says(b"HTTP/1.1 413 Large" + GOOD[15:], "close"),
        read_body=False,
    ),
    Case(
        "an answer before the chunks",
        answer(status=401),
        request(b"Transfer-Encoding: chunked", method=b"POST", body=b"5\r\nhello\r\n"),
        says(b"HTTP/1.1 401 No" + GOOD[15:], "keep"),
        read_body=False,
    ),
]

CASES = BAD_HEADS + BROKEN + ANSWERS + REQUESTS
