"""The request that goes to the function, made from the client's ``environ``. Knows nothing of sockets."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from .errors import Refused
from .parser import HOP_BY_HOP
from .pool import Endpoint

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_SCHEME_AND_HOST = re.compile(r"^[a-z][a-z0-9+.-]*://[^/?#]*", re.IGNORECASE)
_OCTET = re.compile(r"%[0-9a-f]{2}|.", re.IGNORECASE | re.DOTALL)
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))  # what may stand in a request line
_IS_VISIBLE = re.compile(r"[\x21-\x7e]*")
_PCHAR = "/!$&'()*+,;=:@"  # RFC 3986 section 3.3
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_JOINED_COOKIES = re.compile(r"[ \t]*,[ \t]*(?=[!#$%&'*+.^_`|~0-9A-Za-z-]+=)")

_NO_TUNNELS = frozenset({"CONNECT", "TRACE"})
_ALLOWED = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_USUAL = frozenset(_ALLOWED.split(", "))
_OURS = frozenset({"host", "content-type", "content-length", "forwarded", "cookie"})
_MAX_LENGTH_DIGITS = 18

_NOBODY: frozenset[str] = frozenset()


class Framing(NamedTuple):
    """How long the request's body is.

    :param header: the header that says so; empty if there is no body.
    :param has_body: whether there is something to read.
    :param length: bytes; ``None`` for chunks.
    """

    header: str
    has_body: bool
    length: int | None


_NO_BODY = Framing("", False, 0)


def head_of(
    environ: WSGIEnvironment, endpoint: Endpoint, stripped: str, framing: Framing, upgrade: bool, trust: bool
) -> bytes:
    """Return the request line and the headers, with the empty line behind them.

    :param stripped: what is taken off the path, as it names the function.
    :param upgrade: whether a websocket is asked for.
    :param trust: whether the client's ``Forwarded`` and ``X-Forwarded-*`` are kept.
    :raises Refused: a part of it cannot be sent.
    """
    lines = [
        f"{environ['REQUEST_METHOD']} {_target(environ, endpoint.path, stripped)} HTTP/1.1",
        f"Host: {environ.get('HTTP_HOST') or endpoint.authority}",
    ]
    connection = environ.get("HTTP_CONNECTION")
    dropped = _NOBODY if connection is None else _listed(connection)
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            name = _field_name(key)
            if name is not None and not (dropped and name.lower() in dropped):
                lines.append(f"{name}: {value}")
    cookie = environ.get("HTTP_COOKIE")
    if cookie is not None and "cookie" not in dropped:
        # Servers join the lines of a header by commas, which no cookie may have: RFC 6265 section 4.1.1.
        lines.append(f"Cookie: {_JOINED_COOKIES.sub('; ', cookie) if ',' in cookie else cookie}")
    if environ.get("CONTENT_TYPE"):
        lines.append(f"Content-Type: {environ['CONTENT_TYPE']}")
    if framing.header:
        lines.append(framing.header)
    if upgrade:
        lines += ["Connection: Upgrade", "Upgrade: websocket"]
    _add_forwarded(lines, environ, stripped, trust)
    text = "".join(lines)
    if not (text.isascii() and text.isprintable()) and _CONTROLS.search(text):
        raise Refused("400 BAD REQUEST", "A header holds a control character.")
    try:
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError:  # no server does that: PEP 3333, "Unicode Issues"
        raise Refused("400 BAD REQUEST", "A header holds what is no byte.") from None


@lru_cache(maxsize=1024)
def _field_name(key: str) -> str | None:
    """Return the header's name for a key of ``environ``; ``None`` if it does not go on as it is."""
    name = key[5:].replace("_", "-").title()
    lower = name.lower()
    if lower in HOP_BY_HOP or lower in _OURS or lower.startswith("x-forwarded-"):
        return None
    return name if _TOKEN.fullmatch(name) else None


@lru_cache(maxsize=256)
def _listed(connection: str) -> frozenset[str]:
    """Return the headers that ``Connection`` names."""
    names = {name.strip(" \t").lower() for name in connection.split(",")}
    return frozenset(names - {"", "close", "keep-alive", "upgrade", "host"})


# The way it came


def _add_forwarded(lines: list[str], environ: WSGIEnvironment, stripped: str, trust: bool) -> None:
    """Say where the request came from: RFC 7239, and the headers from before it."""
    address, host = environ.get("REMOTE_ADDR") or "", environ.get("HTTP_HOST") or ""
    scheme: str = environ["wsgi.url_scheme"]
    prefix = environ.get("SCRIPT_NAME", "") + stripped
    if prefix:
        prefix = _quoted(prefix)
    element = f"for={_node(address)};proto={scheme}"
    if host:
        element += ';host="' + host.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if trust:
        element = _joined(environ.get("HTTP_FORWARDED"), element)
        address = _joined(environ.get("HTTP_X_FORWARDED_FOR"), address)
        scheme = environ.get("HTTP_X_FORWARDED_PROTO") or scheme
        host = environ.get("HTTP_X_FORWARDED_HOST") or host
        prefix = environ.get("HTTP_X_FORWARDED_PREFIX", "").rstrip("/") + prefix
        written = ("FOR", "PROTO", "HOST", "PREFIX")
        for key in environ:
            name = key[5:].replace("_", "-").title()
            if key.startswith("HTTP_X_FORWARDED_") and key[17:] not in written and _TOKEN.fullmatch(name):
                lines.append(f"{name}: {environ[key]}")
    lines.append(f"Forwarded: {element}")
    if address:
        lines.append(f"X-Forwarded-For: {address}")
    lines.append(f"X-Forwarded-Proto: {scheme}")
    if host:
        lines.append(f"X-Forwarded-Host: {host}")
    if prefix:
        lines.append(f"X-Forwarded-Prefix: {prefix}")


@lru_cache(maxsize=1024)
def _quoted(path: str) -> str:
    return quote(path, _PCHAR, "latin-1", "replace")


@lru_cache(maxsize=1024)
def _node(address: str) -> str:
    """Return an address as RFC 7239 section 6 has it."""
    if not address:
        return "unknown"
    if ":" in address:
        return f'"[{address}]"'
    return address if _TOKEN.fullmatch(address) else "unknown"


def _joined(before: str | None, ours: str) -> str:
    return ", ".join(filter(None, (before, ours)))


# The target


def _target(environ: WSGIEnvironment, base_path: str, stripped: str) -> str:
    path = _path_as_sent(environ, stripped)
    if base_path and not {".", ".."}.isdisjoint(unquote(path).split("/")):
        raise Refused("400 BAD REQUEST", "The path has dot segments.")  # they could lead out of base_path
    query = environ.get("QUERY_STRING", "")
    target = f"{base_path}{path}?{query}" if query else base_path + path
    if _IS_VISIBLE.fullmatch(target):
        return target
    return quote(target, safe=_VISIBLE, encoding="latin-1", errors="replace")


def _path_as_sent(environ: WSGIEnvironment, stripped: str) -> str:
    """Return the path after ``stripped``, still encoded: as the client wrote it, where the server tells that.

    ``PATH_INFO`` is decoded, so ``%2F`` and ``/`` look the same in it. ``RAW_URI`` (gunicorn, werkzeug) and
    ``REQUEST_URI`` (uWSGI, waitress, werkzeug) are not, but something may have changed the path since, so
    they count only if they say the same. A proxy in front may have cut the mount point off them.
    """
    path: str = environ.get("PATH_INFO", "")
    for key in ("RAW_URI", "REQUEST_URI"):
        raw: str = environ.get(key, "").partition("?")[0]
        if raw and not raw.startswith("/"):
            raw = _SCHEME_AND_HOST.sub("", raw)
        for mount in (environ.get("SCRIPT_NAME", ""), "") if raw else ():
            whole = mount + path
            if raw == whole and "%" not in raw:
                rest = raw[len(mount) + len(stripped) :] or "/"
            elif unquote(raw, "latin-1") == whole:
                rest = "".join(_OCTET.findall(raw)[len(mount) + len(stripped) :]) or "/"
            else:
                continue
            if rest.startswith("/"):
                return rest
    return _quoted(path[len(stripped) :]) or "/"


# The framing


def check_method(method: str) -> None:
    """Check that a request of this method can be passed on.

    :raises Refused: it cannot.
    """
    if method in _USUAL:
        return
    if method in _NO_TUNNELS:
        raise Refused("405 METHOD NOT ALLOWED", f"{method} is not passed on.", [("Allow", _ALLOWED)])
    if not _TOKEN.fullmatch(method):
        raise Refused("400 BAD REQUEST", "The method is not one.")


def framing_of(environ: WSGIEnvironment) -> Framing:
    """Return how long the request's body is.

    :raises Refused: nobody can tell.
    """
    coding = environ.get("HTTP_TRANSFER_ENCODING")
    if coding is not None:
        coding = coding.strip().lower()
    if coding == "chunked" and environ.get("wsgi.input_terminated"):
        return Framing("Transfer-Encoding: chunked", True, None)
    if coding:  # without wsgi.input_terminated nobody can tell where a chunked body ends
        raise Refused("411 LENGTH REQUIRED", "The request needs a Content-Length.")
    length = environ.get("CONTENT_LENGTH") or ""
    if not length:
        return _NO_BODY
    if not (length.isascii() and length.isdecimal()):
        raise Refused("400 BAD REQUEST", "The Content-Length is not a number.")
    if len(length) > _MAX_LENGTH_DIGITS:
        raise Refused("413 CONTENT TOO LARGE", "The Content-Length is beyond all bounds.")
    return Framing(f"Content-Length: {length}", int(length) > 0, int(length))
