"""Where processes meet; see :mod:`scalezero_wsgi.coordination.base`."""

from __future__ import annotations

import re
from urllib.parse import unquote

from ..model import SettingError
from ..server import loading_gunicorn
from .base import Coordination, CoordinationError

__all__ = ["Coordination", "CoordinationError", "make_coordination"]


def make_coordination(url: str) -> Coordination:
    """Make a store by its URL.

    :param url: ``"memory://"`` for the threads of one process, ``"sqlite:///path/of/file"`` for the workers
        of one host, or one of ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://`` and
        ``redis+cluster://`` for many hosts, see
        :class:`~scalezero_wsgi.coordination.redis.RedisCoordination`.
    :raises SettingError: it is none of these, or cannot be used.
    :raises MissingExtra: the library is not installed.
    """
    scheme, _, rest = url.partition("://")
    if url == "memory://":
        from .memory import MemoryCoordination

        return MemoryCoordination()
    if scheme == "sqlite" and re.fullmatch(r"/[^?#]*[^/?#]", rest):
        try:
            from .sqlite import SQLiteCoordination
        except ImportError as error:
            raise SettingError(f"this Python has no sqlite3: {error}") from None
        gunicorn = loading_gunicorn()
        return SQLiteCoordination(unquote(rest), owner=gunicorn and gunicorn.uid)
    if re.fullmatch(r"unix|rediss?(\+(sentinel|cluster))?", scheme):
        from .redis import RedisCoordination

        return RedisCoordination(url)
    shown = "the URL, which may hold a password," if re.search("[@?]", url) else repr(url)
    raise SettingError(
        f"{shown} is not allowed; it must be memory://, sqlite:///path/of/file, redis://host,"
        " rediss://host, unix:///path/of/socket, redis+sentinel://host,host/service or redis+cluster://host,host"
    )
