"""The site of the matrix: a function ``after-300-x`` takes 300 ms to start; others start when told to."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.providers import CallbackProvider

WORK = float(os.environ.get("WORK", "0"))
"""Seconds that a warm function works for."""

starts: Counter[str] = Counter()
calls: Counter[str] = Counter()
signalled = False


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
        calls[path.split("/")[2]] += 1
        time.sleep(WORK)
        return [b"{}\n"]
    if path == "/signal":
        signalled = True
    if path == "/counts":
        queue = application.queue
        by_function = {function.name: count for function, count in queue.by_function().items()}
        counts = {"waiting": queue.waiting(), "by_function": by_function, "starts": starts, "calls": calls}
        return [json.dumps({"pid": os.getpid(), **counts}).encode()]
    return [b"{}\n"]


application = ScaleZeroMiddleware(app, CallbackProvider(scale_up=scale_up), settings=Settings.from_environ())
