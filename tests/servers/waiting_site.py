"""A site whose functions start slowly, by a callback, beside a path that answers at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.providers import CallbackProvider

DELAY = float(os.environ.get("DELAY", "2"))
starts: list[str] = []


def scale_up(name: str, namespace: str) -> None:
    starts.append(name)
    time.sleep(DELAY)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/starts":
        return [str(len(starts)).encode()]
    return [f"{os.getpid()} {threading.active_count()}".encode()]


application = ScaleZeroMiddleware(app, CallbackProvider(scale_up=scale_up))
