"""From the moment a process can serve, seen by a direct probe, to the first response through the door.

A timed bound, so it runs with the engines' tests.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import pytest

from scalezero_wsgi.providers import ProcessProvider
from tests.servers.harness import gunicorn
from tests.servers.site import FUNCTIONS
from tests.support.latency import BOUND, is_enough

pytestmark = [pytest.mark.engine, pytest.mark.measured]


def test_the_first_response_comes_within_10_milliseconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    provider = ProcessProvider(FUNCTIONS, state_dir=state)
    added: list[float] = []
    try:
        with gunicorn(
            "tests.servers.proxy_site:application", tmp_path / "log", env={"STATE_DIR": str(state)}
        ) as server:
            while not is_enough(added):
                added.append(
                    added_latency(state / "hello.json", lambda: server.get("/function/hello").status_code)
                )
                provider.set_replicas("hello", "", 0)
                time.sleep(0.3)
    finally:
        provider.stop_all(5)
    with capsys.disabled():
        figures = ", ".join(f"{1000 * each:.1f}" for each in added)
        print(
            f"\nprocess: added latency in ms: {figures}; median {1000 * statistics.median(added):.1f}",
            end=" ",
        )
    assert statistics.median(added) <= BOUND


def added_latency(state: Path, ask: Callable[[], int]) -> float:
    served: list[float] = []

    def probe() -> None:
        while not served:
            with contextlib.suppress(OSError, ValueError, HTTPException):
                port = json.loads(state.read_bytes())["port"]
                if port and urlopen(f"http://127.0.0.1:{port}/", timeout=0.1).status == 200:
                    served.append(time.monotonic())
            time.sleep(0.0005)

    thread = threading.Thread(target=probe)
    thread.start()
    assert ask() == 200
    answered = time.monotonic()
    thread.join()
    return answered - served[0]
