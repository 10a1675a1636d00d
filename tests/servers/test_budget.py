"""Budgets on real processes, which really take the memory that they say: it stays below ``max_memory``."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi.providers.process import ProcessProvider
from tests.servers.harness import Server, gunicorn
from tests.servers.test_idle import SITE, Client, Site
from tests.support.waiting import until
from tests.unit.coordination.test_redis import Server as RedisServer

pytestmark = pytest.mark.server

REQUESTS = int(os.environ.get("SCALEZERO_SOAK", "60"))
SIZES = (40, 40, 80, 40, 20)
"""MiB."""

INTERPRETER = 24
"""MiB that a Python takes by itself, and more."""

MOST = 200
"""MiB for all."""

TOLD = 1.6
"""Seconds after which the other worker knows of a use."""


class Memory(threading.Thread):
    """Looks again and again how much memory the functions of a site take together, in MiB."""

    def __init__(self, site: Site) -> None:
        super().__init__(daemon=True)
        self._mark = str(site.files).encode()
        self._ended = threading.Event()
        self.most = self.looks = 0

    def run(self) -> None:
        while not self._ended.is_set():
            pages = sum(self._pages(process) for process in Path("/proc").glob("[0-9]*"))
            self.most = max(self.most, pages * os.sysconf("SC_PAGE_SIZE") >> 20)
            self.looks += 1
            self._ended.wait(0.02)

    def _pages(self, process: Path) -> int:
        with contextlib.suppress(OSError):  # it has ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            if self._mark in words and any(word.endswith(b"budget_function.py") for word in words):
                return int((process / "statm").read_text().split()[1])
        return 0

    def __enter__(self) -> Memory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    if (tmp_path / "idle" / "state").is_dir():
        ProcessProvider({}, state_dir=tmp_path / "idle" / "state").stop_all(0)


def site_of(base: Path, **settings: str) -> Site:
    site = Site(
        base,
        idle_after=1,
        FUNCTIONS="0",
        SIZES=",".join(f"{size}/{size + INTERPRETER}" for size in SIZES),
        SCALEZERO_MAX_MEMORY=f"{MOST}MiB",
        SCALEZERO_MIN_UPTIME="0",
        **{"SCALEZERO_MAX_WAIT": "20s", **settings},
    )
    del site.env["SCALEZERO_IDLE_AFTER"]
    return site


def lru_starts(trace: list[int]) -> int:
    """Return how many starts LRU needs."""
    up: OrderedDict[int, int] = OrderedDict()
    starts = 0
    for number in trace:
        if number not in up:
            starts += 1
            while sum(up.values()) + SIZES[number] + INTERPRETER > MOST:
                up.popitem(last=False)
            up[number] = SIZES[number] + INTERPRETER
        up.move_to_end(number)
    return starts


@pytest.mark.soak
def test_on_a_trace_a_b_a_c_no_more_are_started_than_with_lru(tmp_path: Path) -> None:
    """The third of the functions fits in with one of the first two alone."""
    site = site_of(tmp_path)
    trace = [0, 1, 0, 2, 0, 2, 1, 0, 3, 0, 1, 3]
    with (
        gunicorn(SITE, site.log, "-w", "2", "--threads", "8", env=site.env) as server,
        Memory(site) as memory,
    ):
        for number in trace:
            answer = server.get(f"/function/f{number}")
            assert answer.status_code == 200, (answer.text, site.log.read_text())
            time.sleep(TOLD)
    events = site.events()
    assert 100 < memory.most <= MOST
    assert events["ScaleRequested"] <= lru_starts(trace)
    assert events["FunctionEvicted"] >= 2


@pytest.mark.soak
def test_many_at_once_stay_below_it_and_none_that_is_used_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many_at_once(site_of(tmp_path), capsys, "SQLite")


@pytest.mark.engine
def test_many_at_once_with_redis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RedisServer(tmp_path / "redis").running() as redis:
        many_at_once(site_of(tmp_path, SCALEZERO_COORDINATION=redis.url), capsys, "Redis")


def many_at_once(site: Site, capsys: pytest.CaptureFixture[str], title: str) -> None:
    """Requests that are cut would be answered 502, for nothing is sent a second time."""
    with (
        gunicorn(SITE, site.log, "-w", "2", "--threads", "16", env=site.env) as server,
        Memory(site) as memory,
    ):
        clients = [Visitor(server, seed, REQUESTS // 6) for seed in range(6)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    answers = sum((client.answers for client in clients), Counter())
    events = site.events()
    with capsys.disabled():
        print(
            f"\n{title}: {dict(answers)}; {events['ScaleRequested']} starts,"
            f" {events['FunctionEvicted']} evicted, {events['DrainCancelled']} drains cancelled,"
            f" {events['FunctionQueued']} queued; at most {memory.most} MiB in {memory.looks} looks"
        )
    assert memory.most <= MOST
    kinds = Counter(answer[:3] for answer in answers.elements())
    assert set(kinds) <= {"200", "503"}, (answers, site.log.read_text()[-3000:])
    assert kinds["200"] > 0.7 * sum(kinds.values())
    assert events["FunctionEvicted"] >= REQUESTS / 20


class Visitor(Client):
    """Asks for any of the functions, now and then for an answer that takes longer than it takes to evict."""

    def __init__(self, server: Server, seed: int, cycles: int) -> None:
        super().__init__(server, "f0", cycles)
        self._chance = random.Random(seed)

    def run(self) -> None:
        for _ in range(self._cycles):
            number, takes = self._chance.choice(range(len(SIZES))), self._chance.choice(["", "/0.1", "/1"])
            self._path = f"/function/f{number}{takes}"
            self._ask()
            time.sleep(self._chance.random() * 0.5)


@pytest.mark.soak
def test_a_worker_that_is_killed_leaves_no_claim(tmp_path: Path) -> None:
    """Nor is one of those started that it would have started."""
    site = site_of(tmp_path, SCALEZERO_MAX_RUNNING="1")
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "8", env=site.env) as server:
        (site.files / "die-start").touch()
        client = Client(server, "f1", 1)
        client.run()
        assert not (site.files / "die-start").exists()
        answer = server.get("/function/f2")
        assert answer.status_code == 200, site.log.read_text()
        assert site.events()["FunctionEvicted"] == 0


@pytest.mark.soak
def test_a_worker_that_is_killed_holds_no_place_in_the_queue(tmp_path: Path) -> None:
    """As ever it keeps up for 20 s what it may have used."""
    site = site_of(tmp_path, SCALEZERO_MAX_RUNNING="1", SCALEZERO_MAX_WAIT="60s")
    site.env["SCALEZERO_MIN_UPTIME"] = "10s"
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "8", env=site.env) as server:
        assert server.get("/function/f0").status_code == 200
        Client(server, "f1", 1).start()
        until(lambda: site.events()["FunctionQueued"])
        (queued,) = (
            int(path.suffix[1:])
            for path in site.files.glob("events.*")
            if "FunctionQueued" in path.read_text()
        )
        os.kill(queued, signal.SIGKILL)
        until(lambda: queued not in server.workers())
        answer = server.get("/function/f2", timeout=60)
        assert answer.status_code == 200, site.log.read_text()
        assert site.events()["FunctionEvicted"] == 1
