"""What has to be known of a request in flight, to tell whether and for how long it keeps its function up.

Each setting that needs it puts a layer around the application that the middleware calls for functions.
Without the settings it is the application itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .streams import Streams

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..activation.idling.idler import Idler
    from ..settings import Settings


def used_app(
    app: WSGIApplication, idler: Idler | None, settings: Settings, clock: Callable[[], float]
) -> WSGIApplication:
    """Return what the middleware calls for a function's request, with its token for ``start_response``."""
    if idler is None:
        return app
    if settings.stream_idle_after is not None:
        app = Streams(app, clock)
    return app
