"""What ``integrations.gunicorn`` makes of waiting under gunicorn, and what is warned of without it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.harness import ROOT, Server, free_port, gunicorn, serving
from tests.servers.matrix_client import Answer, ask, hold
from tests.support.waiting import until

# Timed, and more than a minute in all: for CI, with the engines.
pytestmark = pytest.mark.engine

SITE = "tests.servers.matrix_site:application"
HOOK = ["-c", "python:tests.servers.matrix_conf"]
WORKERS = {
    "sync": ([], 1),
    "gthread": (["--threads", "8"], 100),
    "gevent": (["--worker-connections", "16"], 12),
}
"""Each worker's options, and how many requests may wait in it."""

KILLS = "put `from scalezero_wsgi.integrations.gunicorn import *` into gunicorn.conf.py"


def waiting(server: Server) -> int:
    count: int = ask(server.address, "/counts").json["waiting"]
    return count


# A sync worker's heartbeat


def test_a_start_longer_than_the_time_out_kills_no_sync_worker(tmp_path: Path) -> None:
    with gunicorn(SITE, tmp_path / "log", *HOOK, "--timeout", "3", worker="sync") as server:
        until(lambda: bool(server.workers()))
        workers = server.workers()
        answer = ask(server.address, "/function/after-6000-slow")
        assert answer.status == 200, server.log
        assert answer.seconds >= 6
        assert server.workers() == workers
        assert "WORKER TIMEOUT" not in server.log
        assert KILLS not in server.log


@pytest.mark.parametrize("options", [[], ["--preload"], ["--workers", "2", "--preload"]])
def test_without_the_hook_a_sync_site_is_warned_at_start(options: list[str], tmp_path: Path) -> None:
    with gunicorn(SITE, tmp_path / "log", "--timeout", "3", *options, worker="sync") as server:
        until(lambda: KILLS in server.log)
        assert "may wait for 25 s here (max_wait)" in server.log
        assert "kills a sync worker that is silent for 3 s" in server.log
        assert ask(server.address, "/function/after-100-a").status == 200
        assert server.log.count(KILLS) == 1


@pytest.mark.parametrize(
    ("worker", "options", "env"),
    [
        ("sync", ["--timeout", "30"], {}),
        ("sync", ["--timeout", "0"], {}),
        ("sync", ["--timeout", "3"], {"SCALEZERO_MAX_WAIT": "2"}),
        ("gthread", ["--timeout", "3"], {}),
    ],
)
def test_who_is_not_in_danger_is_not_warned(
    worker: str, options: list[str], env: dict[str, str], tmp_path: Path
) -> None:
    with gunicorn(SITE, tmp_path / "log", *options, worker=worker, env=env) as server:
        assert ask(server.address, "/function/after-100-a").status == 200
        assert KILLS not in server.log


def test_an_application_made_before_gunicorn_is_warned_at_its_first_wait(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "tests.servers.waiting_own_server", str(port)]
    with serving(command, port, tmp_path / "log") as server:
        assert ask(server.address, "/function/after-100-a").status == 200
        assert ask(server.address, "/function/after-100-b").status == 200
        assert server.log.count(KILLS) == 1, server.log
        assert "silent for 20 s" in server.log


def test_a_hook_that_another_one_hides_is_warned_of_at_the_first_wait(tmp_path: Path) -> None:
    options = ["-c", "python:tests.servers.waiting_deaf_conf", "--timeout", "3"]
    with gunicorn(SITE, tmp_path / "log", *options, worker="sync") as server:
        assert ask(server.address, "/other").status == 200
        assert KILLS not in server.log
        assert ask(server.address, "/function/after-100-a").status == 200
        assert server.log.count(KILLS) == 1


def test_a_hook_of_ones_own_may_call_ours(tmp_path: Path) -> None:
    with gunicorn(
        SITE, tmp_path / "log", "-c", "python:tests.servers.waiting_conf", "--threads", "4"
    ) as server:
        until(lambda: "and the site's own" in server.log)
        held = hold(8, lambda: ask(server.address, "/function/after-800-a"))
        until(lambda: waiting(server) == 8)
        assert held.statuses() == [200] * 8


# Combinations that hurt


@pytest.mark.parametrize(
    ("worker", "options", "told"),
    [
        ("sync", [], "one request at a time"),
        ("gthread", ["--threads", "1"], "one request at a time"),
        ("gthread", ["--threads", "8", "--max-requests", "100"], "max_requests is 100"),
    ],
)
def test_a_combination_that_hurts_is_told_at_start(
    worker: str, options: list[str], told: str, tmp_path: Path
) -> None:
    with gunicorn(SITE, tmp_path / "log", *HOOK, *options, worker=worker) as server:
        until(lambda: told in server.log)
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: server.log.count("Booting worker") == 2)
        assert ask(server.address, "/other").status == 200
        assert server.log.count(told) == 1


@pytest.mark.parametrize(
    ("worker", "options", "env"),
    [
        ("sync", ["--workers", "2", "--preload"], {}),
        ("gthread", ["--threads", "8"], {}),
        ("gthread", ["--threads", "8", "--max-requests", "100"], {"SCALEZERO_MAX_WAIT": "3"}),
    ],
)
def test_what_does_not_hurt_is_not_told(
    worker: str, options: list[str], env: dict[str, str], tmp_path: Path
) -> None:
    with gunicorn(SITE, tmp_path / "log", *HOOK, *options, worker=worker, env=env) as server:
        assert ask(server.address, "/other").status == 200
        assert "one request at a time" not in server.log
        assert "max_requests" not in server.log


def test_serve_has_the_hook(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "scalezero_wsgi", "serve", "--bind", f"127.0.0.1:{port}"]
    command += ["--workers", "1", "--threads", "1"]
    with serving(command, port, tmp_path / "log", {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}) as server:
        until(lambda: "one request at a time" in server.log)


# A worker that is told to stop


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_that_is_told_to_stop_sends_those_who_wait_away(
    worker: str, unix: bool, tmp_path: Path
) -> None:
    options, room = WORKERS[worker]
    path = str(tmp_path / "socket") if unix else ""
    with gunicorn(SITE, tmp_path / "log", *HOOK, *options, worker=worker, unix=path) as server:
        until(lambda: ask(server.address, "/other").status == 200)
        first = server.workers()[0]
        held = hold(room, lambda: ask(server.address, "/function/never"))
        if room > 1:
            until(lambda: waiting(server) == room)
        else:
            time.sleep(0.5)
        stopped = time.monotonic()
        os.kill(first, signal.SIGTERM)
        answers = held.join()
        assert time.monotonic() - stopped < 1.5
        assert len(answers) == room
        for answer in answers:
            assert isinstance(answer, Answer), answer
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json["detail"] == "This server is being restarted."
        until(lambda: server.workers() not in ([], [first]))
        assert ask(server.address, "/function/after-100-next").status == 200


@pytest.mark.parametrize("worker", WORKERS)
def test_the_last_of_max_requests_may_wait(worker: str, tmp_path: Path) -> None:
    options, _ = WORKERS[worker]
    with gunicorn(SITE, tmp_path / "log", *HOOK, *options, "--max-requests", "1", worker=worker) as server:
        answer = ask(server.address, "/function/after-700-last")
        assert answer.status == 200, server.log
        assert answer.seconds >= 0.7


# Room for those who need not wait


@contextlib.contextmanager
def cold_requests(server: Server, count: int) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.servers.waiting_load", str(server.address[1])]
    load = subprocess.Popen([*command, "/function/never", str(count)], stdin=subprocess.PIPE, cwd=ROOT)
    try:
        until(lambda: waiting(server) == count)
        time.sleep(0.3)
        yield
    finally:
        load.kill()
        load.communicate()
    until(lambda: waiting(server) == 0)


def p99(server: Server, count: int = 1000) -> float:
    """Milliseconds."""
    taken = sorted(ask(server.address, "/function/after-0-warm").seconds for _ in range(count))
    return 1000 * taken[count * 99 // 100]


@pytest.mark.measured
def test_80_cold_requests_at_8_threads_do_not_slow_a_warm_function_down(tmp_path: Path) -> None:
    """The 99th percentile is at most 1.5 times as high. The middle of five rounds: other processes disturb
    one or two."""
    rounds = []
    with gunicorn(SITE, tmp_path / "log", *HOOK, "--threads", "8") as server:
        p99(server)
        for _ in range(5):
            without = p99(server)
            with cold_requests(server, 80):
                rounds.append((without, p99(server)))
    for without, among in rounds:
        print(f"p99 of a warm function: {without:.2f} ms alone, {among:.2f} ms among 80 cold requests")
    assert statistics.median(among / without for without, among in rounds) <= 1.5, rounds


# Very many


def test_gevent_loses_nobody_when_all_look_up_at_the_moment_of_landing() -> None:
    """Blocks the hub until the landing and each waiter's next look are due at once."""
    code = """if True:
        from gevent import monkey; monkey.patch_all()
        import threading, time
        from scalezero_wsgi.activation.single_flight import Flight

        def lead():
            time.sleep(0.05)
            flight.land()

        def follow():
            while not flight.wait(0.06):
                pass
            ended.append(1)

        ended = []
        flight = Flight(0.0, 60.0)
        threads = [threading.Thread(target=target, daemon=True) for target in (lead, follow, follow, follow)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        monkey.get_original("time", "sleep")(0.2)
        for thread in threads:
            thread.join(3)
        print(len(ended))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "3\n"


def resident(pid: int) -> int:
    """KiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], count), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.soak
def test_very_many_wait_in_one_gevent_worker(tmp_path: Path) -> None:
    """``SCALEZERO_SOAK`` of them, 1,000 by default; each needs a file descriptor in the worker."""
    count = int(os.environ.get("SCALEZERO_SOAK", "1000")) // 2 * 2
    options = [*HOOK, "--worker-connections", str(count * 4 // 3 + 400)]
    env = {"SCALEZERO_MAX_WAIT": "10m"}
    log = tmp_path / "log"
    with many_files(count + 1000), gunicorn(SITE, log, *options, worker="gevent", env=env) as server:
        ask(server.address, "/function/after-0-warm")
        [worker] = server.workers()
        before = resident(worker)
        command = [sys.executable, "-m", "tests.servers.waiting_crowd", str(server.address[1])]
        command += ["/function/at-signal", str(count // 2)]
        crowds = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
        until(lambda: waiting(server) == count, timeout=120, pause=0.2)
        each = (resident(worker) - before) / count
        slowest = max(ask(server.address, "/other").seconds for _ in range(20))

        ask(server.address, "/signal")
        begun = time.monotonic()
        answers: Counter[str] = Counter()
        for crowd in crowds:
            answers.update(json.loads(crowd.communicate(timeout=120)[0].splitlines()[-1]))
        taken = time.monotonic() - begun
    print(
        f"{count} waited: {each:.1f} KiB each, answered in {taken:.2f} s; others in {1000 * slowest:.1f} ms"
    )
    assert answers == {"HTTP/1.0 200 OK": count}
    assert each < 64
