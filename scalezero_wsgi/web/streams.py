"""Note since when a request in flight carries nothing: it may be a forgotten one (``stream_idle_after``).

What is noted is an attribute of the request's token among those in flight, ``silent_since``, in monotonic
seconds. :mod:`..activation.idling.uses` reads it in another thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .replay import close, is_server_file, may_be_repeated

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CARRIED = "scalezero_wsgi.carried"
"""In ``environ``: to be called by an application when it has passed bytes on by itself, as a websocket's."""

COUNTS = math.inf
"""Instead of a moment: the request counts as use."""


class Streams:
    """The application that the middleware calls for functions. Safe for threads.

    :param clock: monotonic seconds.
    """

    def __init__(self, app: WSGIApplication, clock: Callable[[], float]) -> None:
        self._app = app
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, token: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333).

        :param token: what the request has among those in flight is its ``start_response``.
        """
        stream = _Stream(token, self._clock, "HTTP_UPGRADE" in environ)
        # A long poll has carried nothing since it came. Any other may send its client's body still, or have
        # work done; and what becomes of a socket that the application has taken over is not to be seen here.
        if may_be_repeated(environ) and "HTTP_UPGRADE" not in environ:
            stream.carried()
        else:
            stream.counts()
        environ[CARRIED] = stream.carried
        result = self._app(environ, stream.start)
        if isinstance(result, (list, tuple)):
            return result
        wrapper = environ.get("wsgi.file_wrapper")
        if wrapper is not None and is_server_file(result, wrapper):
            stream.counts()  # the server sends it by itself
            return result
        stream.result = result
        return stream


class _Stream:
    """One request, and its response as an iterable. Of the thread that serves it."""

    __slots__ = ("_clock", "_token", "_upgrades", "result")

    def __init__(self, token: Any, clock: Callable[[], float], upgrades: bool) -> None:
        self._token = token
        self._clock = clock
        self._upgrades = upgrades
        self.result: Iterable[bytes]

    def counts(self) -> None:
        """Count the request as use until something else is said."""
        self._token.silent_since = COUNTS

    def carried(self) -> None:
        """Note that the request has carried bytes until now, and nothing from now on."""
        self._token.silent_since = self._clock()

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Be the application's ``start_response``."""
        write = self._token(status, headers, *([] if exc_info is None else [exc_info]))
        if not (self._upgrades and status.startswith("101")):
            self.carried()
        return partial(self._write, write)

    def _write(self, write: Callable[[bytes], object], data: bytes) -> None:
        self.counts()
        write(data)
        self.carried()

    def __iter__(self) -> Iterator[bytes]:
        token, clock = self._token, self._clock
        for chunk in self.result:
            if not chunk:
                yield chunk
                continue
            token.silent_since = COUNTS  # while the server sends it, however slowly the client takes it
            yield chunk
            token.silent_since = clock()

    def close(self) -> None:
        """Close the application's iterable."""
        close(self.result)
