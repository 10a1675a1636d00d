"""Back to zero on real parts: requests that come just when a function becomes idle."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from scalezero_wsgi.activation.idling.keep_warm import EARLY, UNKNOWN_START
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider
from tests.servers.harness import Server, gunicorn
from tests.support.waiting import until
from tests.unit.coordination.test_redis import Server as RedisServer

SITE = "tests.servers.idle_site:application"
CYCLES = int(os.environ.get("SCALEZERO_SOAK", "400"))
FUNCTION = Path(__file__).with_name("idle_function.py")
FUNCTIONS = 4
IDLE_AFTER = 0.04


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    """Functions outlive their server, and a paused one would for ever."""
    yield
    if (tmp_path / "idle" / "state").is_dir():
        ProcessProvider({}, state_dir=tmp_path / "idle" / "state").stop_all(0)


class Site:
    """What the workers of the site leave on the disk."""

    def __init__(self, base: Path, idle_after: float = IDLE_AFTER, **settings: str) -> None:
        self.log, self.files, temporary = base / "log", base / "idle", base / "tmp"
        for directory in (self.files, temporary):
            directory.mkdir()
        self.env = {
            "IDLE": str(self.files),
            "TMPDIR": str(temporary),
            "FUNCTIONS": str(FUNCTIONS),
            "SCALEZERO_IDLE_AFTER": str(idle_after),
            "SCALEZERO_IDLE_DEFAULT": "all",
            "SCALEZERO_REPLAY": "false",
            **settings,
        }

    def events(self) -> Counter[str]:
        lines = [line for path in self.files.glob("events.*") for line in path.read_text().splitlines()]
        return Counter(line.split()[0] for line in lines)

    def stops(self) -> int:
        """Return how often a function was stopped or paused."""
        events = self.events()
        return events["FunctionStopped"] + events["FunctionPaused"]

    def reasons(self) -> Counter[str]:
        lines = [line for path in self.files.glob("events.*") for line in path.read_text().splitlines()]
        return Counter(line.split(" ", 2)[2] for line in lines if line.startswith("DrainCancelled"))


class Client(threading.Thread):
    """Asks for one function again and again, at the moment at which it is about to be stopped.

    Its pause grows while the function is still up and shrinks when it had to be started: so it stays around
    the boundary, wherever that is on this machine.
    """

    def __init__(self, server: Server, name: str, cycles: int) -> None:
        super().__init__(daemon=True)
        assert not isinstance(server.address, str)
        self._host, self._port = server.address
        self._path, self._cycles = f"/function/{name}", cycles
        self.answers: Counter[str] = Counter()
        self.waited = 0
        self.pause = IDLE_AFTER

    def run(self) -> None:
        for _ in range(self._cycles):
            waited = self._ask()
            self.waited += waited
            self.pause = min(1.0, max(0.001, self.pause * (0.9 if waited else 1.1)))
            time.sleep(self.pause * (0.75 + random.random() / 2))

    def _ask(self) -> bool:
        connection = HTTPConnection(self._host, self._port, timeout=60)
        try:
            connection.request("POST", self._path, body=b"x", headers={"Connection": "close"})
            answer = connection.getresponse()
            text = answer.read().decode()
            self.answers[f"{answer.status}" if answer.status == 200 else f"{answer.status} {text}"] += 1
            return "cold-start" in (answer.headers["Server-Timing"] or "")
        except (OSError, HTTPException) as error:
            self.answers[repr(error)] += 1
            return False
        finally:
            connection.close()


def boundary(site: Site, capsys: pytest.CaptureFixture[str], cycles: int, title: str) -> None:
    """Have requests sent around the boundary, and check what became of each of them."""
    with gunicorn(SITE, site.log, "-w", "4", "--threads", "8", env=site.env) as server:
        first = Client(server, "f0", 1)
        first.run()
        until(lambda: site.stops())  # a fleet that has just begun waits for a while
        begun = time.monotonic()
        clients = [Client(server, f"f{number % FUNCTIONS}", cycles // 8) for number in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        took = time.monotonic() - begun
    answers = sum((client.answers for client in clients), Counter())
    waited, events = sum(client.waited for client in clients), site.events()
    with capsys.disabled():
        print(
            f"\n{title}: {sum(answers.values())} requests in {took:.0f} s,"
            f" {site.stops()} stops, {events['DrainCancelled']} drains cancelled"
            f" {dict(site.reasons())},"
            f" {waited} requests waited for a restart; answers {dict(answers)}"
        )
    assert set(answers) == {"200"}, site.log.read_text()[-3000:]
    assert waited >= cycles / 20
    assert events["DrainCancelled"] >= cycles / 50


@pytest.mark.server
@pytest.mark.soak
def test_no_request_is_lost_at_the_boundary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boundary(Site(tmp_path), capsys, CYCLES, "SQLite")


@pytest.mark.server
@pytest.mark.soak
def test_no_request_is_lost_when_functions_are_paused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was passed to a paused function would hang."""
    site = Site(tmp_path, SCALEZERO_IDLE_ACTION="pause")
    boundary(site, capsys, CYCLES, "paused")
    assert site.events()["FunctionStopped"] == 0


@pytest.mark.server
@pytest.mark.soak
def test_an_idle_function_is_paused_woken_and_stopped_in_the_end(tmp_path: Path) -> None:
    site = Site(tmp_path, SCALEZERO_IDLE_ACTION="pause after 300ms, stop after 2s")
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
        first = server.get("/function/f0")
        for count in (1, 2, 3):
            until(lambda count=count: site.events()["FunctionPaused"] == count)  # type: ignore[misc]
            assert Path(f"/proc/{first.text}/stat").read_text().rpartition(")")[2].split()[0] == "T"
            answer = server.get("/function/f0")
            assert (answer.status_code, answer.text) == (200, first.text), site.log.read_text()
            assert "cold-start" in answer.headers["Server-Timing"]
        until(lambda: site.events()["FunctionStopped"] == 1)
        assert site.events()["FunctionPaused"] == 4
        assert not Path(f"/proc/{first.text}").exists()
        answer = server.get("/function/f0")
        assert answer.status_code == 200
        assert answer.text != first.text


@pytest.mark.server
@pytest.mark.soak
@pytest.mark.parametrize(("action", "when"), [("stop", "before"), ("pause", "after")])
def test_a_worker_that_is_killed_in_the_middle_leaves_a_function_that_answers(
    action: str, when: str, tmp_path: Path
) -> None:
    site = Site(tmp_path, idle_after=0.5, SCALEZERO_IDLE_ACTION=action)
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
        first = server.get("/function/f0")
        (site.files / f"die-{when}").touch()
        until(lambda: not (site.files / f"die-{when}").exists())
        answer = server.get("/function/f0")
        assert answer.status_code == 200, site.log.read_text()
        until(lambda: site.stops())
        again = server.get("/function/f0")
        assert again.status_code == 200, site.log.read_text()
        if action == "pause":
            assert first.text == answer.text == again.text


@pytest.mark.soak
def test_it_also_goes_to_zero_where_no_request_comes(tmp_path: Path) -> None:
    """A function that somebody else has started."""
    site = Site(tmp_path)
    functions = {"f0": ProcessFunction([sys.executable, "-I", "-S", str(FUNCTION), "{port}"])}
    provider = ProcessProvider(functions, state_dir=site.files / "state")
    provider.set_replicas("f0", "", 1)
    with gunicorn(SITE, site.log, "-w", "2", "-c", "tests/servers/waiting_conf.py", env=site.env):
        until(lambda: provider.get_replicas("f0", "").replicas == 0)


@pytest.mark.soak
def test_a_function_is_up_before_its_hours_and_stays(tmp_path: Path) -> None:
    """It is idle after 40 ms, and no request comes. By the clock on the wall its hours begin soon, and all
    workers are killed when it is about to be started."""
    begins, lasts = time.time() + UNKNOWN_START + EARLY + 10, 10
    site = Site(
        tmp_path,
        FUNCTIONS="1",
        SCALEZERO_KEEP_WARM=f"cron 0 8 * * * for {lasts}s",
        WALL=str(8 * 3600 - begins % 86400),
    )
    provider = ProcessProvider({"f0": ProcessFunction(["true"])}, state_dir=site.files / "state")

    def is_up() -> bool:
        return provider.get_replicas("f0", "").available_replicas == 1

    with gunicorn(SITE, site.log, "-w", "2", "-c", "tests/servers/waiting_conf.py", env=site.env) as server:
        due = begins - UNKNOWN_START - EARLY
        until(lambda: time.time() > due - 1)
        assert not is_up()
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        until(is_up, timeout=60)
        assert due <= time.time() + 0.1 < begins
        while time.time() < begins + lasts - 0.5:
            assert is_up()
            time.sleep(0.05)
        until(lambda: provider.get_replicas("f0", "").replicas == 0)
        assert begins + lasts <= time.time() < begins + lasts + 5
        until(lambda: site.events()["FunctionStopped"])  # it is told once the fleet knows
        events = site.events()
    assert (events["KeptWarm"], events["ScaleRequested"], events["FunctionStopped"]) == (1, 1, 1)


@pytest.mark.server
@pytest.mark.soak
@pytest.mark.parametrize("seconds", [2, 4, 10])
def test_a_worker_that_is_suspended_keeps_the_function_up_that_serves_it(
    seconds: int, tmp_path: Path
) -> None:
    site = Site(tmp_path)
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
        Client(server, "f0", 1).run()
        until(lambda: site.events()["FunctionStopped"])
        client = Client(server, f"f0/{seconds + 3}", 1)
        client.start()
        until(lambda: site.events()["FunctionReady"] >= 2)
        time.sleep(0.3)
        pid = int((site.files / "serves").read_text())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        assert site.events()["FunctionStopped"] == 1
        os.kill(pid, signal.SIGCONT)
        client.join()
        assert client.answers == {"200": 1}, site.log.read_text()
        until(lambda: site.events()["FunctionStopped"] == 2)


@pytest.mark.server
@pytest.mark.soak
@pytest.mark.parametrize("action", ["stop", "pause"])
def test_killed_workers_lose_their_own_requests_only_and_nothing_stays_up(
    action: str, tmp_path: Path
) -> None:
    site = Site(tmp_path, SCALEZERO_IDLE_ACTION=action)
    with gunicorn(SITE, site.log, "-w", "4", "--threads", "8", env=site.env) as server:
        Client(server, "f0", 1).run()
        until(lambda: site.stops())
        clients = [Client(server, f"f{number % FUNCTIONS}", 150) for number in range(8)]
        for client in clients:
            client.start()
        for pid in random.sample(server.workers(), 2):
            time.sleep(3.0)
            os.kill(pid, signal.SIGKILL)
        for client in clients:
            client.join()
        answers = sum((client.answers for client in clients), Counter())
        unexpected = [text for text in answers if text[0].isdigit() and text != "200"]
        assert not unexpected, (answers, site.log.read_text()[-2000:])
        ended = [f"f{number}" for number in range(FUNCTIONS)]
        provider = ProcessProvider(
            {name: ProcessFunction(["true"]) for name in ended}, state_dir=site.files / "state"
        )
        until(lambda: not any(provider.get_replicas(name, "").replicas for name in ended), timeout=120)


@pytest.mark.engine
def test_no_request_is_lost_at_the_boundary_with_redis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RedisServer(tmp_path / "redis").running() as redis:
        boundary(Site(tmp_path, SCALEZERO_COORDINATION=redis.url), capsys, max(8, CYCLES // 4), "Redis")
