"""What is set for an OpenFaaS gateway: its address, the credentials, where its functions are reached.

No text of an error here holds a credential.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from ...model import SettingError
from ..checks import not_allowed
from ..url import read_url

NAME = re.compile(r"[-a-zA-Z0-9_][-a-zA-Z0-9_.]{0,252}", re.ASCII)
"""What a function or a namespace can be called; it needs no encoding in a URL, and is never a dot segment."""

_VISIBLE = re.compile(r"[!-~]+", re.ASCII)
_URL_ALLOWED = "an http:// or https:// URL without query or fragment"
_ENDPOINT_ALLOWED = "'gateway', or an http:// or https:// URL in which {name} and {namespace} may stand"
_NAMESPACES_ALLOWED = "a list of names, or names with commas between"


class Credentials(NamedTuple):
    """What is sent as ``Authorization``, and the texts that must not appear in a log."""

    header: str | None = None
    secrets: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Credentials(***)"


def parameters(url: object, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """Split ``openfaas+http://...?keyword=value`` into the gateway's URL and the keywords.

    :raises SettingError: it is no such URL, or a keyword is not ``known`` or stands there twice.
    """
    allowed = "openfaas+http://... or openfaas+https://..."
    if not isinstance(url, str) or not _VISIBLE.fullmatch(url):
        raise not_allowed("url", _shown(url), allowed)
    if "@" in url.partition("?")[2]:  # what stands before it may be a password
        raise SettingError("url is not allowed; after the '?' and in a password '@' must be written '%40'")
    try:
        parts, keywords = read_url(url, known)
    except SettingError:
        raise
    except ValueError:
        raise not_allowed("url", _shown(url), allowed) from None
    if parts.scheme not in ("openfaas+http", "openfaas+https"):
        raise not_allowed("url", _shown(url), allowed)
    return urlunsplit(parts).removeprefix("openfaas+"), keywords


def split_url(url: object) -> tuple[str, Credentials | None]:
    """Return the gateway's base URL, without a slash at its end, and the credentials that were in it."""
    if not isinstance(url, str) or not _VISIBLE.fullmatch(url):
        raise not_allowed("url", _shown(url), _URL_ALLOWED)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        raise not_allowed("url", _shown(url), _URL_ALLOWED) from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise not_allowed("url", _shown(url), _URL_ALLOWED)
    base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    username, password = (text and unquote(text) for text in (parts.username, parts.password))
    return base, basic(username, password)


def _shown(url: object) -> object:
    """Return the URL without what may be a credential, however malformed it is."""
    if not isinstance(url, str):
        return url
    head, at, rest = url.rpartition("@")
    scheme, slashes, _ = head.partition("//")
    return (f"{scheme}//***@" if slashes else "***@" if at else "") + re.split("[?#]", rest)[0]


def credentials(*ways: Credentials | None) -> Credentials:
    """Return the one way that is given, if any."""
    given = [way for way in ways if way is not None]
    if len(given) > 1:
        raise SettingError(
            "credentials may be given in one way only: in the url, as username and password, as token or by"
            " secret_mount_path"
        )
    return given[0] if given else Credentials()


def basic(username: object, password: object) -> Credentials | None:
    """Return basic authentication (RFC 7617, in UTF-8); ``None`` without a user."""
    if username is None and password is None:
        return None
    if not _is_text(username) or ":" in str(username):
        raise SettingError("username is not allowed; it must be a text without ':', and needs a password")
    if not _is_text(password):
        raise SettingError("password is not allowed; it must be a text, and needs a username")
    encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
    return Credentials(f"Basic {encoded}", (encoded, str(password)))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and value != ""


def bearer(token: object) -> Credentials | None:
    """Return a bearer token (RFC 6750); ``None`` without one."""
    if token is None:
        return None
    if not isinstance(token, str) or not _VISIBLE.fullmatch(token):
        raise SettingError("token is not allowed; it must be a text of visible ASCII characters")
    return Credentials(f"Bearer {token}", (token,))


def mounted(directory: str | os.PathLike[str] | None) -> Credentials | None:
    """Read basic authentication from the two files of a mounted secret."""
    if directory is None:
        return None
    username, password = (_trimmed(Path(directory, f"basic-auth-{name}")) for name in ("user", "password"))
    try:
        return basic(username, password)
    except SettingError as error:
        raise SettingError(f"secret_mount_path = {os.fspath(directory)!r}: {error}") from None


def _trimmed(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingError(f"secret_mount_path: {path} cannot be read: {error.strerror}") from error
    except ValueError:
        raise SettingError(f"secret_mount_path: {path} is not UTF-8") from None


def existing_file(keyword: str, path: str | os.PathLike[str] | None) -> str | None:
    """Return the path of a file that must exist."""
    if path is not None and not Path(path).is_file():
        raise not_allowed(keyword, os.fspath(path), "a file")
    return None if path is None else os.fspath(path)


def name_or_none(keyword: str, value: object) -> str:
    """Return a name, or an empty text."""
    if not isinstance(value, str) or (value and not NAME.fullmatch(value)):
        raise not_allowed(keyword, value, "a name, or empty")
    return value


def name_list(keyword: str, value: object) -> tuple[str, ...]:
    """Return names from a list, or from a text with commas between."""
    names = value.split(",") if isinstance(value, str) and value else value or ()
    if not isinstance(names, Iterable):
        raise not_allowed(keyword, value, _NAMESPACES_ALLOWED)
    result = tuple(names)
    if not all(isinstance(name, str) and NAME.fullmatch(name) for name in result):
        raise not_allowed(keyword, value, _NAMESPACES_ALLOWED)
    return result


def template(endpoint: object) -> str | None:
    """Return the template of a function's base URL.

    It may hold ``gateway``, ``function``, ``name`` and ``namespace``.
    """
    if endpoint is None:
        return None
    if endpoint == "gateway":
        return "{gateway}/function/{function}"
    if not isinstance(endpoint, str):
        raise not_allowed("endpoint", endpoint, _ENDPOINT_ALLOWED)
    try:
        parts = urlsplit(endpoint.format(name="name", namespace="namespace"))
        host, _ = parts.hostname, parts.port
    except (LookupError, ValueError, AttributeError):
        raise not_allowed("endpoint", _shown(endpoint), _ENDPOINT_ALLOWED) from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query:
        raise not_allowed("endpoint", _shown(endpoint), _ENDPOINT_ALLOWED)
    return endpoint.rstrip("/")


def ready_path(ready: object, endpoint: object) -> str | None:
    """Return a path under the endpoint."""
    if ready is None:
        return None
    if not isinstance(ready, str) or not _VISIBLE.fullmatch(ready) or not ready.startswith("/"):
        raise not_allowed("ready", ready, "a path such as '/_/ready', percent-encoded")
    if endpoint is None:
        raise not_allowed("ready", ready, "given together with endpoint")
    return ready
