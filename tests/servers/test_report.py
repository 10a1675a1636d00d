"""What ``report`` says beside what the kernel saw, while workers and functions are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from scalezero_wsgi.cli import main
from scalezero_wsgi.providers.process import ProcessProvider
from tests.servers.harness import Server, gunicorn
from tests.servers.lives import Lives

SITE = "tests.servers.recorded_site:application"
FUNCTIONS, IDLE_AFTER = 8, 1.0
SECONDS = float(os.environ.get("SCALEZERO_SOAK", "60"))


class Client(threading.Thread):
    """Uses one function now and then; requests may be cut, for workers are killed."""

    def __init__(self, server: Server, number: int, until: float) -> None:
        super().__init__(daemon=True)
        assert not isinstance(server.address, str)
        self._address, self._path, self._until = server.address, f"/function/f{number}/", until
        self._random = random.Random(number)
        self.waited = 0

    def run(self) -> None:
        while time.monotonic() < self._until:
            with contextlib.suppress(OSError, HTTPException):
                self._ask()
            time.sleep(self._random.expovariate(1 / self._random.choice([0.2, 4.0])))

    def _ask(self) -> None:
        connection = HTTPConnection(*self._address, timeout=30)
        try:
            connection.request("GET", self._path, headers={"Connection": "close"})
            answer = connection.getresponse()
            answer.read()
            self.waited += "cold-start" in (answer.headers["Server-Timing"] or "")
        finally:
            connection.close()


@pytest.mark.soak
def test_it_tells_what_the_kernel_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    idle = tmp_path / "idle"
    idle.mkdir(mode=0o700)
    env = {
        "IDLE": str(idle),
        "FUNCTIONS": str(FUNCTIONS),
        "TMPDIR": str(idle),
        "SCALEZERO_IDLE_AFTER": str(IDLE_AFTER),
        "SCALEZERO_IDLE_DEFAULT": "all",
    }
    lives = Lives(Path(__file__).with_name("idle_function.py"), idle)
    rng, workers, crashes = random.Random(1), 0, 0
    try:
        with gunicorn(SITE, tmp_path / "log", "-w", "3", "--threads", "16", env=env) as server:
            lives.start()
            until = time.monotonic() + SECONDS
            clients = [Client(server, number, until) for number in range(FUNCTIONS)]
            for client in clients:
                client.start()
            time.sleep(SECONDS / 3)  # in which functions are stopped: of a killed worker its uses count on
            while time.monotonic() < until - SECONDS / 6:
                time.sleep(2)
                with contextlib.suppress(ProcessLookupError, IndexError):
                    if rng.random() < 0.6:
                        os.kill(rng.choice(server.workers()), signal.SIGKILL)
                        workers += 1
                    else:
                        os.kill(rng.choice(lives.pids()), signal.SIGKILL)
                        crashes += 1
            for client in clients:
                client.join()
            assert main(["report", f"sqlite://{idle}/savings.db", "--json"]) == 0
            times = lives.end()
    finally:
        ProcessProvider({}, state_dir=idle / "state").stop_all(0)
    told = json.loads(capsys.readouterr().out)
    rows = [(row, _seconds(times, row["function"], told["until"])) for row in told["functions"]]
    with capsys.disabled():
        print(f"\n{workers} workers and {crashes} functions killed; {len(times)} processes were seen")
        for row, seconds in rows:
            up, unknown = row["seconds_up"], row["seconds_not_known"]
            print(
                f"  {row['function']}: up {up:.2f} s, not known {unknown:.2f} s, "
                f"the kernel saw {seconds:.2f} s; {row['starts']} starts, {row['waited']} waited"
            )
    events = [json.loads(line)["event"] for line in (idle / "events.jsonl").read_text().splitlines()]
    assert events.count("function_stopped") > FUNCTIONS
    assert len(rows) == FUNCTIONS
    for row, seconds in rows:
        assert row["seconds_up"] - 1 <= seconds <= row["seconds_up"] + row["seconds_not_known"] + 1
    assert sum(row["seconds_not_known"] for row, _ in rows) <= 4 * (crashes + workers)
    assert sum(row["starts"] for row, _ in rows) == pytest.approx(len(times), abs=2)
    # One that a worker had written down before its answer was cut is not seen by its client.
    assert sum(row["waited"] for row, _ in rows) >= sum(client.waited for client in clients)


def _seconds(times: list[tuple[str, float, float]], function: str, until: float) -> float:
    return sum(min(end, until) - min(begin, until) for name, begin, end in times if name == function)
