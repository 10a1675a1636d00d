"""What it costs four workers of gunicorn to act as one while all is warm.

The applications make a small answer in JSON, which takes a tenth of a millisecond, or have
a function make it. Machines are noisy: what is compared takes turns in one run.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.engines.engine import engine
from tests.servers.even_clients import EvenClients
from tests.servers.harness import Server, gunicorn
from tests.servers.matrix_client import ask
from tests.servers.test_fleet import Fleet
from tests.support.waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.measured]

WARM = "/function/warm"
CACHE_EXPIRY = 0.25
STARTS, ROUNDS = 6, int(os.environ.get("SCALEZERO_TEST_ROUNDS", "21"))
ROUND = 0.5
LEAD_IN = 0.15
"""Seconds before each turn. A site is idle while the others have theirs: then all its workers find a stale
status at once and ask, which costs them more than what they do at full load."""
WORKERS = ["-w", "4", "--threads", "4", "--keep-alive", "75"]


@dataclass
class Site:
    server: Server
    fleet: Fleet
    clients: EvenClients

    def measure(self) -> tuple[float, float]:
        """Return the requests per second, and for how many seconds each kept the workers' processors."""
        self.clients.play(LEAD_IN)
        before = self._processor_time()
        count, seconds = self.clients.play(ROUND)
        return count / seconds, (self._processor_time() - before) / count

    def _processor_time(self) -> float:
        ticks = 0
        for worker in self.server.workers():
            stat = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
            ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def site(base: Path, kind: str, **env: str) -> Iterator[Site]:
    base.mkdir()
    fleet = Fleet(base)
    app = f"tests.servers.fleet_site:{kind}()"
    with gunicorn(app, fleet.log, *WORKERS, env={**fleet.env, **env}) as server:
        assert isinstance(server.address, tuple)
        until(lambda: len(server.workers()) == 4)
        clients = EvenClients(server.address, WARM, server.workers(), 4)
        with contextlib.closing(clients):
            yield Site(server, fleet, clients)


def ratio(a: list[float], b: list[float]) -> float:
    """The middle of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(a, b, strict=True))


def queries(fleet: Fleet) -> list[float]:
    """When the provider was asked."""
    lines = (fleet.files / "calls").read_text().splitlines()
    return [float(line.split()[3]) for line in lines if line.startswith("get warm ")]


def test_at_full_speed_the_fleet_asks_no_more_than_one_worker_would(tmp_path: Path) -> None:
    wrk = engine("SCALEZERO_TEST_WRK", "wrk")
    with site(tmp_path / "sqlite", "wrapped") as fleet:
        until(lambda: len(fleet.fleet.pids()) == 4 or ask(fleet.server.address, WARM).status != 200)
        begun = time.monotonic()
        command = [str(wrk), "-t1", "-c16", "-d10s", fleet.server.url + WARM]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        ended = time.monotonic()
        asked = [at for at in queries(fleet.fleet) if begun <= at <= ended]
    assert "Non-2xx" not in told, told
    assert "Socket errors" not in told, told
    [rate] = re.findall(r"Requests/sec: +([\d.]+)", told)
    passed = ended - begun
    print(f"{float(rate):.0f} requests/s; {len(asked)} queries in {passed:.2f} s")
    assert passed / CACHE_EXPIRY / 2 <= len(asked) <= passed / CACHE_EXPIRY + 1


SITES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "bare": ("bare", {}),
    "alone": ("wrapped", {"SCALEZERO_COORDINATION": "memory://"}),
    "fleet": ("wrapped", {}),
}


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a function."""
    log = tmp_path_factory.mktemp("function") / "log"
    with gunicorn("tests.servers.fleet_site:bare()", log, "--threads", "16", "--keep-alive", "75") as server:
        yield server.url


@pytest.mark.parametrize("app", ["flask_proxy_", "flask_", ""], ids=["proxy", "flask", "wsgi"])
def test_throughput(app: str, function: str, tmp_path: Path) -> None:
    """At least 0.97 of the application without the door, and of the door without coordination.

    One second differs from the next by 5 %, and the same application, started again or after another one, by
    2 %. So there are more rounds as long as it is not shown, on processes of their own, and each of the three
    is the first to start in turn.

    ``proxy`` is what the door is made for. The others are harder cases, for calm machines: it takes 2 to 3 %
    of an application that asks nobody, and more where others take the processor's caches: its code is Python,
    while the loop of C in which ``wsgi`` spends its time hardly slows down.
    """
    rates: dict[str, list[float]] = {name: [] for name in SITES}
    costs: dict[str, list[float]] = {name: [] for name in SITES}
    for number in range(STARTS):
        with contextlib.ExitStack() as stack:
            sites, order = {}, rotated(list(SITES), number)
            for name in order:
                kind, env = SITES[name]
                made = site(tmp_path / f"{name}{number}", app + kind, FUNCTION=function, **env)
                sites[name] = stack.enter_context(made)
            for _ in range(ROUNDS):
                for name in order:
                    rate, cost = sites[name].measure()
                    rates[name].append(rate)
                    costs[name].append(cost)
                order = rotated(order)
        of_alone, of_bare = ratio(rates["fleet"], rates["alone"]), ratio(rates["fleet"], rates["bare"])
        print(f"the fleet's throughput: {of_alone:.3f} of alone, {of_bare:.3f} of bare;", end=" ")
        by_time = [ratio(costs[other], costs["fleet"]) for other in ("alone", "bare")]
        print(f"by processor time {by_time[0]:.3f}, {by_time[1]:.3f}")
        if min(of_alone, of_bare) >= 0.97:
            break
    for name in SITES:
        rate, cost = statistics.median(rates[name]), statistics.median(costs[name])
        print(f"{name}: {rate:.0f} requests/s, {1e6 * cost:.1f} us of processor time each")
    assert of_alone >= 0.97
    assert of_bare >= 0.97


def rotated(names: list[str], turns: int = 1) -> list[str]:
    turns %= len(names)
    return names[turns:] + names[:turns]


CLIENTS = 4
PAUSE = 0.01


class Visitors:
    """A few clients that keep their connections, and ask at a modest rate."""

    def __init__(self, server: Server) -> None:
        assert isinstance(server.address, tuple)
        until(lambda: len(server.workers()) == 4)
        self._clients = [HTTPConnection(*server.address, timeout=30) for _ in range(CLIENTS)]

    def p99(self, seconds: float) -> float:
        """Milliseconds."""
        taken: list[float] = []
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for client in self._clients:
                begun = time.monotonic()
                client.request("GET", WARM)
                response = client.getresponse()
                response.read()
                taken.append(time.monotonic() - begun)
                assert response.status == 200
                time.sleep(PAUSE / CLIENTS)
        return 1000 * sorted(taken)[len(taken) * 99 // 100]

    def close(self) -> None:
        for client in self._clients:
            client.close()


def test_a_slow_provider_slows_no_warm_request_down(tmp_path: Path) -> None:
    """Of 2 s per call: the 99th percentile rises by less than 1 ms. The middle of several rounds, of more as
    long as it is not shown: one percentile differs from the next by some milliseconds on a busy machine."""
    rises: list[tuple[float, float]] = []
    with (
        site(tmp_path / "sqlite", "wrapped") as fleet,
        contextlib.closing(Visitors(fleet.server)) as visitors,
    ):
        slow = fleet.fleet.files / "slow"
        while len(rises) < 5 or (rise_of(rises) >= 1.0 and len(rises) < 17):
            visitors.p99(2.5)  # until the last slow call is over
            fast = visitors.p99(4.0)
            slow.write_text("2")
            before = len(queries(fleet.fleet))
            rises.append((fast, visitors.p99(4.0)))
            assert 1 <= len(queries(fleet.fleet)) - before <= 3
            slow.unlink()
    for fast, slowed in rises:
        print(f"p99 of warm requests: {fast:.2f} ms, with a provider of 2 s per call {slowed:.2f} ms")
    assert rise_of(rises) < 1.0


def rise_of(rises: list[tuple[float, float]]) -> float:
    """The middle of the rounds' differences."""
    return statistics.median(slowed - fast for fast, slowed in rises)
