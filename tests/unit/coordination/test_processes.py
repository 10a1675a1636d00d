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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.coordination import make_coordination
from scalezero_wsgi.coordination.base import SharedStatus
from scalezero_wsgi.coordination.heartbeat import HEARTBEAT
from scalezero_wsgi.coordination.leadership import LEASE
from tests.servers.harness import ROOT
from tests.support.waiting import until
from tests.unit.coordination.crowd import ASKED, SETTING, STARTING, ZERO, Setup, Site, command
from tests.unit.coordination.test_redis import Server

SOAK = int(os.environ.get("SCALEZERO_SOAK", "5"))

OK = "200 OK"


pytestmark = pytest.mark.server


@dataclass(frozen=True)
class Line:
    """Of the log.

    :param at: monotonic seconds, which all processes of a host have in common.
    """

    at: float
    pid: int
    what: str
    function: str
    detail: str


class Log:
    """What all workers write."""

    def __init__(self) -> None:
        self._out, self.fd = os.pipe()
        self._lines: list[Line] = []
        self._marks = 0
        self._marks_seen = 0
        self._closed = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with os.fdopen(self._out) as out:
            for text in out:
                if text == "mark\n":
                    self._marks_seen += 1
                else:
                    at, pid, what, function, detail = text.rstrip("\n").split(" ", 4)
                    self._lines.append(Line(float(at), int(pid), what, function, detail))

    def lines(self, what: str = "", function: str = "") -> list[Line]:
        """Of that kind and about that function; all that were written up to now."""
        if not self._closed:
            self._marks += 1
            os.write(self.fd, b"mark\n")
            until(lambda: self._marks_seen >= self._marks, pause=0.0005)
        return [each for each in self._lines if what in ("", each.what) and function in ("", each.function)]

    def forget(self) -> None:
        self.lines()
        self._lines.clear()

    def close(self) -> None:
        """After the last worker."""
        self._closed = True
        os.close(self.fd)
        self._reader.join()


class Member:
    """A worker's process."""

    def __init__(self, setup: Setup) -> None:
        self.process = subprocess.Popen(
            command(setup),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            pass_fds=[setup.log],
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
        self.log = Log()
        self.setup = replace(setup, log=self.log.fd)
        self.site = Site(Path(setup.directory), self.log.fd)
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
        """Kill it; return a time at which it was dead."""
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
        self.log.close()


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
    """Whose path is short enough for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="crowd-"))
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


@pytest.mark.soak
def test_a_crowd_of_8_processes_with_64_threads_makes_one_flight(setup: Setup) -> None:
    """All are answered within 50 ms, or, on a machine that is too slow to wake 512 threads in that time,
    within what it takes for the same crowd and a function that is up."""
    with crowd(setup, 1) as one:
        one.ask("alone", 1)
        assert statuses(one.answers()) == {OK}
        alone = len(one.log.lines("get", "alone"))
    with crowd(setup, 8) as many:
        spreads = []
        for turn in range(10):  # on a machine that does other things, too, some take longer
            function = f"f{turn}"
            many.ask(function, 64)
            answers = many.answers()
            assert len(answers) == 512
            assert statuses(answers) == {OK}
            assert len(many.log.lines("set", function)) == 1
            assert len(many.log.lines("get", function)) <= 1.5 * alone
            asked = len(many.log.lines("get", function))
            many.ask(function, 64)
            cold, warm = spread(answers), spread(many.answers())
            print(f"gets {asked} (alone {alone}), spread {cold:.3f} s, of a warm crowd {warm:.3f} s")
            if cold <= max(0.050, warm):
                return
            spreads.append((cold, warm))
        pytest.fail(f"from the first answer to the last, and of a warm crowd: {spreads} s")


def spread(answers: list[tuple[float, str]]) -> float:
    """Seconds from the first to the last."""
    times = [at for at, _ in answers]
    return max(times) - min(times)


def leader_of(log: Log, function: str) -> int:
    """Whoever has asked the provider."""
    until(lambda: bool(log.lines("get", function)), pause=0.001)
    return log.lines("get", function)[0].pid


@pytest.mark.soak
def test_a_killed_leader_is_replaced(setup: Setup) -> None:
    """Within the lease and 100 ms: whatever kept the lease was before the kill, so at most that long after it
    another worker asks the provider; unless the dead one's last answer was the outcome already."""
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
            leader = four.of(leader_of(four.log, function))
            time.sleep(after)
            killed = four.kill(leader)
            new = four.grow(1)
            answers = [
                (at, status) for each in four.members if each not in new for at, status in each.receive()
            ]
            assert len(answers) == 12, about
            assert statuses(answers) == {OK}, about
            lines = four.log.lines(function=function)
            assert 1 <= sum(each.what == "set" for each in lines) <= 2, about
            next_call = next(
                (each.at for each in lines if each.what == "get" and each.pid != leader.pid), None
            )
            if next_call is None:
                assert [each.detail for each in lines if each.what == "got"][-1] == "1/1", about
            else:
                takeovers.append(next_call - killed)
                assert next_call <= killed + LEASE + 0.1, f"{about}: {takeovers[-1]:.3f} s"
            four.log.forget()
    print(
        f"{SOAK} kills, {len(takeovers)} take-overs, {min(takeovers):.3f} to {max(takeovers):.3f} s after it"
    )


MARK = ReplicaStatus(7, 7)


@pytest.mark.soak
@pytest.mark.parametrize("moment", [ASKED, ZERO, STARTING, SETTING])
def test_what_a_stopped_leader_writes_late_changes_nothing(setup: Setup, moment: str) -> None:
    """It is stopped for longer than its lease, and the others go on without it."""
    function = "hello"
    with crowd(setup, 4) as four:
        log = four.log
        four.site.stop_at(moment)
        four.ask(function, 4)
        until(lambda: bool(log.lines("stopped")))
        stopped_at = log.lines("stopped")[0].at
        late = four.of(log.lines("stopped")[0].pid)
        until(lambda: late.state() == "T")
        answers = [(at, status) for each in four.members if each is not late for at, status in each.receive()]
        assert len(answers) == 12
        assert statuses(answers) == {OK}
        assert max(at for at, _ in answers) <= stopped_at + LEASE + 0.1 + setup.start + 0.5
        # Another one leads now, who would notice if its lease were given back or what it said replaced.
        store = make_coordination(setup.url)
        lease = store.acquire(Function(function), "test", 60.0)
        assert lease is not None
        assert store.publish(lease, SharedStatus(MARK))
        before = len(log.lines())
        late.process.send_signal(signal.SIGCONT)
        answers = late.receive()
        assert len(answers) == 4
        assert statuses([(at, status) for at, status in answers]) == {OK}
        time.sleep(2 * HEARTBEAT)  # at least one heartbeat, too
        wrote = [each for each in log.lines()[before:] if each.pid == late.pid]
        assert {each.detail for each in wrote if each.what == "published"} == {"False"}
        known = store.known(Function(function))
        assert known is not None
        assert known.status == MARK
        assert store.renew(lease, 60.0)
        # Between the last check and the provider nothing but the provider could stop it.
        assert [each.what for each in wrote].count("set") == (moment == SETTING)
        others = [each.pid for each in log.lines("set", function) if each.pid != late.pid]
        assert len(others) == (moment != STARTING)


WARM = ["warm1", "warm2"]
COLD = ["cold1", "cold2"]

CONNECTIONS = 8
"""To Redis, that may be in use at once by a load and are kept after that."""


@contextlib.contextmanager
def under_load(setup: Setup, count: int = 3) -> Iterator[Crowd]:
    """The block's trouble comes to workers under a steady load, with functions that go to zero and wake. No
    request fails, and afterwards the workers are one fleet again that has lost nothing and gained nothing."""
    with crowd(replace(setup, start=0.3), count) as some:
        site = some.site
        for function in WARM:
            site.scale_up(function, 0.0)
        some.call("load", [*WARM, *COLD])
        time.sleep(1.0)
        some.call("unload")
        some.ask("before", 4)
        assert statuses(some.answers()) == {OK}
        measured = some.call("measure")
        some.log.forget()

        some.call("load", [*WARM, *COLD])
        with going_to_zero(site):
            time.sleep(1.0)
            yield some
            recovered = time.monotonic()
            time.sleep(2.0)
        done = some.call("unload")
        print(done, events(some), some.call("measure"), measured)
        for answers, _ in done:
            assert list(answers) == [OK]
            assert answers[OK] > 100
        for function in COLD:
            assert max(wakes(some.log, function, recovered)) == 1
        some.ask("after", 4)
        assert statuses(some.answers()) == {OK}
        assert len(some.log.lines("set", "after")) == 1
        more = 0 if setup.url.startswith("sqlite") else CONNECTIONS

        def nothing_is_left() -> bool:
            """A thread that looked after those who waited ends a tenth of a second after the last of them."""
            after = zip(some.call("measure")[:count], measured, strict=True)
            return all(now[0] <= before[0] and now[1] <= before[1] + more for now, before in after)

        until(nothing_is_left)


def wakes(log: Log, function: str, since: float) -> list[int]:
    """How often it was scaled up after each time that it had gone to zero."""
    wakes: list[int] = []
    for line in log.lines(function=function):
        if line.at >= since and line.what == "gone":
            wakes.append(0)
        elif wakes and line.what == "set":
            wakes[-1] += 1
    return wakes


@contextlib.contextmanager
def going_to_zero(site: Site) -> Iterator[None]:
    ended = threading.Event()

    def again_and_again() -> None:
        while not ended.wait(0.8):
            for function in COLD:
                site.to_zero(function)

    thread = threading.Thread(target=again_and_again)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def events(some: Crowd) -> list[list[str]]:
    """Each worker's, about the store."""
    lines = some.log.lines("event")
    return [
        [each.detail.partition(" ")[0] for each in lines if each.pid == member.pid] for member in some.members
    ]


def all_noticed(some: Crowd, event: str) -> None:
    until(lambda: all(each[-1:] == [event] for each in events(some)))


LOST, RESTORED = "CoordinationLost", "CoordinationRestored"


def suspend(server: Server, some: Crowd) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    all_noticed(some, LOST)
    time.sleep(2 * HEARTBEAT)
    server.process.send_signal(signal.SIGCONT)


def terminate(server: Server, some: Crowd) -> None:
    assert server.process is not None
    server.process.terminate()
    server.process.wait()
    all_noticed(some, LOST)
    time.sleep(2 * HEARTBEAT)
    server.start()


def pause(server: Server, some: Crowd) -> None:
    server.admin().client_pause(4000, all=True)
    all_noticed(some, LOST)


@pytest.mark.engine
@pytest.mark.parametrize("trouble", [suspend, terminate, pause])
def test_redis_is_lost_and_found(
    directory: Path, server: Server, trouble: Callable[[Server, Crowd], None]
) -> None:
    with under_load(Setup(str(directory), server.url)) as some:
        trouble(server, some)
        all_noticed(some, RESTORED)
    assert events(some) == [[LOST, RESTORED]] * 3


@pytest.mark.engine
def test_redis_is_restarted_at_once(directory: Path, server: Server) -> None:
    """Who notices notices both."""
    with under_load(Setup(str(directory), server.url)) as some:
        server.stop()
        server.start()
        time.sleep(2 * HEARTBEAT)
    assert all(each in ([], [LOST, RESTORED]) for each in events(some))


@pytest.mark.engine
def test_redis_is_flushed(directory: Path, server: Server) -> None:
    with under_load(Setup(str(directory), server.url)) as some:
        server.admin().flushall()
        server.admin().script_flush()
        time.sleep(HEARTBEAT)
    assert events(some) == [[]] * 3


@pytest.mark.engine
def test_redis_is_full(directory: Path, server: Server) -> None:
    """It can still be read, but nobody takes that for its return."""
    with under_load(Setup(str(directory), server.url)) as some:
        server.admin().config_set("maxmemory", "1")
        all_noticed(some, LOST)
        time.sleep(4 * HEARTBEAT)
        server.admin().config_set("maxmemory", "0")
        all_noticed(some, RESTORED)
    assert events(some) == [[LOST, RESTORED]] * 3


def again_and_again(some: Crowd, lose: Callable[[], object], find: Callable[[], object]) -> None:
    """Each time it is noticed once, and nothing grows."""
    functions = [*WARM, *COLD]
    some.call("load", functions)
    sizes = []
    for _ in range(SOAK):
        lose()
        all_noticed(some, LOST)
        find()
        all_noticed(some, RESTORED)
        assert [list(answers) for answers, _ in some.call("unload")] == [[OK]] * len(some.members)
        sizes.append(some.call("measure"))
        some.call("load", functions)
    some.call("unload")
    assert events(some) == [[LOST, RESTORED] * SOAK] * len(some.members)
    print(sizes)
    for first, last in zip(sizes[0], sizes[-1], strict=True):
        assert last[0] <= first[0]
        assert last[1] <= first[1] + min(SOAK // 2, CONNECTIONS)


@pytest.mark.engine
def test_redis_is_lost_again_and_again(directory: Path, server: Server) -> None:
    with crowd(Setup(str(directory), server.url), 3) as some:
        again_and_again(some, server.stop, server.start)


class SlowWay:
    """To a server: its answers come so many seconds late."""

    def __init__(self, there: str, here: Path) -> None:
        self.url = f"unix://{here}"
        self.delay = 0.0
        self._there = there
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(here))
        self._listener.listen(100)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._there)
                for source, sink, late in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=(source, sink, late), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, late: bool) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                time.sleep(self.delay if late else 0.0)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def slow_way(directory: Path, server: Server) -> Iterator[SlowWay]:
    way = SlowWay(server.socket, directory / "way")
    yield way
    way.close()


@pytest.mark.engine
def test_redis_is_slow(directory: Path, slow_way: SlowWay) -> None:
    with under_load(Setup(str(directory), slow_way.url)) as some:
        slow_way.delay = 0.1
        time.sleep(3.0)
        slow_way.delay = 0.0
    assert events(some) == [[]] * 3


@pytest.mark.engine
def test_redis_is_too_slow(directory: Path, slow_way: SlowWay) -> None:
    """Slower than the second that a server has to answer."""
    with under_load(Setup(str(directory), slow_way.url)) as some:
        slow_way.delay = 1.5
        all_noticed(some, LOST)
        time.sleep(2 * HEARTBEAT)
        slow_way.delay = 0.0
        all_noticed(some, RESTORED)
    assert events(some) == [[LOST, RESTORED]] * 3


@pytest.fixture
def file(directory: Path) -> Path:
    return directory / "private" / "x.db"


@pytest.fixture
def on_file(directory: Path, file: Path) -> Setup:
    return Setup(str(directory), f"sqlite://{file}", humble=True)


def delete(file: Path) -> None:
    file.unlink()


def replace_beside_its_log(file: Path) -> None:
    """The log may mend it."""
    garbage = file.with_name("garbage")
    garbage.write_bytes(b"garbage" * 1000)
    garbage.chmod(0o600)
    garbage.replace(file)


def replace_without_its_log(file: Path) -> None:
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    replace_beside_its_log(file)


@pytest.mark.soak
@pytest.mark.parametrize("trouble", [delete, replace_beside_its_log, replace_without_its_log])
def test_the_file_is_made_anew_at_once(file: Path, on_file: Setup, trouble: Callable[[Path], None]) -> None:
    """And nobody has lost it."""
    with under_load(on_file) as some:
        trouble(file)
        until(lambda: file.exists() and file.read_bytes()[:6] == b"SQLite")
        time.sleep(HEARTBEAT)
    assert events(some) == [[]] * 3
    if trouble is replace_without_its_log:
        assert file.with_name("x.db.bad").exists()


@pytest.mark.soak
def test_the_file_is_overwritten(file: Path, on_file: Setup) -> None:
    with under_load(on_file) as some:
        with file.open("r+b") as opened:
            opened.write(b"garbage" * 5000)
        time.sleep(3 * HEARTBEAT)
    assert all(each in ([], [LOST, RESTORED]) for each in events(some))


@pytest.mark.soak
def test_the_file_is_made_read_only(file: Path, on_file: Setup) -> None:
    """Whoever has it open already goes on with it; those who come after that have lost it from the first."""
    with under_load(on_file) as some:
        file.chmod(0o400)
        (new,) = some.grow(1)
        new.call("load", [*WARM, *COLD])
        until(lambda: events(some) == [[], [], [], [LOST]])
        time.sleep(2 * HEARTBEAT)
        file.chmod(0o600)
        until(lambda: events(some) == [[], [], [], [LOST, RESTORED]])
    assert events(some) == [[], [], [], [LOST, RESTORED]]


def take_away(file: Path) -> None:
    """And let nobody make it anew, as a worker may just have done."""
    while file.exists():
        file.parent.chmod(0o700)
        file.unlink()
        file.parent.chmod(0o500)


@pytest.mark.soak
def test_the_directory_is_made_read_only(file: Path, on_file: Setup) -> None:
    """And the file deleted, so that nobody can make a new one."""
    with under_load(on_file) as some:
        take_away(file)
        all_noticed(some, LOST)
        time.sleep(2 * HEARTBEAT)
        file.parent.chmod(0o700)
        all_noticed(some, RESTORED)
    assert events(some) == [[LOST, RESTORED]] * 3


@pytest.mark.soak
def test_the_file_is_lost_again_and_again(file: Path, on_file: Setup) -> None:
    with crowd(on_file, 3) as some:
        again_and_again(some, lambda: take_away(file), lambda: file.parent.chmod(0o700))


def limit(some: Crowd, size: int) -> None:
    """The size of files, as if the disk were full."""
    for member in some.members:
        resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.soak
def test_the_disk_has_no_more_room(file: Path, on_file: Setup) -> None:
    """The room that the file and its log have is enough for them."""
    with under_load(on_file) as some:
        limit(some, file.with_name("x.db-wal").stat().st_size)
        time.sleep(4 * HEARTBEAT)
        limit(some, resource.RLIM_INFINITY)
    assert events(some) == [[]] * 3


@pytest.mark.soak
def test_the_disk_is_full(on_file: Setup) -> None:
    """Nothing can be written at all."""
    with under_load(on_file) as some:
        limit(some, 4096)
        all_noticed(some, LOST)
        time.sleep(2 * HEARTBEAT)
        limit(some, resource.RLIM_INFINITY)
        all_noticed(some, RESTORED)
    assert events(some) == [[LOST, RESTORED]] * 3
