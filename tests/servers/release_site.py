"""A site whose functions start once enough requests wait for them, and its application without the door."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import Any

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.providers import CallbackProvider

COUNT = int(os.environ.get("COUNT", "1000"))
"""Requests that must wait before a function starts."""

START = 1.0
"""Seconds that a start takes from then on."""

HELLO = b"hello\n"

starts: dict[str, tuple[float, float]] = {}
"""For each function the monotonic seconds at which the provider called it ready, and how much processor time
this worker took for a second in which all waited."""


def scale_up(name: str, namespace: str) -> None:
    while application.queue.waiting() < COUNT:
        time.sleep(0.01)
    begun, used = time.monotonic(), time.process_time()
    time.sleep(START)
    ready, used = time.monotonic(), time.process_time() - used
    starts[name] = ready, used / (ready - begun)


def bare(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = HELLO
    if environ["PATH_INFO"] == "/told":
        body = json.dumps({"starts": starts, "processor_time": time.process_time()}).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


application = ScaleZeroMiddleware(bare, CallbackProvider(scale_up=scale_up), settings=Settings.from_environ())
