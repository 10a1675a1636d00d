"""The package's proxy before processes that stream, and go to zero when nobody uses them.

Each event leaves a line under ``$IDLE``, by the worker in which it happened: when, which, of what.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.events import Event, FunctionEvent
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider
from scalezero_wsgi.proxy import FunctionProxy

IDLE = Path(os.environ["IDLE"])
FUNCTION = Path(__file__).with_name("stream_function.py")


def note(event: Event) -> None:
    if isinstance(event, FunctionEvent):
        with (IDLE / f"events.{os.getpid()}").open("a") as events:
            events.write(f"{time.monotonic()} {type(event).__name__} {event.function}\n")


command = [sys.executable, "-I", "-S", str(FUNCTION), "{port}"]
functions = {f"f{number}": ProcessFunction(command) for number in range(4)}
provider = ProcessProvider(functions, state_dir=IDLE / "state")
application = ScaleZeroMiddleware(FunctionProxy(), provider, settings=Settings.from_environ(), hooks=[note])
