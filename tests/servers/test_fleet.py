"""gunicorn's workers act as one, in the SQLite file of their master, with nothing configured."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import pytest

from scalezero_wsgi.coordination.sqlite import SQLiteCoordination
from tests.engines.engine import as_root
from tests.servers.harness import ROOT, Server, children, free_port, gunicorn, serving
from tests.servers.matrix_client import ask, hold
from tests.support.waiting import until

SITE = "tests.servers.fleet_site:make()"
NOBODY = 65534
ALONE = "the workers do not meet, each is on its own"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


class Fleet:
    """What the workers of the site leave on the disk."""

    def __init__(self, base: Path, uid: int | None = None) -> None:
        self.log = base / "log"
        self.files = base / "fleet"
        self.temporary = base / "tmp"
        for directory in (self.files, self.temporary):
            directory.mkdir()
        self.stores = self.temporary / f"scalezero-{os.geteuid() if uid is None else uid}"
        self.env = {"FLEET": str(self.files), "TMPDIR": str(self.temporary)}

    def calls(self, kind: str) -> Counter[str]:
        """How often each function was asked for, or set."""
        path = self.files / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(name for call, name, *_ in map(str.split, lines) if call == kind)

    def stored(self) -> list[Path]:
        return sorted(self.stores.glob("gunicorn-*.db"))

    def pids(self) -> set[int]:
        """Of those who have a row, in any of the stores."""
        rows = [row for path in self.stored() for row in SQLiteCoordination(path).workers()]
        return {int(row.worker.split(":")[1]) for row in rows}


def all_workers(server: Server, count: int, look: Callable[[], tuple[int, object]]) -> list[object]:
    """What each of the workers says."""
    said: dict[int, object] = {}

    def asked() -> bool:
        pid, answer = look()
        said[pid] = answer
        return len(said) == count

    until(asked)
    assert set(said) == set(server.workers())
    return list(said.values())


def stores(server: Server, count: int) -> list[object]:
    return all_workers(server, count, lambda: tuple(ask(server.address, "/stores").json))


def wake(server: Server, path: str, count: int = 8) -> set[bytes]:
    """Wake a function by several requests at once; who answered."""
    held = hold(count, lambda: ask(server.address, path))
    assert held.statuses() == [200] * count, server.log
    return {answer.body for answer in held.outcomes}  # type: ignore[union-attr]


def wake_by_both(server: Server, fleet: Fleet, route: str = "/function/") -> Counter[str]:
    """Wake functions until two workers have had a part in one wake; how often each was set."""
    for number in range(20):
        name = f"{route.strip('/')}-{number}"
        if len(wake(server, f"{route}{name}")) == 2:
            sets = fleet.calls("set")
            return Counter({each: count for each, count in sets.items() if each.startswith(route.strip("/"))})
    raise AssertionError("one worker served all")


# Where they meet


@pytest.mark.soak
def test_a_worker_of_its_own_has_no_file(fleet: Fleet) -> None:
    with gunicorn(SITE, fleet.log, "-w", "1", "--threads", "8", env=fleet.env) as server:
        assert stores(server, 1) == [[None, None]]
        wake(server, "/function/cold")
        assert fleet.calls("set") == {"cold": 1}
    assert not fleet.stores.exists()


@pytest.mark.parametrize(
    "options", [pytest.param([], id="", marks=pytest.mark.soak), pytest.param(["--preload"], id="preload")]
)
def test_two_workers_meet_in_a_file_of_each_middleware(options: list[str], fleet: Fleet) -> None:
    """One that is private, and the same in both workers."""
    options = ["-w", "2", "--threads", "8", *options]
    with gunicorn(SITE, fleet.log, *options, env=fleet.env) as server:
        [one, other] = stores(server, 2)
        assert one == other
        assert sorted(one) == sorted(set(one))  # type: ignore[call-overload]
        for route in ("/function/", "/second/"):
            assert set(wake_by_both(server, fleet, route).values()) == {1}
        assert sorted(one) == [str(path) for path in fleet.stored()]  # type: ignore[call-overload]
        assert stat.S_IMODE(fleet.stores.stat().st_mode) == 0o700
        for path in fleet.stores.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert ALONE not in server.log


@pytest.mark.soak
def test_memory_turns_it_off(fleet: Fleet) -> None:
    env = {**fleet.env, "SCALEZERO_COORDINATION": "memory://"}
    with gunicorn(SITE, fleet.log, "-w", "2", "--threads", "8", env=env) as server:
        assert stores(server, 2) == [[None, None]] * 2
        wake(server, "/function/cold")
    assert not fleet.stores.exists()


@pytest.mark.soak
def test_what_one_worker_started_counts_as_up_in_all_also_in_one_that_comes_later(fleet: Fleet) -> None:
    """With a provider that knows only what it was told itself, whichever worker leads, and when."""
    options = ["-w", "2", "--threads", "8"]
    with gunicorn("tests.servers.fleet_site:pushed()", fleet.log, *options, env=fleet.env) as server:
        wake(server, "/function/hello")
        before = server.workers()
        served: set[bytes] = set()

        def by_both() -> bool:
            time.sleep(0.1)  # longer than an entry may be used
            answer = ask(server.address, "/function/hello")
            assert answer.status == 200
            served.add(answer.body)
            return len(served) >= 2

        until(by_both)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: len(server.workers()) == 2 and not set(before) & set(server.workers()))
        served.clear()
        until(by_both)
        assert fleet.calls("set") == {"hello": 1}


@pytest.mark.parametrize(
    ("kind", "options", "warnings"),
    [
        ("link", [], 2),
        pytest.param("open to others", ["--preload"], 1, marks=pytest.mark.soak),
        pytest.param("another user's", ["--preload"], 1, marks=pytest.mark.soak),
    ],
)
def test_a_directory_that_is_not_ones_own_keeps_no_worker_from_starting(
    kind: str, options: list[str], warnings: int, fleet: Fleet
) -> None:
    """Each process that makes middlewares warns once, whatever their number."""
    if kind == "another user's":
        as_root()
    if kind == "link":
        elsewhere = fleet.temporary / "elsewhere"
        elsewhere.mkdir(0o700)
        fleet.stores.symlink_to(elsewhere)
    else:
        fleet.stores.mkdir(0o700)
        fleet.stores.chmod(0o777 if kind == "open to others" else 0o700)
    if kind == "another user's":
        os.chown(fleet.stores, NOBODY, -1)
    options = ["-w", "2", "--threads", "8", *options]
    with gunicorn(SITE, fleet.log, *options, env=fleet.env) as server:
        assert stores(server, 2) == [[None, None]] * 2
        wake(server, "/function/cold")
        assert server.log.count(ALONE) == warnings
        assert list(fleet.stores.iterdir()) == []


@pytest.mark.engine
@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_workers_of_another_user_meet_as_that_user(options: list[str]) -> None:
    """The master is root."""
    as_root()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o711)
        fleet = Fleet(base, uid=NOBODY)
        for directory in (fleet.files, fleet.temporary):
            directory.chmod(0o1777)
        options = ["-w", "2", "--threads", "8", "-u", str(NOBODY), "-g", str(NOBODY), *options]
        options += ["-c", "python:tests.servers.fleet_conf"]
        code = base / "code"  # the checkout may be nobody else's to read
        for package in ("scalezero_wsgi", "tests"):
            shutil.copytree(ROOT / package, code / package)
        with gunicorn(SITE, fleet.log, *options, env=fleet.env, root=code) as server:
            [one, other] = stores(server, 2)
            assert one == other
            assert set(wake_by_both(server, fleet).values()) == {1}
            assert ALONE not in server.log
            assert [str(path) for path in fleet.stored()] == one[:1]  # type: ignore[index]
            for path in (fleet.stores, *fleet.stores.iterdir()):
                assert path.stat().st_uid == NOBODY
            assert stat.S_IMODE(fleet.stores.stat().st_mode) == 0o700


@pytest.mark.soak
def test_gevent_workers_wake_once_and_go_on_meanwhile(fleet: Fleet) -> None:
    env = {**fleet.env, "START": "1.0"}
    with gunicorn(SITE, fleet.log, "-w", "2", worker="gevent", env=env) as server:
        stores(server, 2)
        for number in range(20):
            path = f"/function/cold-{number}"
            held = hold(60, lambda: ask(server.address, path))  # noqa: B023
            slowest = 0.0
            while not held.outcomes:
                slowest = max(slowest, ask(server.address, "/other").seconds)
                time.sleep(0.01)
            assert held.statuses() == [200] * 60, server.log
            assert slowest < 0.5
            if len({answer.body for answer in held.outcomes}) == 2:  # type: ignore[union-attr]
                break
        else:
            raise AssertionError("one worker served all")
        assert set(fleet.calls("set").values()) == {1}


# Workers and masters that come and go


class Load:
    """Requests to a warm function all the time, and to a new cold one in each ``every`` seconds; each on a
    connection of its own, as a graceful gunicorn may close one that is kept."""

    def __init__(self, server: Server, every: float = 0.2) -> None:
        self._server = server
        self._every = every
        self._over = threading.Event()
        self.outcomes: list[tuple[str, object, float]] = []
        self.threads = [threading.Thread(target=self._warm, daemon=True) for _ in range(2)]
        self.threads.append(threading.Thread(target=self._wakes, daemon=True))
        self.wakes = 0

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self.threads:
            thread.join(60)

    def _ask(self, path: str) -> None:
        begun = time.monotonic()
        outcome: object
        try:
            outcome = ask(self._server.address, path).status
        except (OSError, HTTPException) as error:
            outcome = error
        self.outcomes.append((path, outcome, time.monotonic() - begun))

    def _warm(self) -> None:
        while not self._over.wait(0.005):
            self._ask("/function/warm")

    def _wakes(self) -> None:
        while not self._over.wait(self._every):
            path = f"/function/cold-{self.wakes}"
            self.wakes += 1
            crowd = [threading.Thread(target=self._ask, args=(path,), daemon=True) for _ in range(4)]
            for thread in crowd:
                thread.start()
            self.threads.extend(crowd)

    def failed(self) -> list[tuple[str, object, float]]:
        return [outcome for outcome in self.outcomes if outcome[1] != 200]

    def slowest(self, kind: str) -> float:
        return max(taken for path, _, taken in self.outcomes if kind in path)


Resources = tuple[int, int]


def resources(pid: int) -> Resources:
    """How many files and threads a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(Path(f"/proc/{pid}/task").iterdir()))


def most_of(pids: list[int]) -> Resources:
    """The most that any of them has, in a moment: a master has fewer while it replaces a worker."""
    most = 0, 0
    for _ in range(10):
        for pid in pids:
            with contextlib.suppress(OSError):  # one that has gone meanwhile
                most = max(most[0], resources(pid)[0]), max(most[1], resources(pid)[1])
        time.sleep(0.01)
    return most


def must_have_woken_once(fleet: Fleet, load: Load, at_most: int = 1) -> None:
    sets = fleet.calls("set")
    assert load.failed() == []
    assert len(sets) == load.wakes > 1
    assert {name: count for name, count in sets.items() if count > at_most} == {}
    print(
        f"{len(load.outcomes)} requests, {load.wakes} wakes, {sum(sets.values())} scaled up, slowest:"
        f" warm {load.slowest('warm'):.2f} s, cold {load.slowest('cold'):.2f} s"
    )


@pytest.mark.soak
@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_recycled_workers_lose_nothing_and_leave_nothing(
    worker: str, options: list[str], fleet: Fleet
) -> None:
    """``SCALEZERO_SOAK`` of them, 24 by default: each of the four is replaced six times."""
    count = int(os.environ.get("SCALEZERO_SOAK", "24"))
    if worker == "gevent":
        count //= 3  # such a worker looks once a second whether it has served them
    options = ["-w", "4", "--max-requests", "5", *options]
    options += ["--threads", "4"] if worker == "gthread" else []
    with gunicorn(SITE, fleet.log, *options, worker=worker, env=fleet.env) as server:
        master = server.process.pid

        def recycled() -> int:
            return server.log.count("Booting worker")

        until(lambda: len(server.workers()) == 4)
        time.sleep(0.5)
        before, fresh = most_of([master]), most_of(server.workers())
        with Load(server, 0.6 if worker == "sync" else 0.2) as load:
            until(lambda: recycled() >= 12 + count, 3600, 0.1)
        must_have_woken_once(fleet, load)
        until(lambda: len(server.workers()) == 4 and most_of([master]) == before)
        time.sleep(0.5)
        used = most_of(server.workers())
        assert used[0] <= fresh[0] + 3, "it has the SQLite file open, its log and the log's index"
        assert used[1] <= fresh[1] + 5, "it has a heart, and gthread's pool of 4"
        until(lambda: fleet.pids() <= set(server.workers()), 1.0)  # a row lasts longer by itself
        assert len(fleet.stored()) == 1
        print(f"files and threads: master {before}, workers {fresh}, used {used}; {recycled()} workers")


@pytest.mark.engine
@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_a_reload_loses_nothing_and_leaves_nothing(worker: str, options: list[str], fleet: Fleet) -> None:
    options = ["-w", "4", *options]
    options += ["--threads", "8"] if worker == "gthread" else []
    with gunicorn(SITE, fleet.log, *options, worker=worker, env=fleet.env) as server:
        master = server.process.pid
        with Load(server, 0.6 if worker == "sync" else 0.2) as load:
            for round_ in range(3):
                until(lambda: fleet.pids() == set(server.workers()) and len(server.workers()) == 4)
                time.sleep(1.0)
                before, old = most_of([master]), set(server.workers())
                server.process.send_signal(signal.SIGHUP)
                until(lambda: not old & set(server.workers()))  # noqa: B023
                if round_ > 0:
                    assert most_of([master]) == before
                assert not old & fleet.pids()
        must_have_woken_once(fleet, load)
        assert len(fleet.stored()) == 1
    assert fleet.pids() == set()


@pytest.mark.engine
@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_an_upgrade_loses_nothing_and_leaves_nothing(
    worker: str, options: list[str], fleet: Fleet, tmp_path: Path
) -> None:
    """The old master and the new one are two fleets."""
    pid_file, port = tmp_path / "pid", free_port()
    # Not `python -m gunicorn`: that is no command which the old master could run again.
    command = [str(Path(sys.executable).with_name("gunicorn")), SITE, "-b", f"127.0.0.1:{port}", "-k", worker]
    command += ["-w", "4", "-p", str(pid_file), "--no-control-socket", "--graceful-timeout", "5", *options]
    command += ["--threads", "8"] if worker == "gthread" else []
    with serving(command, port, fleet.log, fleet.env) as server, contextlib.ExitStack() as stack:
        old = server.process.pid
        with Load(server, 0.6 if worker == "sync" else 0.2) as load:
            until(lambda: len(fleet.pids()) == 4)
            os.kill(old, signal.SIGUSR2)
            until((tmp_path / "pid.2").exists)
            new = int((tmp_path / "pid.2").read_text())
            stack.callback(stop, new)
            until(lambda: len(children(new)) == 4 and len(fleet.pids()) == 8)
            assert len(fleet.stored()) == 2
            time.sleep(1.0)
            os.kill(old, signal.SIGTERM)  # WINCH is heeded by a master in the background only
            server.process.wait(20)
            time.sleep(1.0)
        must_have_woken_once(fleet, load, at_most=2)
        assert fleet.pids() == set(children(new))
        # The next worker sweeps; with --preload, the next master.
        sweeper = children(new)[0]
        os.kill(sweeper, signal.SIGTERM)
        if "--preload" not in options:
            until(lambda: len(fleet.stored()) == 1)
        until(lambda: len(children(new)) == 4 and sweeper not in children(new))
    assert fleet.pids() == set()


def stop(master: int) -> None:
    """Stop one that is no child of ours."""
    os.kill(master, signal.SIGTERM)
    until(
        lambda: (
            not Path(f"/proc/{master}/cmdline").exists() or not Path(f"/proc/{master}/cmdline").read_bytes()
        ),
        40,
    )
