"""Read a function's response strictly (RFC 9112). Knows nothing of sockets.

llhttp, by way of httptools, reads heads and chunks. Beside it stand here the few things that it takes and
RFC 9112 does not, and the three that it refuses although a proxy may mend them: folded lines (section 5.2),
equal duplicates of Content-Length, and a Content-Length beside chunks (both section 6.3).
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..model import MissingExtra
from .errors import BadResponse

try:
    from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
except ImportError:
    raise MissingExtra("httptools", "proxy") from None

MAX_HEAD = 64 * 1024  # bytes; of trailers and chunk extensions between two pieces of the body as well
MAX_FIELDS = 128  # header lines
MAX_INTERIM = 16  # responses 1xx before the final one

# RFC 9110 section 7.6.1, and RFC 2616 section 13.5.1 for Proxy-Authenticate and Proxy-Authorization.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"}) | {
    "proxy-authenticate", "proxy-authorization", "transfer-encoding"}  # fmt: skip

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n(?![ \t])")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FOLD = re.compile(rb"[ \t]*\r\n[ \t]+")
_LENGTH_LINE = re.compile(rb"\r\ncontent-length:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_CHUNKED_LINE = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*(?=\r\n)", re.IGNORECASE)

_NO_BODY, _LENGTH, _CHUNKED, _CLOSE = range(4)
_NOTHING: set[str] = set()


class ResponseReader:
    """Reads one response, and what 1xx come before it.

    :param method: of the request; HEAD has no body in its answer.
    :param upgrade: whether the request asked for a websocket, so that 101 is an answer.
    :ivar status: of the final response; 0 until its head is read.
    :ivar headers: those to pass on, in their order.
    :ivar has_length: whether the length of the body is known.
    :ivar complete: whether the response is read to its end.
    :ivar reusable: whether the connection can serve another request once it is complete.
    :ivar error: why nothing that follows can be read: what came before it goes on to the client first.
    :ivar rest: what came behind a 101: the other protocol's bytes.
    """

    status = 0
    reason = ""
    has_length = False
    complete = False
    reusable = False
    error: BadResponse | None = None
    rest = b""
    _head = b""
    _in_head = True
    _interim = 0
    _quiet = 0  # bytes since the last piece of the body
    _left = 0
    _framing = _NO_BODY

    def __init__(self, method: str, upgrade: bool = False) -> None:
        self.headers: list[tuple[str, str]] = []
        self._method = method
        self._upgrade = upgrade
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._parser = HttpResponseParser(self)

    @property
    def begun(self) -> bool:
        """Whether anything of a response has come."""
        return bool(self._head or self.status or self._interim)

    def feed(self, data: bytes) -> bytes:
        """Take what the function sent, and return what of it belongs to the body.

        :raises BadResponse: it is not allowed.
        """
        if self.status == 0:
            data = self._read_heads(self._head + data if self._head else data)
            if not data:
                return data
        framing = self._framing
        if framing == _LENGTH and not self.complete:
            size = len(data)
            if size < self._left:
                self._left -= size
                return data
            self.complete = True
            if size > self._left:  # nobody asked for more
                self.reusable = False
                data = data[: self._left]
            return data
        if framing == _CHUNKED and not self.complete:
            return self._read_chunks(data)
        if framing == _CLOSE:
            return data
        self.reusable = False
        return b""

    def end(self) -> None:
        """Note that the function has closed the connection.

        :raises BadResponse: the response is not complete by that.
        """
        self.reusable = False
        if self.status and self._framing == _CLOSE:
            self.complete = True
        if not self.complete:
            raise BadResponse("the response is incomplete: the connection was closed in the midst of it")

    # Heads

    def _read_heads(self, data: bytes) -> bytes:
        """Read the head, and what 1xx come before; return what is behind it."""
        while True:
            size = data.find(b"\r\n\r\n") + 4
            if size < 4 or size > MAX_HEAD:
                self._head = data
                self._check_beginning(data)
                return b""
            self._head = b""
            self._read_head(data[:size])
            data = data[size:]
            if self.status:
                if self.status == 101:
                    self.rest, data = data, b""
                return data
            if not data:
                return data

    def _check_beginning(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise BadResponse("what it sent is not HTTP/1")
        if _BARE_LF.search(data):
            raise BadResponse("a line of the head ends in LF alone")
        if len(data) > MAX_HEAD:
            raise BadResponse(f"the head is longer than {MAX_HEAD} bytes")

    def _read_head(self, head: bytes) -> None:
        line = _STATUS_LINE.match(head)
        if line is None:
            raise BadResponse("the status line is not valid")
        minor, code, reason = line.groups()
        status = int(code)
        self._fields.clear()
        self._parse(head, status)
        if status < 200 and status != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise BadResponse(f"more than {MAX_INTERIM} interim responses")
            self._parser = HttpResponseParser(self)
            return
        if len(self._fields) > MAX_FIELDS:
            raise BadResponse(f"more than {MAX_FIELDS} header lines")
        self._in_head = False
        self._read_fields(status, minor == b"1")
        if self._framing != _CHUNKED:
            del self._parser  # which holds this reader, and would be left to the garbage collector
        self.status = status
        self.reason = reason.decode("latin-1").strip(" \t") if reason else ""

    def _parse(self, head: bytes, status: int) -> None:
        try:
            try:
                self._parser.feed_data(head)
            except HttpParserError:
                mended = _mended(head)
                if mended == head:
                    raise
                self._fields.clear()
                self._parser = HttpResponseParser(self)
                self._parser.feed_data(mended)
        except HttpParserUpgrade:
            if status == 101 and self._upgrade:
                return
            raise BadResponse("a switch of protocols that nobody asked for") from None
        except HttpParserError as error:
            raise BadResponse(f"the head is not valid: {error}") from None
        if status == 101:  # without Upgrade and Connection, which RFC 9110 section 7.8 demands
            raise BadResponse("a switch of protocols that names none")

    def _read_fields(self, status: int, http_1_1: bool) -> None:
        codings, length, connection = [], None, ""
        headers = self.headers
        for name, value in self._fields:
            known, lower, passes = _field(name)
            if passes:
                headers.append((known, value.decode("latin-1").strip(" \t")))
                if lower == "content-length":
                    length = int(value)  # llhttp took it: digits, and less than 2 ** 64
            elif lower == "connection":
                connection += "," + value.decode("latin-1").lower()
            elif lower == "transfer-encoding":
                codings.append(value.strip(b" \t").lower())
            elif status == 101 and lower == "upgrade" and value.strip(b" \t").lower() != b"websocket":
                raise BadResponse("a switch to another protocol than the one asked for")
        tokens = {token.strip(" \t") for token in connection.split(",")} if connection else _NOTHING
        self.reusable = "close" not in tokens and (http_1_1 or "keep-alive" in tokens)
        if tokens:
            tokens -= {"content-length"}
            self.headers = [field for field in headers if field[0].lower() not in tokens]
        if codings and (codings != [b"chunked"] or not http_1_1):
            # RFC 9112 sections 6.1 and 7.4
            raise BadResponse("a transfer coding that nobody asked for")
        self._frame(status, length, bool(codings))

    def _frame(self, status: int, length: int | None, chunked: bool) -> None:
        """Find out where the body ends: RFC 9112 section 6.3."""
        if status in (101, 204, 304) or self._method == "HEAD":
            self.complete = True
            self.has_length = True
            # A server that announces chunks here may send some, too.
            self.reusable = self.reusable and status != 101 and not (chunked and self._method != "HEAD")
            if status in (101, 204):  # RFC 9110 section 8.6
                self.headers = [field for field in self.headers if field[0].lower() != "content-length"]
        elif chunked:
            self._framing = _CHUNKED
        elif length is None:
            self._framing = _CLOSE
            self.reusable = False
        else:
            self.has_length = True
            self._framing = _LENGTH
            self._left = length
            self.complete = length == 0

    # Chunks

    def _read_chunks(self, data: bytes) -> bytes:
        body = self._body
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.reusable = False
            if not self.complete:
                self.error = BadResponse(f"the response is incomplete: a chunk is not valid: {error}")
        if self.complete:
            del self._parser
        if not body:
            self._quiet += len(data)
            if self._quiet > MAX_HEAD and not self.complete:
                self.error = BadResponse(f"more than {MAX_HEAD} bytes of chunk extensions or trailers")
            return b""
        self._quiet = 0
        joined: bytes = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return joined

    # What llhttp calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header line, or overlook a trailer."""
        if self._in_head:
            self._fields.append((name, value))

    def on_body(self, data: bytes) -> None:
        """Note what a chunk holds; a Content-Length is counted without llhttp."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Note the end of the chunks."""
        if self._framing == _CHUNKED:
            self.complete = True

    def on_message_begin(self) -> None:
        """Note that there is more behind the end."""
        if self.complete:
            self.reusable = False


@lru_cache(maxsize=1024)
def _field(name: bytes) -> tuple[str, str, bool]:
    """Return a header's name, the same in lower case, and whether it is passed on."""
    known = name.decode("latin-1")
    lower = known.lower()
    return known, lower, lower not in HOP_BY_HOP


def _mended(head: bytes) -> bytes:
    """Mend what a proxy may mend, or return the head as it is."""
    head = _FOLD.sub(b" ", head[:-4]) + head[-4:]
    if _CHUNKED_LINE.search(head):
        return _LENGTH_LINE.sub(b"", head)
    values = {value.strip(b" \t") for line in _LENGTH_LINE.findall(head) for value in line.split(b",")}
    if len(values) != 1:
        return head
    lines = iter([b"\r\nContent-Length: " + values.pop()])
    return _LENGTH_LINE.sub(lambda _: next(lines, b""), head)
