"""Back to zero on real parts: uses that last much longer than a function may be idle, workers that are killed
or suspended on the way, a store that is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi.activation.idling.gate import SUFFIX, VANISHED
from scalezero_wsgi.coordination import make_coordination
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider
from tests.servers.harness import Server, gunicorn
from tests.servers.test_idle import FUNCTION, SITE, Client, Site
from tests.support.waiting import until
from tests.unit.coordination.test_redis import Server as RedisServer

pytestmark = [pytest.mark.server, pytest.mark.soak]

IDLE_AFTER = 0.3
LONG = 10 * IDLE_AFTER
STEPS = [f"{when} {step}" for step in ("draining", "stopping", "set", "zero") for when in ("before", "after")]


def replicas(site: Site, name: str = "f0") -> int:
    provider = ProcessProvider({name: ProcessFunction(["true"])}, state_dir=site.files / "state")
    return provider.get_replicas(name, "").replicas


BRIEFLY = {"SCALEZERO_CACHE_EXPIRY": "0.5", "SCALEZERO_STALE_FOR": "1"}
"""Entries can be used for so long; that and ``VANISHED`` is how long a worker counts that says no more."""


def stops(site: Site) -> int:
    """Return how often the provider was told to stop something."""
    lines = [line for path in site.files.glob("sets.*") for line in path.read_text().splitlines()]
    return sum(line.endswith(" 0") for line in lines)


def is_at_zero(site: Site, name: str = "f0") -> None:
    until(lambda: replicas(site, name) == 0, timeout=VANISHED + 60)


def ask(server: Server, path: str) -> Client:
    """Send a request behind the caller's back."""
    client = Client(server, path, 1)
    client.start()
    return client


def answered(site: Site, *clients: Client) -> None:
    for client in clients:
        client.join()
    answers = [dict(client.answers) for client in clients]
    assert answers == [{"200": 1}] * len(clients), (answers, site.log.read_text()[-3000:])


# Uses that last


@pytest.mark.parametrize("path", ["f0/stream/3", "f0/3"])
def test_a_long_answer_is_not_cut(path: str, tmp_path: Path) -> None:
    site = Site(tmp_path, IDLE_AFTER)
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
        answered(site, ask(server, "f0"))
        is_at_zero(site)  # from here on the fleet stops what is idle
        answered(site, ask(server, path))
        assert site.events()["FunctionStopped"] == 1
        is_at_zero(site)


def test_a_slow_upload_is_not_cut(tmp_path: Path) -> None:
    site = Site(tmp_path, IDLE_AFTER)
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
        answered(site, ask(server, "f0"))
        is_at_zero(site)
        assert not isinstance(server.address, str)
        pieces = round(LONG / 0.1)
        with socket.create_connection(server.address) as client:
            client.sendall(
                f"POST /function/f0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                f"Content-Length: {pieces}\r\n\r\n".encode()
            )
            for _ in range(pieces):
                time.sleep(0.1)
                client.sendall(b"x")
            assert client.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        assert site.events()["FunctionStopped"] == 1
        is_at_zero(site)


def test_a_function_that_waits_for_the_start_of_another_is_not_stopped(tmp_path: Path) -> None:
    """Which takes two seconds; the one has a request in flight, the other one that waits."""
    site = Site(tmp_path, IDLE_AFTER, SLOW="1")
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
        answered(site, ask(server, "f0"))
        is_at_zero(site)
        answered(site, ask(server, f"f0/ask/{server.url}/function/slow"))
        assert site.events()["FunctionStopped"] == 1
        is_at_zero(site)
        is_at_zero(site, "slow")


def test_a_function_that_computes_without_a_request_is_not_stopped(tmp_path: Path) -> None:
    site = Site(tmp_path, IDLE_AFTER, BUSY="1")
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
        answered(site, ask(server, "f0"))
        is_at_zero(site)
        answered(site, ask(server, f"f0/compute/{LONG}"))
        begun = time.monotonic()
        is_at_zero(site)
        assert time.monotonic() >= begun + LONG - 0.1


# Other writers


def test_a_redeploy_while_it_drains_stands(tmp_path: Path) -> None:
    idle_after = 2.0
    site = Site(tmp_path, idle_after, STEP="after draining", WAITS="1")
    function = ProcessFunction([sys.executable, "-I", "-S", str(FUNCTION), "{port}"])
    deployer = ProcessProvider({"f0": function}, state_dir=site.files / "state")
    with gunicorn(SITE, site.log, "-w", "2", "--threads", "4", env=site.env) as server:
        answered(site, ask(server, "f0"))
        until((site.files / "at").exists)
        deployer.set_replicas("f0", "", 0)
        until(lambda: deployer.get_replicas("f0", "").replicas == 0)
        deployer.set_replicas("f0", "", 1)
        until(lambda: deployer.get_replicas("f0", "").available_replicas == 1)
        new = deployer.get_replicas("f0", "").endpoint
        (site.files / "go").touch()
        until(lambda: site.reasons()["somebody else has changed it meanwhile"])
        assert stops(site) == 0
        assert deployer.get_replicas("f0", "").endpoint == new
        is_at_zero(site)


# Workers that die


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "left alone"])
@pytest.mark.parametrize("step", STEPS)
def test_who_stops_it_is_killed(step: str, asked: bool, tmp_path: Path) -> None:
    """Requests are answered meanwhile, and nothing stays up.

    Where no request comes the others take part only if gunicorn tells them that they serve.
    """
    site = Site(tmp_path, IDLE_AFTER, STEP=step, **BRIEFLY)
    serving = ["-c", "tests/servers/waiting_conf.py"]
    with gunicorn(SITE, site.log, "-w", "3", "--threads", "8", *serving, env=site.env) as server:
        answered(site, ask(server, "f0"))
        until((site.files / "at").exists)
        clients: list[Client] = []
        begun = time.monotonic()
        while asked and time.monotonic() < begun + 6.0:
            clients.append(ask(server, "f0"))
            time.sleep(0.25)
        answered(site, *clients)
        is_at_zero(site)
        answered(site, ask(server, "f0"))
        is_at_zero(site)


# Workers that are suspended


@pytest.mark.parametrize("seconds", [2, 4, 10, None], ids=str)
def test_a_worker_that_wakes_with_an_entry_passes_nothing_to_a_function_at_zero(
    seconds: int | None, tmp_path: Path
) -> None:
    """It has nothing in flight. ``None``: until the others have stopped the function without it."""
    url = f"sqlite://{tmp_path}/meet/workers.db"
    site = Site(tmp_path, IDLE_AFTER, SCALEZERO_COORDINATION=url, **BRIEFLY)

    def is_reported(worker: int) -> bool:
        """Whether the others know that its use has ended: before that it counts for ``VANISHED_IN_USE``."""
        [use] = [each for each in store.workers() if re.search(f":{worker}:.*{SUFFIX}$", each.worker)]
        return not use.in_flight and use.unused_for.get(Function("f0"), IDLE_AFTER) < IDLE_AFTER

    with gunicorn(SITE, site.log, "-w", "2", "--threads", "8", env=site.env) as server:
        until(lambda: len(server.workers()) == 2)
        store = make_coordination(url)
        one, other = server.workers()
        for asleep in (one, other):  # each begins to stop idle functions at its first request
            os.kill(asleep, signal.SIGSTOP)
            answered(site, ask(server, "f0"))
            os.kill(asleep, signal.SIGCONT)
        until(lambda: site.events()["FunctionStopped"] == 1)
        answered(site, ask(server, "f0"))
        pid = int((site.files / "serves").read_text())
        until(lambda: is_reported(pid), pause=0.002)
        os.kill(pid, signal.SIGSTOP)
        if seconds is None:
            until(lambda: site.events()["FunctionStopped"] > 1, timeout=VANISHED + 30)
        else:
            time.sleep(seconds)
            assert site.events()["FunctionStopped"] == 1  # a suspended worker counts
        rest = one if pid == other else other
        os.kill(rest, signal.SIGSTOP)  # so that all of them come to the one that wakes
        os.kill(pid, signal.SIGCONT)
        answered(site, *[ask(server, "f0") for _ in range(8)])
        os.kill(rest, signal.SIGCONT)
        is_at_zero(site)


@pytest.mark.parametrize("step", ["after draining", "before stopping", "after stopping", "before set"])
def test_the_store_is_lost_on_the_way(step: str, tmp_path: Path) -> None:
    """A Redis that comes back empty. Only who has made sure of its lease already still stops the function."""
    stopped = int(step == "before set")
    with RedisServer(tmp_path / "redis").running() as redis:
        site = Site(tmp_path, IDLE_AFTER, SCALEZERO_COORDINATION=redis.url, STEP=step, WAITS="1")
        with gunicorn(SITE, site.log, "-w", "3", "--threads", "8", env=site.env) as server:
            answered(site, ask(server, "f0"))
            until((site.files / "at").exists)
            redis.stop()
            (site.files / "go").touch()
            clients = []
            for _ in range(20):
                clients.append(ask(server, "f0"))
                time.sleep(0.25)
            answered(site, *clients)
            assert stops(site) == stopped
            redis.start()
            is_at_zero(site)
            answered(site, ask(server, "f0"))
            is_at_zero(site)
