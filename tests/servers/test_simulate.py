"""What ``simulate`` foretells of a log, beside what happened when it was recorded, with real processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

import pytest

from scalezero_wsgi.activation.idling.idler import NEWLY_LED, PACE
from scalezero_wsgi.cli import main
from scalezero_wsgi.providers.process import ProcessProvider
from tests.servers.harness import ROOT, Server, gunicorn
from tests.servers.lives import Lives

pytestmark = pytest.mark.soak

SITE = "tests.servers.recorded_site:application"
CONF = str(Path(__file__).with_name("recorded_conf.py"))
FUNCTIONS, IDLE_AFTER = 40, 10.0
SECONDS = float(os.environ.get("SCALEZERO_SOAK", "120"))
UNDECIDED = IDLE_AFTER - 0.2, IDLE_AFTER + 3 * PACE + 0.5
"""A request that comes so many seconds after the last may meet the function while it is stopped, or not: that
depends on when the idler's turns are, which no log tells."""


class Client(threading.Thread):
    """Uses one function now and then, in bursts with pauses between."""

    def __init__(self, server: Server, number: int, until: float) -> None:
        super().__init__(daemon=True)
        assert not isinstance(server.address, str)
        self._address, self._path, self._until = server.address, f"/function/f{number}/", until
        self._random = random.Random(number)
        self.answers: Counter[int] = Counter()

    def run(self) -> None:
        while True:
            together = [threading.Thread(target=self._ask) for _ in range(self._random.choice([1, 1, 1, 3]))]
            for thread in together:
                thread.start()
            for thread in together:
                thread.join()
            gap = self._gap()
            if time.monotonic() + gap > self._until:
                break
            time.sleep(gap)

    def _ask(self) -> None:
        connection = HTTPConnection(*self._address, timeout=60)
        takes = self._random.choice(["", "", "0.3"])
        connection.request("GET", self._path + takes, headers={"Connection": "close"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        self.answers[answer.status] += 1

    def _gap(self) -> float:
        while True:
            gap = self._random.expovariate(1 / self._random.choice([1.0, 1.0, 20.0]))
            if not UNDECIDED[0] < gap < UNDECIDED[1]:
                return gap


@pytest.mark.parametrize("workers", ["1", "3"])
def test_cold_starts_and_hours_are_foretold(
    workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idle, log = tmp_path / "idle", tmp_path / "access.log"
    idle.mkdir(mode=0o700)
    env = {
        "IDLE": str(idle),
        "FUNCTIONS": str(FUNCTIONS),
        "SCALEZERO_IDLE_AFTER": str(IDLE_AFTER),
        "SCALEZERO_IDLE_DEFAULT": "all",
    }
    options = ("-c", CONF, "--access-logfile", str(log), "-w", workers, "--threads", "64")
    lives = Lives(Path(__file__).with_name("idle_function.py"), idle)
    try:
        with gunicorn(SITE, tmp_path / "log", *options, env=env) as server:
            time.sleep(NEWLY_LED)  # in which nothing is stopped yet
            lives.start()
            clients = [Client(server, number, time.monotonic() + SECONDS) for number in range(FUNCTIONS)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            times = lives.end()
        last = max(json.loads(line)["time"] for line in log.read_text().splitlines())
        up = sum(min(end, last) - min(begin, last) for _, begin, end in times)  # what the log tells of
        events = [json.loads(line) for line in (idle / "events.jsonl").read_text().splitlines()]
        starts = sum(event["event"] == "function_ready" and event["led"] for event in events)
        answers = sum((client.answers for client in clients), Counter())
        command = [
            "simulate",
            str(log),
            "--events",
            str(idle / "events.jsonl"),
            "--json",
            "--workers",
            workers,
        ]
        assert main([*command, "--idle-after", f"{IDLE_AFTER}"]) == 0
        (foretold,) = json.loads(capsys.readouterr().out)["total"]
    finally:
        ProcessProvider({}, state_dir=idle / "state").stop_all(0)
    with capsys.disabled():
        print(
            f"\n{sum(answers.values())} requests; cold starts: {starts}, foretold {foretold['cold_starts']};"
            f" seconds up: {up:.1f}, foretold {foretold['hours_up'] * 3600:.1f}"
        )
    assert set(answers) == {200}
    assert foretold["cold_starts"] == pytest.approx(starts, rel=0.01)
    assert foretold["hours_up"] * 3600 == pytest.approx(up, rel=0.01)


@pytest.mark.measured
def test_a_million_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, log, lines = random.Random(1), tmp_path / "access.log", 1_000_000
    with log.open("w") as file:
        for number in range(lines):
            day, second = divmod(number * 28 * 86400 // lines, 86400)
            stamp = f"{day + 1:02}/Nov/2026:{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02} +0000"
            name = f"f{min(499, int(rng.paretovariate(0.6)))}"
            took = rng.expovariate(10)
            file.write(f'10.0.0.1 - - [{stamp}] "GET /function/{name}/ HTTP/1.1" 200 5 "-" "-" {took:.3f}\n')
    # Not by the parent: until a child becomes another program, the memory of its parent counts for it.
    code = """
import re, sys, time
from pathlib import Path
from scalezero_wsgi.cli import main
assert main(["simulate", sys.argv[1], "--start-time", "3s", "--json"]) == 0
(memory,) = re.findall("VmHWM:\\s+(.*) kB", Path("/proc/self/status").read_text())
print(time.process_time(), memory, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(log)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    told, (used, memory) = json.loads(done.stdout), map(float, done.stderr.split())
    with capsys.disabled():
        print(f"\na million lines: {used:.1f} s of a processor, {memory / 1024:.0f} MiB")
    assert (told["requests"], len(told["functions"])) == (lines, 499)
    assert used < 20
    assert memory < 200 * 1024
