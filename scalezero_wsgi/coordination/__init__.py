"""Coordination stores, in which worker processes meet; see :mod:`scalezero_wsgi.coordination.base`."""

from __future__ import annotations

import re
from urllib.parse import unquote

from ..model import SettingError
from ..servers.gunicorn import loading_gunicorn
from .base import Coordination, CoordinationError

__all__ = ["Coordination", "CoordinationError", "make_coordination"]


def make_coordination(url: str) -> Coordination:
    """Return the store that a URL names.

    :param url: ``"memory://"`` for the threads of one process, ``"sqlite:///path/of/file"`` for the workers
        of one host, or one of ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://`` and
        ``redis+cluster://`` for many hosts, see
        :class:`~scalezero_wsgi.coordination.redis.RedisCoordination`.
    :raises SettingError: the URL is none of these, or the store it names cannot be used.
    :raises MissingExtra: the library that the store needs is not installed.
    """
    scheme, _, rest = url.partition("://")
    if url == "memory://":
        from .memory import MemoryCoordination

        return MemoryCoordination()
    if scheme == "sqlite" and re.fullmatch(r"/[^?#]*[^/?#]", rest):
        return _make_sqlite(url, unquote(rest))
    if re.fullmatch(r"unix|rediss?(\+(sentinel|cluster))?", scheme):
        from .redis import RedisCoordination

        return RedisCoordination(url)
    shown = "the URL, which may hold a password," if re.search("[@?]", url) else repr(url)
    raise SettingError(
        f"{shown} is not allowed; it must be memory://, sqlite:///path/of/file, redis://host,"
        " rediss://host, unix:///path/of/socket, redis+sentinel://host,host/service or redis+cluster://host,host"
    )


def _make_sqlite(url: str, path: str) -> Coordination:
    try:
        from .sqlite import SQLiteCoordination
    except ImportError as error:
        raise SettingError(f"this Python has no sqlite3: {error}") from None
    # In SQLAlchemy's URLs three slashes begin a relative path: refuse what was probably meant as one.
    if "/" not in path.strip("/"):
        name = path.strip("/")
        raise SettingError(
            f"{url!r} is not allowed; it means the file /{name}, in the root directory, because the path"
            f" after 'sqlite://' is absolute: write it whole, such as"
            f" 'sqlite:///var/lib/app/scalezero/{name}'"
        )
    gunicorn = loading_gunicorn()
    try:
        return SQLiteCoordination(path, owner=gunicorn and gunicorn.uid)
    except SettingError as error:
        raise SettingError(f"{url!r} is not allowed; it means the file {path}: {error}") from None
