"""Back to zero without traffic: the idler in a process of its own, beside gunicorn's workers or alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi.activation.idling.gate import VANISHED
from scalezero_wsgi.activation.idling.idler import LEAD, NEWLY_LED
from scalezero_wsgi.coordination import make_coordination
from scalezero_wsgi.coordination.base import DrainingCoordination, DrainPhase
from scalezero_wsgi.model import Function
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider
from tests.servers.harness import ROOT, gunicorn
from tests.servers.test_idle import CYCLES, FUNCTION, SITE, Site, boundary
from tests.servers.test_idle_faults import answered, ask, replicas
from tests.servers.test_serve import serve
from tests.support.waiting import until
from tests.unit.coordination.test_redis import Server as RedisServer

pytestmark = [pytest.mark.server, pytest.mark.soak]

F0 = Function("f0")
IDLE_AFTER = 0.3


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    for state in (tmp_path / "idle" / "state", tmp_path / "state"):
        if state.is_dir():
            ProcessProvider({}, state_dir=state).stop_all(0)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite://{tmp_path}/store/workers.db"
        return
    with RedisServer(tmp_path / "redis").running() as redis:
        yield redis.url


class Apart:
    """The command, as long as the block runs."""

    def __init__(self, site: Site, process: subprocess.Popen[bytes], log: Path) -> None:
        self.site, self.process, self._log = site, process, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stops(self) -> int:
        return self.log.count("scaled to zero after")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def apart(site: Site, url: str, *options: str) -> Iterator[Apart]:
    file, log = site.files / "functions.toml", site.files / "apart.log"
    command = [sys.executable, "-I", "-S", str(FUNCTION), "{port}"]
    file.write_text("".join(f"[functions.f{number}]\ncommand = {command!r}\n" for number in range(4)))
    with log.open("wb") as out:
        given = [str(file), "--coordination", url, "--state-dir", str(site.files / "state"), *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "scalezero_wsgi", "idle", *given],
            env={**os.environ, **site.env, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=out,
            stderr=out,
        )
    try:
        until(lambda: "functions are idle after" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Apart(site, process, log)
    finally:
        process.kill()
        process.wait(20)


def put_up(site: Site, name: str = "f0") -> None:
    command = [sys.executable, "-I", "-S", str(FUNCTION), "{port}"]
    deployer = ProcessProvider({name: ProcessFunction(command)}, state_dir=site.files / "state")
    deployer.set_replicas(name, "", 1)
    until(lambda: deployer.get_replicas(name, "").available_replicas == 1)


def store_of(url: str) -> DrainingCoordination:
    store = make_coordination(url)
    assert isinstance(store, DrainingCoordination)
    return store


def leads(url: str) -> bool:
    """Whether somebody decides."""
    store = store_of(url)
    lease = store.acquire(LEAD, "test", 0.1)
    if lease is not None:
        store.release(lease)
    return lease is None


def test_functions_go_to_zero_where_nothing_serves(tmp_path: Path, url: str) -> None:
    site = Site(tmp_path, IDLE_AFTER)
    put_up(site)
    with apart(site, url) as idler:
        until(lambda: replicas(site) == 0, timeout=NEWLY_LED + 10)
        assert idler.end() == 0, idler.log
        assert "Traceback" not in idler.log


def test_it_leaves_at_once_when_it_is_told_to(tmp_path: Path, url: str) -> None:
    site = Site(tmp_path, IDLE_AFTER)
    with apart(site, url) as idler:
        until(lambda: leads(url))
        assert idler.end() == 0
        assert not leads(url)
        assert store_of(url).workers() == []


def test_what_is_in_use_is_not_stopped_by_it(tmp_path: Path, url: str) -> None:
    site = Site(tmp_path, IDLE_AFTER, SCALEZERO_COORDINATION=url)
    with apart(site, url) as idler:
        until(lambda: leads(url))
        with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
            answered(site, ask(server, "f0"))
            until(lambda: idler.stops() == 1)
            answered(site, ask(server, "f0/3"))
            assert idler.stops() == 1
            until(lambda: idler.stops() == 2)
            answered(site, ask(server, "f0"))
        assert site.events()["FunctionStopped"] == 0


def test_no_request_is_lost_at_the_boundary(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path, SCALEZERO_COORDINATION=url)
    with apart(site, url, "--idle-after", "40ms") as idler:
        until(lambda: leads(url))
        site.stops = idler.stops  # type: ignore[method-assign]
        boundary(site, capsys, CYCLES, f"apart, {url.partition(':')[0]}")


def test_one_that_is_killed_holds_no_drain_up(tmp_path: Path, url: str) -> None:
    """The workers decide again as soon as its lease has expired, and do not wait for its report to."""
    site = Site(tmp_path, IDLE_AFTER, SCALEZERO_COORDINATION=url)
    with apart(site, url) as idler:
        until(lambda: leads(url))
        with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
            answered(site, ask(server, "f0"))
            until(lambda: idler.stops() == 1)
            answered(site, ask(server, "f0"))
            idler.process.kill()
            killed_at = time.monotonic()
            until(lambda: site.events()["FunctionStopped"] == 1)
            assert time.monotonic() < killed_at + VANISHED
            assert any(report.worker.endswith("/apart/use") for report in store_of(url).workers())


def test_what_one_that_is_killed_has_left_is_ended(tmp_path: Path, url: str) -> None:
    """It dies as it has to wait for a worker that hangs, in the middle of a drain."""
    site = Site(tmp_path, 2.0, SCALEZERO_COORDINATION=url)
    with apart(site, url) as idler:
        until(lambda: leads(url))
        with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
            answered(site, ask(server, "f0"))
            until(lambda: is_unused(url))
            pid = int((site.files / "serves").read_text())
            os.kill(pid, signal.SIGSTOP)
            until(lambda: is_draining(url))
            idler.process.kill()
            os.kill(pid, signal.SIGCONT)
            answered(site, ask(server, "f0"))
            until(lambda: replicas(site) == 0)


def is_unused(url: str) -> bool:
    """Whether the workers have reported that the last request has ended."""
    reports = store_of(url).workers()
    return any(F0 in report.unused_for for report in reports) and not any(
        F0 in report.in_flight for report in reports
    )


def is_draining(url: str) -> bool:
    drain = store_of(url).drains().get(F0)
    return drain is not None and drain.phase is DrainPhase.DRAINING


def test_serve_has_a_store_by_itself(tmp_path: Path) -> None:
    env = {"SCALEZERO_IDLE_AFTER": "300ms", "SCALEZERO_IDLE_DEFAULT": "all"}
    with serve(tmp_path, env=env) as server:
        for count in (1, 2):
            assert server.get("/function/hello").status_code == 200
            until(lambda count=count: server.log.count("scaled to zero after") == count)  # type: ignore[misc]
    assert "no function is scaled back" not in server.log
