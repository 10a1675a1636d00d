"""A worker that knows 10,000 functions: ``python -m tests.servers.many_functions MODE``.

``MODE`` says what they do: ``at-zero``, ``up``, or ``in-use``: all are up, and 100 are used all the time. It
prints what that costs, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scalezero_wsgi import Function, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation.idling.idler import NEWLY_LED
from tests.support.wsgi import ask

COUNT, USED = 10_000, 100
SETTLE, MEASURE = NEWLY_LED + 4.0, 15.0
NAMES = [f"function-{number}" for number in range(COUNT)]


class Provider:
    """It answers at once, with what an engine says of a function."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def list_functions(self) -> Iterable[Function]:
        return [Function(name, "prod") for name in NAMES]

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        labels = {"com.openfaas.scale.zero": "true", "app": name, "team": f"team of {name}", "version": "1"}
        address = f"http://{name}.{namespace}.svc:8080"
        return ReplicaStatus(self._replicas, self._replicas, labels=labels, endpoint=address)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None: ...


def app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor_time(name: str) -> float:
    """Return the seconds for which the threads of that name have used the processor."""
    threads = [thread for thread in threading.enumerate() if thread.name == name]
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in threads if thread.ident is not None]
    return sum(map(time.clock_gettime, clocks))


def main(mode: str) -> None:
    provider = Provider(0 if mode == "at-zero" else 1)
    with tempfile.TemporaryDirectory() as directory:
        begun = time.monotonic()
        door = ScaleZeroMiddleware(
            app, provider, idle_after="15m", coordination=f"sqlite://{directory}/store/workers.db"
        )
        idler = door._idler
        assert idler is not None
        idler.start(multiprocess=True)
        if mode != "at-zero":
            assert ask(door, f"/function/{NAMES[0]}.prod")[0] == "200 OK"
        while idler._lead is None:
            time.sleep(0.001)
        started_in = time.monotonic() - begun
        before = resident()
        for name in NAMES:
            door.cache.set(name, provider.get_replicas(name, "prod"), "prod")
        end = threading.Event()
        threading.Thread(target=use, args=(door, end, USED if mode == "in-use" else 0)).start()
        time.sleep(SETTLE)
        kept = resident() - before
        names = ("scalezero-idler", "scalezero-list")
        used = {name: -processor_time(name) for name in names}
        begun = time.monotonic()
        time.sleep(MEASURE)
        shares = {name: (used[name] + processor_time(name)) / (time.monotonic() - begun) for name in names}
        end.set()
        print(json.dumps({"started_in": started_in, "bytes": kept / COUNT, **shares}))
        idler.stop(os.getpid())


def use(door: ScaleZeroMiddleware, end: threading.Event, count: int) -> None:
    while not end.wait(0.5):
        for name in NAMES[:count]:
            ask(door, f"/function/{name}.prod")


if __name__ == "__main__":
    main(sys.argv[1])
