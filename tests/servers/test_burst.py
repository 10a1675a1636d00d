"""Bursts of first requests: what each server makes of them, and what they cost those that are warm.

Prints the table of .github/docs/waiting.md: ``pytest -s -m soak tests/servers/test_burst.py``. Timed: for CI,
with the engines; ``SCALEZERO_TEST_BURSTS`` of fewer than 5 also means fewer columns of the table.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.engine import engine
from tests.servers.harness import NO_CONTROL_SOCKET, ROOT, Server, free_port, serving
from tests.servers.matrix_client import ask
from tests.servers.waiting_crowd import BODY
from tests.support.waiting import until

pytestmark = [pytest.mark.soak, pytest.mark.measured]

SITE = "tests.servers.slots_site:application"
PYTHON = [sys.executable, "-m"]
FIRST = 3.0
"""Seconds that a function takes to start."""

LONG = 8.0
"""The same where something is measured while all wait."""

ROUNDS = int(os.environ.get("SCALEZERO_TEST_BURSTS", "5"))
MOST_ROUNDS = 3 * ROUNDS
"""So many, while other processes disturb too many of them."""

BOUND = 1.5

SIZES = (20, 50, 100, 1000) if ROUNDS >= 5 else (50, 1000)


def gunicorn(worker: str, *options: str, hook: bool = True) -> Callable[[int], list[str]]:
    conf = ["-c", "python:tests.servers.matrix_conf"] if hook else []
    return lambda port: [
        *(*PYTHON, "gunicorn", SITE, "-b", f"127.0.0.1:{port}", "-k", worker),
        *(*NO_CONTROL_SOCKET, *conf, *options),
    ]


def uwsgi(port: int) -> list[str]:
    home = [] if sys.prefix == sys.base_prefix else ["--home", sys.prefix]
    start = [
        str(engine("SCALEZERO_TEST_UWSGI")),
        "--http-socket",
        f"127.0.0.1:{port}",
        "--module",
        SITE,
        *home,
    ]
    return [*start, "--master", "--die-on-term", "--enable-threads", "--threads", "16", "--processes", "2"]


SERVERS: dict[str, Callable[[int], list[str]]] = {
    "1 × 4": gunicorn("gthread", "--threads", "4"),
    "1 × 4 without the hook": gunicorn("gthread", "--threads", "4", hook=False),
    "4 × 4": gunicorn("gthread", "--workers", "4", "--threads", "4"),
}
TABLE: dict[str, Callable[[int], list[str]]] = {
    "gunicorn sync, 4 workers": gunicorn("sync", "--workers", "4"),
    "gunicorn gthread, 4 × 4": gunicorn("gthread", "--workers", "4", "--threads", "4"),
    "gunicorn gthread, 2 × 16": gunicorn("gthread", "--workers", "2", "--threads", "16"),
    "the same without the hook": gunicorn("gthread", "--workers", "2", "--threads", "16", hook=False),
    "gunicorn gevent, 2 workers": gunicorn("gevent", "--workers", "2"),
    "waitress, 16 threads": lambda port: [
        *(*PYTHON, "waitress", f"--listen=127.0.0.1:{port}", "--threads=16"),
        *("--connection-limit=2000", "--asyncore-use-poll", SITE),
    ],
    "waitress, its own limits": lambda port: [*PYTHON, "waitress", f"--listen=127.0.0.1:{port}", SITE],
    "cheroot, 16 threads": lambda port: [
        *(*PYTHON, "cheroot", SITE, "--bind", f"127.0.0.1:{port}"),
        *("--threads", "16", "--request-queue-size", "2000"),
    ],
    "uWSGI, 2 × 16": uwsgi,
}
"""The rows of that table."""


@contextlib.contextmanager
def site(name: str, directory: Path, env: dict[str, str] | None = None) -> Iterator[Server]:
    port = free_port()
    with serving({**SERVERS, **TABLE}[name](port), port, directory / "log", env) as server:
        until(lambda: ask(server.address, "/function/after-0-warm").status == 200)
        yield server


class Probe:
    """Asks for a path, one request after another, until the block ends."""

    def __init__(self, server: Server, path: str, pause: float = 0.005) -> None:
        self._server, self._path, self._pause = server, path, pause
        self._ended = threading.Event()
        self.taken: list[float] = []

    def __enter__(self) -> Probe:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._pause):
            answer = ask(self._server.address, self._path, timeout=60)
            assert answer.status < 500
            self.taken.append(answer.seconds)

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return 1000 * sorted(self.taken)[len(self.taken) * 99 // 100]


def resident(server: Server) -> int:
    """KiB, of all workers."""
    return sum(
        int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text("ascii"))[0])
        for pid in server.workers()
    )


def threads(server: Server) -> int:
    """Return how many threads all workers have."""
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in server.workers())


class Crowd:
    """A process with very many clients at once."""

    def __init__(self, server: Server, path: str, count: int, end: str = BODY) -> None:
        command = [sys.executable, "-m", "tests.servers.waiting_crowd", server.url.rpartition(":")[2]]
        self._begun = time.monotonic()
        self._process = subprocess.Popen([*command, path, str(count), end], stdout=subprocess.PIPE, cwd=ROOT)

    def answers(self) -> tuple[Counter[int], float]:
        """Return how often there was which status, and after how many seconds there were all."""
        told = json.loads(self._process.communicate(timeout=200)[0].splitlines()[-1])
        taken = time.monotonic() - self._begun
        answers: Counter[int] = Counter()
        for line, count in told.items():
            status = re.search(r"HTTP/1.\d (\d+)", line)
            assert status, told
            assert status[1] != "200" or "broken" not in line
            answers[int(status[1])] += count
        return answers, taken

    def sent(self) -> None:
        """Block until all requests are sent."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"sent\n"


@pytest.mark.engine
@pytest.mark.parametrize("name", TABLE)
def test_a_burst(name: str, tmp_path: Path) -> None:
    cells = []
    for count in SIZES:
        with site(name, tmp_path) as server, Probe(server, "/healthz") as health:
            answers, taken = Crowd(server, f"/function/after-{FIRST * 1000:.0f}-x", count).answers()
        assert sum(answers.values()) == count
        told = ", ".join(f"{number:,} × {status}" for status, number in sorted(answers.items()))
        cells.append(f"{told} in {taken:.1f} s, /healthz {max(health.taken):.1f} s")
    print(f"\n| {name} | " + " | ".join(cells) + " |")


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[Server]:
    """Run the command with its defaults, with functions that take a while to start."""
    command = f"sleep {LONG}; exec {sys.executable} -m scalezero_wsgi.demo hello {{port}}"
    functions = {"warm": command.partition(" ")[2].partition(" ")[2], **dict.fromkeys(names(), command)}
    lines = [
        f"[functions.{name}]\ncommand = ['sh', '-c', '{command}']\nready = {{ tcp = true }}\n"
        for name, command in functions.items()
    ]
    (directory / "functions.toml").write_text("".join(lines), "utf-8")
    port = free_port()
    start = [*PYTHON, "scalezero_wsgi", "serve", str(directory / "functions.toml")]
    env = {"TMPDIR": str(directory), "HOME": str(directory)}
    with serving([*start, "--bind", f"127.0.0.1:{port}"], port, directory / "log", env) as server:
        yield server


def names() -> list[str]:
    """Return the functions of the rounds."""
    return [f"after-{LONG * 1000:.0f}-{number}" for number in range(MOST_ROUNDS)]


@pytest.mark.engine
@pytest.mark.parametrize("fleet", ["1 × 4", "4 × 4", "serve"])
def test_a_thousand_first_requests(fleet: str, tmp_path: Path) -> None:
    """All are answered, and while they wait they disturb no other: the 99th percentile is at most 1.5 times
    as high. Of the rounds the middle one: other processes disturb some, and then more rounds are played."""
    paths = ["/function/warm" if fleet == "serve" else "/function/after-0-warm", "/healthz"]
    ratios: dict[str, list[float]] = {path: [] for path in paths}
    memory = []
    with serve(tmp_path) if fleet == "serve" else site(fleet, tmp_path) as server:
        for path in paths:  # a first answer from each worker
            with Probe(server, path, 0.0):
                time.sleep(1)
        usual = threads(server)
        for name in names():
            memory.append(resident(server))
            alone = probed(server, paths)
            end = ".\n" if fleet == "serve" else BODY
            crowd = Crowd(server, f"/function/{name}", 1000, end)
            crowd.sent()
            until(lambda: threads(server) >= 1000)
            among, most = probed(server, paths), resident(server)
            answers, taken = crowd.answers()
            assert answers == {200: 1000}
            until(lambda: threads(server) <= usual + 32)  # those of the slots stay
            for path in paths:
                ratios[path].append(among[path] / alone[path])
            told = ", ".join(f"{path} {alone[path]:.1f} ms alone, {among[path]:.1f} ms" for path in paths)
            more = most - memory[-1]
            print(f"\n{fleet}: 1,000 × 200 in {taken:.1f} s, {more:,} KiB more; p99 of {told}", end="")
            assert more < 64 * 1000
            if len(memory) >= ROUNDS and all(statistics.median(each) <= BOUND for each in ratios.values()):
                break
        print(f"\n{fleet}: KiB before each round: {memory}, after 30 s: ", end="")
        time.sleep(30)
        print(resident(server))
        assert resident(server) < 1.1 * memory[-1]  # what a round leaves is used by the next one
    for path in paths:
        assert statistics.median(ratios[path]) <= BOUND, ratios


@pytest.mark.engine
def test_the_thread_pool_serves_warm_requests_as_fast_as_gunicorns_own(tmp_path: Path) -> None:
    """At least 0.98 of the requests, in rounds that take turns; of their ratios the middle one.

    One second differs from the next by 5 %, and the same server, started again, by 1 %. So there are more
    rounds as long as it is not shown, of servers that are started anew.
    """
    wrk = str(engine("SCALEZERO_TEST_WRK"))

    def load(server: Server) -> float:
        command = [wrk, "-t1", "-c8", "-d1s", f"{server.url}/function/after-0-warm"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])

    ratios: list[float] = []
    while len(ratios) < 20 or (statistics.median(ratios) < 0.98 and len(ratios) < 100):
        directories = [tmp_path / f"{name}{len(ratios)}" for name in ("own", "ours")]
        for directory in directories:
            directory.mkdir()
        with site("1 × 4 without the hook", directories[0]) as own, site("1 × 4", directories[1]) as ours:
            for server in (own, ours):
                load(server)
            for number in range(10):
                first, second = (own, ours) if number % 2 else (ours, own)
                rates = {first.url: load(first), second.url: load(second)}
                ratios.append(rates[ours.url] / rates[own.url])
    ratio = statistics.median(ratios)
    print(
        f"\nwarm requests with our thread pool: {ratio:.3f} of gunicorn's own in {len(ratios)} rounds,"
        f" {rates[ours.url]:.0f} a second"
    )
    assert ratio >= 0.98, sorted(ratios)


def probed(server: Server, paths: list[str]) -> dict[str, float]:
    """Return the 99th percentile of each path in a second and a half."""
    probes = [Probe(server, path, 0.001) for path in paths]
    with probes[0], probes[1]:
        time.sleep(1.5)
    return {path: probe.p99 for path, probe in zip(paths, probes, strict=True)}
