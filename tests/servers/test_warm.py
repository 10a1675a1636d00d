"""What is up stays up, as far as its clients can see: after a pause, behind our back, in an outage.

``SCALEZERO_SOAK`` sets how many rounds; with 20 or more the pauses and outages last a minute too, and each
number of workers is tried with each of them.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.servers.harness import Server, gunicorn
from tests.servers.matrix_client import Address, Answer, ask, hold
from tests.servers.test_fleet import Fleet
from tests.support.waiting import until

pytestmark = pytest.mark.soak

SITE = "tests.servers.fleet_site:proxy()"
ROUNDS = int(os.environ.get("SCALEZERO_SOAK", "4"))
AT_LENGTH = ROUNDS >= 20

PAUSES = [6.0, 60.0] if AT_LENGTH else [6.0]
"""Seconds without a request: more than ``cache_expiry + stale_for``."""


@contextlib.contextmanager
def site(base: Path, workers: int, threads: int = 16, **env: str) -> Iterator[tuple[Server, Fleet]]:
    fleet = Fleet(base)
    options = ["-w", str(workers), "--threads", str(threads), "-c", "tests/servers/waiting_conf.py"]
    with gunicorn(SITE, fleet.log, *options, env={**fleet.env, **env}) as server:
        until(lambda: len(server.workers()) == workers)
        yield server, fleet


@dataclass
class Sent:
    """One request: when it was sent, and what became of it."""

    at: float
    outcome: Answer | Exception

    @property
    def headers(self) -> dict[str, str]:
        return self.outcome.headers if isinstance(self.outcome, Answer) else {}

    @property
    def status(self) -> int | str:
        return self.outcome.status if isinstance(self.outcome, Answer) else repr(self.outcome)


@dataclass
class Stream:
    """Requests for one path at a steady rate, each on a thread and a connection of its own."""

    address: Address
    path: str
    rate: float
    sent: list[Sent] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Stream:
        self._pacer = threading.Thread(target=self._pace)
        self._pacer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pacer.join()
        for thread in self._threads:
            thread.join(60)

    def _pace(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due += 1 / self.rate
            thread = threading.Thread(target=self._ask)
            thread.start()
            self._threads.append(thread)

    def _ask(self) -> None:
        at = time.monotonic()
        try:
            outcome: Answer | Exception = ask(self.address, self.path)
        except (OSError, HTTPException) as error:
            outcome = error
        self.sent.append(Sent(at, outcome))

    def statuses(self, since: float = 0.0) -> Counter[int | str]:
        return Counter(each.status for each in self.sent if each.at >= since)

    def seconds(self, since: float, until: float) -> list[float]:
        """How long the answers to what was sent in between have taken."""
        return [
            each.outcome.seconds
            for each in self.sent
            if since <= each.at < until and isinstance(each.outcome, Answer)
        ]


def queries(fleet: Fleet, name: str, since: float = 0.0) -> int:
    lines = (fleet.files / "calls").read_text().splitlines()
    return sum(line.startswith(f"get {name} ") and float(line.split()[3]) >= since for line in lines)


def bursts_after_a_pause(base: Path, workers: int, counts: list[int], pause: float, rounds: int) -> None:
    """As many functions as rounds for each size of a burst, so that one pause serves for all."""
    with site(base, workers) as (server, fleet):
        bursts = {f"warm{number}-{count}": count for number in range(rounds) for count in counts}
        for name in bursts:
            assert ask(server.address, f"/function/{name}").status == 200
        (fleet.files / "slow").write_text("0.1")
        time.sleep(pause)
        for name, count in bursts.items():
            begun = time.monotonic()
            held = hold(count, lambda name=name: ask(server.address, f"/function/{name}"))  # type: ignore[misc]
            assert Counter(held.statuses()) == {200: count}, server.log
            # A burst that takes longer than an answer is fresh has it asked for again.
            assert queries(fleet, name, begun) <= 1 + (time.monotonic() - begun) / 0.25


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_bursts_after_pauses(workers: int, pause: float, tmp_path: Path) -> None:
    bursts_after_a_pause(tmp_path, workers, [16, 64], pause, ROUNDS)


@pytest.mark.parametrize("workers", [1, 2, 4] if AT_LENGTH else [1, 4])
def test_what_is_scaled_down_behind_our_back_comes_back_unseen(workers: int, tmp_path: Path) -> None:
    with site(tmp_path, workers, threads=100, START="1.0") as (server, fleet):
        started = fleet.files / "cold.started"
        with Stream(server.address, "/function/cold", 50) as stream:
            until(lambda: stream.statuses()[200] > 0)
            for turn in range(ROUNDS):
                answered = stream.statuses()[200]
                until(lambda answered=answered: stream.statuses()[200] > answered + 100)  # type: ignore[misc]
                started.unlink()
                until(lambda turn=turn: fleet.calls("set")["cold"] == turn + 2)  # type: ignore[misc]
            answered = stream.statuses()[200]
            until(lambda: stream.statuses()[200] > answered + 100)
        print(f"{workers} workers: {dict(stream.statuses())}, {fleet.calls('set')['cold']} starts")
        assert stream.statuses() == {200: len(stream.sent)}, server.log
        assert fleet.calls("set")["cold"] == ROUNDS + 1


def outage(base: Path, kind: str, seconds: float, workers: int) -> None:
    with site(base, workers, START="0.1") as (server, fleet), contextlib.ExitStack() as streams:
        for name in ("healthy", "dies"):
            assert ask(server.address, f"/function/{name}").status == 200
        healthy, dies = (
            streams.enter_context(Stream(server.address, f"/function/{name}", rate))
            for name, rate in (("healthy", 50), ("dies", 10))
        )
        begun = time.monotonic()
        time.sleep(min(5.0, seconds))
        (fleet.files / kind).write_text("6")
        broke_at = time.monotonic()
        time.sleep(seconds)
        (fleet.files / "dies.started").unlink()
        died_at = time.monotonic()
        time.sleep(min(5.0, seconds / 2))
        mended_at = time.monotonic()
        (fleet.files / kind).unlink()
        until(lambda: dies.statuses(mended_at)[200] > 0)
        until(lambda: server.log.count("answers again") == workers, 60)  # the pauses have grown by now
        streams.close()
        assert healthy.statuses() == {200: len(healthy.sent)}, server.log
        held = [each for each in healthy.sent if each.at >= broke_at and "server-timing" in each.headers]
        assert held == []
        before, during = healthy.seconds(begun, broke_at), healthy.seconds(broke_at, mended_at)
        p99 = [statistics.quantiles(each, n=100)[98] for each in (before, during)]
        late = [each for each in dies.sent if died_at <= each.at < mended_at - 1.0]
        if kind == "slow":  # a query from before has told by its end that it is at zero, so it was started
            late = [each for each in late if each.status != 200]
            assert late, "requests for the dead one were held until the provider had answered"
        slowest = max(each.outcome.seconds for each in late if isinstance(each.outcome, Answer))
        print(
            f"{kind}, {workers} workers: {len(healthy.sent)} x 200, p99 before {p99[0] * 1000:.2f} ms,"
            f" in the outage {p99[1] * 1000:.2f} ms; of the dead one {dict(Counter(e.status for e in late))},"
            f" the slowest after {slowest:.2f} s"
        )
        assert {each.status for each in late} <= {502, 503}
        assert slowest < 1.0
        assert server.log.count("go on being served") == workers


OUTAGES = [("down", 1), ("down", 4), ("slow", 4)]


@pytest.mark.parametrize(("kind", "workers"), [*OUTAGES, ("slow", 1)] if AT_LENGTH else OUTAGES)
def test_an_outage_of_the_provider_switches_nothing_off(kind: str, workers: int, tmp_path: Path) -> None:
    outage(tmp_path, kind, 60.0 if AT_LENGTH else 9.0, workers)
