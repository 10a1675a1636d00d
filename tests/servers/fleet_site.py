"""A site for several workers, who have nothing in common but the files under ``$FLEET``.

Every call to the provider leaves a line in ``calls``. A function ``warm…`` is up; any other one is up
``$START`` seconds after it was scaled up. A call takes as many seconds as the file ``slow`` says, and fails
while there is a file ``down``. A function whose ``.started`` file is removed is at zero.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import requests
from flask import Flask, Response, request

from scalezero_wsgi import ReplicaStatus, ScaleZeroMiddleware, Settings
from scalezero_wsgi.providers import CallbackProvider

FLEET = Path(os.environ.get("FLEET", "."))
SLOW, DOWN = FLEET / "slow", FLEET / "down"
START = float(os.environ.get("START", "0.3"))


def note(call: str, name: str) -> None:
    calls = os.open(FLEET / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(calls, f"{call} {name} {os.getpid()} {time.monotonic()}\n".encode())
    finally:
        os.close(calls)


def started_at(name: str) -> float | None:
    try:
        return float((FLEET / f"{name}.started").read_text())
    except FileNotFoundError:
        return None


def is_up(started: float | None) -> bool:
    return started is not None and time.monotonic() >= started + START


class Files:
    """A provider for several processes."""

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        note("get", name)
        if SLOW.exists():
            with contextlib.suppress(FileNotFoundError):
                time.sleep(float(SLOW.read_text() or "0"))
        if DOWN.exists():
            raise ConnectionError("the provider is down")
        if name.startswith("warm"):
            return ReplicaStatus(1, 1)
        started = started_at(name)
        return ReplicaStatus(0, 0) if started is None else ReplicaStatus(1, int(is_up(started)))

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        note("set", name)
        new = FLEET / f"{name}.{os.getpid()}"
        new.write_text(str(time.monotonic()))
        new.rename(FLEET / f"{name}.started")


def rows(path: str) -> bytes:
    """An answer of 9 KiB in JSON."""
    return json.dumps([{"id": number, "name": "row", "path": path} for number in range(160)]).encode()


def bare() -> Any:
    """An application that does a little work."""

    def listing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = rows(environ["PATH_INFO"])
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("200 OK", [*headers, ("X-Worker", str(os.getpid()))])
        return [body]

    return listing


def wrapped() -> Any:
    """The same behind the middleware."""
    return ScaleZeroMiddleware(bare(), Files(), settings=Settings.from_environ())


def flask_bare() -> Flask:
    """A Flask application that does the same work."""
    return flask_app(rows)


def flask_wrapped() -> Flask:
    """The same behind the middleware."""
    return behind(flask_bare())


def flask_proxy_bare() -> Flask:
    """A Flask application that has the answer from a function, at the URL ``$FUNCTION``."""
    session = requests.Session()
    return flask_app(lambda path: session.get(os.environ["FUNCTION"] + path, timeout=10).content)


def flask_proxy_wrapped() -> Flask:
    """The same behind the middleware."""
    return behind(flask_proxy_bare())


def flask_app(answer: Callable[[str], bytes]) -> Flask:
    app = Flask(__name__)

    @app.route("/function/<name>")
    def listing(name: str) -> Response:
        headers = {"X-Worker": str(os.getpid())}
        return Response(answer(request.path), headers=headers, content_type="application/json")

    return app


def behind(app: Flask) -> Flask:
    app.wsgi_app = ScaleZeroMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, Files(), settings=Settings.from_environ()
    )
    return app


def proxy() -> Any:
    """An application that reaches what is up and answers 503 for what is not, behind the middleware."""

    def reach(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        name = environ["PATH_INFO"].split("/")[2]
        up = name.startswith("warm") or is_up(started_at(name))
        body = f"{os.getpid()}\n".encode()
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        start_response("200 OK" if up else "503 Service Unavailable", headers)
        return [body]

    return ScaleZeroMiddleware(reach, Files(), settings=Settings.from_environ())


def make() -> Any:
    """The site; a function, so that a root master may import what its workers could not read."""

    def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = f"{os.getpid()}\n".encode()
        if environ["PATH_INFO"] == "/stores":
            paths = [getattr(door.scaler._peers._store, "_path", None) for door in doors]
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
