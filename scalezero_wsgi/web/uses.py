"""What has to be known of a request in flight, to tell whether and for how long it keeps its function up.

Each setting that needs it puts a layer around the application that the middleware calls for functions.
Without the settings it is the application itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .streams import Streams

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..activation.idling.idler import Idler
    from ..model import Function
    from ..settings import Settings

KEEP_ALIVE = "HTTP_X_SCALEZERO_KEEP_ALIVE"


class Wishes:
    """The application, and a look at the header ``X-Scalezero-Keep-Alive`` before. Safe for threads.

    :param note: is given the function, the request's token, and the header's value or ``None``.
    """

    def __init__(self, app: WSGIApplication, note: Callable[[Function, object, str | None], None]) -> None:
        self._app = app
        self._note = note

    def __call__(self, environ: WSGIEnvironment, token: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333).

        :param token: what the request has among those in flight is its ``start_response``.
        """
        self._note(environ["scalezero_wsgi.function"], token, environ.get(KEEP_ALIVE))
        return self._app(environ, token)


def used_app(
    app: WSGIApplication, idler: Idler | None, settings: Settings, clock: Callable[[], float]
) -> WSGIApplication:
    """Return what the middleware calls for a function's request, with its token for ``start_response``."""
    if idler is None:
        return app
    if settings.stream_idle_after is not None:
        app = Streams(app, clock)
    if idler.gate.keep_alive is not None:
        app = Wishes(app, idler.gate.keep_alive.note)
    return app
