"""A proxy before processes that go to zero as soon as nobody uses them.

``/function/f0/3`` takes the function three seconds; see ``idle_function`` for more. Nothing is sent a second
time: a request that meets a function at zero is a 502. Each event leaves a line under ``$IDLE``, by the
worker in which it happened. With ``$STEP`` see ``idle_steps``; with ``$BUSY`` functions are asked whether
they are busy. The clock on the wall is ``$WALL`` seconds ahead. With ``$SIZES`` such as ``40/64,80/104`` each
function takes so many MiB of memory, and says that it takes the second.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.events import Event, FunctionEvent
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider
from tests.servers import idle_steps

IDLE = Path(os.environ["IDLE"])
COUNT = int(os.environ.get("FUNCTIONS", "4"))
FUNCTION = Path(__file__).with_name("idle_function.py")


def note(event: Event) -> None:
    if isinstance(event, FunctionEvent):
        with (IDLE / f"events.{os.getpid()}").open("a") as events:
            events.write(f"{type(event).__name__} {event.function} {getattr(event, 'reason', '')}\n")


def busy(name: str, namespace: str) -> bool:
    endpoint = provider.get_replicas(name, namespace).endpoint
    assert endpoint is not None
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=1)
    connection.request("GET", "/busy")
    return connection.getresponse().status == 200


def stream(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := answer.read1():
        yield piece


def proxy(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    address = urlsplit(environ["scalezero_wsgi.endpoint"]).netloc
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        (IDLE / "serves").write_text(str(os.getpid()))
        environ["wsgi.input"].read()  # the client may take its time
        connection.request("POST", environ["PATH_INFO"][len("/function/f0") :] or "/", body=b"")
        answer = connection.getresponse()
        if "/stream/" in environ["PATH_INFO"]:
            start_response("200 OK", [("Content-Length", answer.headers["Content-Length"])])
            return stream(answer)
        body, status = answer.read(), "200 OK"
    except (OSError, http.client.HTTPException) as error:
        body, status = f"{os.getpid()} {address} {error!r}".encode(), "502 Bad Gateway"
    finally:
        connection.close()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class WatchedProvider(ProcessProvider):
    """Tells what is done, and kills its worker before a start or in the middle of a stop or a pause, once, if
    a file under ``$IDLE`` says so."""

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        with (IDLE / f"sets.{os.getpid()}").open("a") as sets:
            sets.write(f"{name} {replicas}\n")
        self._die("start" if replicas else "before")
        with idle_steps.around("set" if replicas == 0 else "start"):
            super().set_replicas(name, namespace, replicas)
        if replicas == 0:
            self._die("after")

    def pause(self, name: str, namespace: str) -> None:
        self._die("before")
        super().pause(name, namespace)
        self._die("after")

    def _die(self, when: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (IDLE / f"die-{when}").unlink()
            os.kill(os.getpid(), signal.SIGKILL)


command = [sys.executable, "-I", "-S", str(FUNCTION), "{port}"]
functions = {f"f{number}": ProcessFunction(command) for number in range(COUNT)}
for number, size in enumerate(filter(None, os.environ.get("SIZES", "").split(","))):
    takes, says = size.split("/")
    functions[f"f{number}"] = ProcessFunction(
        [*command[:-2], str(FUNCTION.with_name("budget_function.py")), "{port}", takes, str(IDLE)],
        memory=f"{says}MiB",
    )
if os.environ.get("SLOW"):
    functions["slow"] = ProcessFunction([*command, "2"])
provider = WatchedProvider(functions, state_dir=IDLE / "state")
application = ScaleZeroMiddleware(
    proxy,
    provider,
    settings=Settings.from_environ(),
    hooks=[note],
    wall_clock=lambda: time.time() + float(os.environ.get("WALL", "0")),
    busy=busy if "BUSY" in os.environ else None,
)
