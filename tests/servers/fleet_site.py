"""A site for several workers, who have nothing in common but the files under ``$FLEET``.

Every call to the provider leaves a line in ``calls``. A function ``warm…`` is up; any other one is up
``$START`` seconds after it was scaled up. A call takes as many seconds as the file ``slow`` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scalezero_wsgi import ReplicaStatus, ScaleZeroMiddleware, Settings
from scalezero_wsgi.providers import CallbackProvider

FLEET = Path(os.environ.get("FLEET", "."))
START = float(os.environ.get("START", "0.3"))


def note(call: str, name: str) -> None:
    with (FLEET / "calls").open("a") as calls:
        calls.write(f"{call} {name} {os.getpid()} {time.monotonic()}\n")


class Files:
    """A provider for several processes."""

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        note("get", name)
        with contextlib.suppress(FileNotFoundError):
            time.sleep(float((FLEET / "slow").read_text() or "0"))
        if name.startswith("warm"):
            return ReplicaStatus(1, 1)
        try:
            started = float((FLEET / f"{name}.started").read_text())
        except FileNotFoundError:
            return ReplicaStatus(0, 0)
        return ReplicaStatus(1, int(time.monotonic() >= started + START))

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        note("set", name)
        new = FLEET / f"{name}.{os.getpid()}"
        new.write_text(str(time.monotonic()))
        new.rename(FLEET / f"{name}.started")


def bare() -> Any:
    """An application that does a little work: it makes an answer of 9 KiB in JSON."""

    def listing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        rows = [{"id": number, "name": "row", "path": environ["PATH_INFO"]} for number in range(160)]
        body = json.dumps(rows).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return listing


def wrapped() -> Any:
    """The same behind the middleware."""
    return ScaleZeroMiddleware(bare(), Files(), settings=Settings.from_environ())


def make() -> Any:
    """The site; a function, so that a root master may import what its workers could not read."""

    def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = f"{os.getpid()}\n".encode()
        if environ["PATH_INFO"] == "/stores":
            paths = [getattr(door.scaler._fleet._store, "_path", None) for door in doors]
            body = json.dumps([os.getpid(), [path and str(path) for path in paths]]).encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    settings = Settings.from_environ()
    second = ScaleZeroMiddleware(hello, Files(), settings=settings, route="/second/")
    doors = ScaleZeroMiddleware(second, Files(), settings=settings), second
    return doors[0]


def pushed() -> Any:
    """A site whose provider knows only what it was told itself."""

    def scale_up(name: str, namespace: str) -> None:
        note("set", name)
        time.sleep(START)

    def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = f"{os.getpid()}\n".encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return ScaleZeroMiddleware(hello, CallbackProvider(scale_up=scale_up), cache_expiry=0.05, stale_for=0.05)
