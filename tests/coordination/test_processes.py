"""Fleets of real processes, over a real file or a real server, which are killed, stopped and starved."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.coordination import make_coordination
from scalezero_wsgi.coordination.base import Known
from scalezero_wsgi.coordination.fleet import BEAT, LEASE, PAUSE
from tests.coordination.crowd import ASKED, NOBODY, SETTING, STARTING, ZERO, Line, Setup, Site, command
from tests.coordination.test_redis import Server
from tests.servers.harness import ROOT, until

SOAK = int(os.environ.get("SCALEZERO_SOAK", "5"))

OK = "200 OK"


class Member:
    """A worker's process."""

    def __init__(self, setup: Setup) -> None:
        self.process = subprocess.Popen(
            command(setup),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pid = self.process.pid

    def send(self, command: str, *arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def call(self, command: str, *arguments: object) -> Any:
        self.send(command, *arguments)
        return self.receive()

    def state(self) -> str:
        """``T`` while it is stopped."""
        return Path(f"/proc/{self.pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]

    def end(self) -> None:
        """It leaves by itself, or is killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Crowd:
    """Workers that come and go; the test ends those that are left."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.site = Site(Path(setup.directory))
        self.members: list[Member] = []

    def grow(self, count: int) -> list[Member]:
        new = [Member(self.setup) for _ in range(count)]
        self.members += new
        for member in new:
            assert member.receive() == "ready"
        return new

    def of(self, pid: int) -> Member:
        return next(each for each in self.members if each.pid == pid)

    def kill(self, member: Member) -> float:
        """Kill it; return the time before which it was alive."""
        os.kill(member.pid, signal.SIGKILL)
        killed = time.monotonic()
        member.end()
        self.members.remove(member)
        return killed

    def ask(self, function: str, threads: int) -> None:
        """Requests of all members, that many of each, at one moment."""
        at = time.monotonic() + 0.1 + 0.0005 * threads * len(self.members)
        for member in self.members:
            member.send("ask", function, threads, at)

    def answers(self) -> list[tuple[float, str]]:
        return [(at, status) for member in self.members for at, status in member.receive()]

    def call(self, command: str, *arguments: object) -> list[Any]:
        """All do the same at the same time."""
        for member in self.members:
            member.send(command, *arguments)
        return [member.receive() for member in self.members]

    def end(self) -> None:
        for member in self.members:
            assert member.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                member.process.stdin.close()
        for member in self.members:
            member.end()


@contextlib.contextmanager
def crowd(setup: Setup, count: int) -> Iterator[Crowd]:
    made = Crowd(setup)
    try:
        made.grow(count)
        yield made
    finally:
        made.end()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Which another user can reach, and whose path is short enough for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="crowd-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    with Server(directory / "redis").running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.engine)])
def setup(request: pytest.FixtureRequest, directory: Path) -> Setup:
    if request.param == "redis":
        return Setup(str(directory), request.getfixturevalue("server").url)
    return Setup(str(directory), f"sqlite://{directory}/private/x.db")


def statuses(answers: Sequence[tuple[float, str]]) -> set[str]:
    return {status for _, status in answers}


def test_a_crowd_of_8_processes_with_64_threads_makes_one_flight(setup: Setup) -> None:
    with crowd(setup, 1) as one:
        one.ask("alone", 1)
        assert statuses(one.answers()) == {OK}
        alone = len(one.site.lines("get", "alone"))
    with crowd(setup, 8) as many:
        spreads = []
        for turn in range(3):
            function = f"f{turn}"
            many.ask(function, 64)
            answers = many.answers()
            assert len(answers) == 512
            assert statuses(answers) == {OK}
            assert len(many.site.lines("set", function)) == 1
            assert len(many.site.lines("get", function)) <= 1.5 * alone
            times = [at for at, _ in answers]
            spreads.append(max(times) - min(times))
            print(f"gets {len(many.site.lines('get', function))} (alone {alone}), spread {spreads[-1]:.3f} s")
            if spreads[-1] <= 0.050:
                return
        pytest.fail(f"from the first answer to the last: {spreads} s")


def leader_of(site: Site, function: str) -> int:
    """Whoever has asked the provider."""
    until(lambda: bool(site.lines("get", function)), pause=0.001)
    return site.lines("get", function)[0].pid


@pytest.mark.soak
def test_a_killed_leader_is_replaced(setup: Setup) -> None:
    """Within the lease and 100 ms: a lease is kept by a renewal, and the last one was before the kill; so that
    long after the kill another one asks the provider, unless the dead one's last answer was the outcome."""
    setup = replace(setup, start=0.6)
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    takeovers = []
    with crowd(setup, 4) as four:
        for turn in range(SOAK):
            function = f"f{turn}"
            after = chance.uniform(0.0, chance.choice([0.01, 0.05, setup.start]))
            about = f"turn {turn} of seed {seed}, killed after {after:.4f} s"
            four.ask(function, 4)
            leader = four.of(leader_of(four.site, function))
            time.sleep(after)
            killed = four.kill(leader)
            new = four.grow(1)
            answers = [(at, status) for each in four.members if each not in new for at, status in each.receive()]
            assert len(answers) == 12, about
            assert statuses(answers) == {OK}, about
            lines = four.site.lines(function=function)
            assert 1 <= sum(each.what == "set" for each in lines) <= 2, about
            next_call = next((each.at for each in lines if each.what == "get" and each.pid != leader.pid), None)
            if next_call is None:
                assert [each.detail for each in lines if each.what == "got"][-1] == "1/1", about
            else:
                takeovers.append(next_call - killed)
                assert next_call <= killed + LEASE + 0.1, f"{about}: {takeovers[-1]:.3f} s"
            four.site.forget()
    print(f"{SOAK} kills, {len(takeovers)} take-overs, {min(takeovers):.3f} to {max(takeovers):.3f} s after it")
