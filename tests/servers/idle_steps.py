"""What the worker that stops a function does at the step ``$STEP``, once in the whole fleet.

The steps are ``draining``, ``stopping``, ``set`` (the call to the provider) and ``zero``, each with
``before`` or ``after`` and a space before it. The worker makes the file ``at`` under ``$IDLE`` and kills
itself or, with ``$WAITS``, waits for the file ``go``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from scalezero_wsgi.activation.idling.drain import FunctionDrain
from scalezero_wsgi.coordination.base import Drain

STEP = os.environ.get("STEP", "")
IDLE = Path(os.environ["IDLE"])


def reached(step: str) -> None:
    if step != STEP:
        return
    try:
        (IDLE / "at").touch(exist_ok=False)
    except FileExistsError:
        return
    if "WAITS" not in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    while not (IDLE / "go").exists():
        time.sleep(0.01)


@contextlib.contextmanager
def around(step: str) -> Iterator[None]:
    reached(f"before {step}")
    yield
    reached(f"after {step}")


def change(self: FunctionDrain, before: Drain | None, after: Drain | None, keep: float) -> bool:
    with around("forgotten" if after is None else after.phase.value):
        return change_drain(self, before, after, keep)


change_drain = FunctionDrain._change
FunctionDrain._change = change  # type: ignore[method-assign]
