"""A site that counts how many requests are in the application at once: from its call to its iterable's end.

A function ``after-300-x`` takes 300 ms to start, others start at ``/signal``.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.providers import CallbackProvider

WORK = float(os.environ.get("WORK", "0"))
"""Seconds that a function works for."""

starts: Counter[str] = Counter()
signalled = False


class Inside:
    """Who is in the application."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self.now -= 1


inside = Inside()


def scale_up(name: str, namespace: str) -> None:
    starts[name] += 1
    if name.startswith("after-"):
        time.sleep(int(name.split("-")[1]) / 1000)
        return
    while not signalled:
        time.sleep(0.05)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    global signalled
    start_response("200 OK", [("Content-Type", "application/json")])
    path: str = environ["PATH_INFO"]
    if path.startswith("/function/"):
        return body()
    if path == "/signal":
        signalled = True
    if path == "/counts":
        queue = application.queue
        counts = {"waiting": queue.waiting(), "starts": starts, "most": inside.most}
        return [json.dumps({"pid": os.getpid(), **counts, "threads": threading.active_count()}).encode()]
    return [b"{}\n"]


def body() -> Iterator[bytes]:
    with inside:
        time.sleep(WORK)
        yield b"{}\n"


application = ScaleZeroMiddleware(app, CallbackProvider(scale_up=scale_up), settings=Settings.from_environ())
