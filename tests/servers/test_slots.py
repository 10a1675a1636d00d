"""A request that waits takes no slot: gunicorn's gthread with the hook, waitress and cheroot without one.

What is short also runs on older gunicorns, see ``.ci/run``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.servers.harness import Server, free_port, gunicorn, serving
from tests.servers.matrix_client import Answer, Held, ask, hold
from tests.support.waiting import until

SITE = "tests.servers.slots_site:application"
HOOK = ["-c", "python:tests.servers.matrix_conf"]
CLASS = ["-c", "python:tests.servers.slots_class_conf"]


def counts(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = ask(server.address, "/counts").json
    return found


def statuses(held: Held) -> Counter[object]:
    return Counter(answer.status if isinstance(answer, Answer) else repr(answer) for answer in held.join())


@pytest.mark.parametrize(("worker", "options"), [("gthread", HOOK), ("", CLASS)], ids=["hook", "class"])
def test_more_wait_than_there_are_threads_and_no_more_are_in_the_application(
    worker: str, options: list[str], tmp_path: Path
) -> None:
    with gunicorn(
        SITE, tmp_path / "log", *options, "--threads", "2", worker=worker, env={"WORK": "0.002"}
    ) as server:
        held = hold(40, lambda: ask(server.address, "/function/x"))
        until(lambda: counts(server)["waiting"] == 40)
        ask(server.address, "/signal")
        assert statuses(held) == {200: 40}
        until(lambda: counts(server)["threads"] < 10)
        assert counts(server)["most"] <= 2
        assert counts(server)["starts"] == {"x": 1}
        assert "Traceback" not in server.log


@pytest.mark.soak
def test_a_worker_that_is_told_to_stop_answers_all_who_wait_and_ends(tmp_path: Path) -> None:
    with gunicorn(SITE, tmp_path / "log", *HOOK, "--threads", "2") as server:
        held = hold(40, lambda: ask(server.address, "/function/x"))
        until(lambda: counts(server)["waiting"] == 40)
        [worker] = server.workers()
        os.kill(worker, signal.SIGTERM)
        assert statuses(held) == {503: 40}
        until(lambda: worker not in server.workers())


# What is noticed at start


BRINGS = "from scalezero_wsgi.integrations.gunicorn import *"


@pytest.mark.soak
def test_without_the_hook_the_log_says_what_it_would_bring(tmp_path: Path) -> None:
    with gunicorn(SITE, tmp_path / "log", "--threads", "4") as server:
        until(lambda: BRINGS in server.log)
        assert "takes one of its 4 threads" in server.log
        assert "1,000 may wait" in server.log
        held = hold(3, lambda: ask(server.address, "/function/after-500-a"))
        assert statuses(held) == {200: 3}
        assert server.log.count(BRINGS) == 1


@pytest.mark.soak
@pytest.mark.parametrize(
    ("worker", "options", "name"),
    [
        ("gthread", ["-c", "python:tests.servers.slots_old_conf"], "gunicorn.workers.gthread.ThreadWorker"),
        ("tests.servers.slots_own_pool.OwnPool", HOOK, "tests.servers.slots_own_pool.OwnPool"),
    ],
    ids=["no get_thread_pool", "a pool of its own"],
)
def test_a_worker_with_another_pool_is_told_and_served_as_without_the_hook(
    worker: str, options: list[str], name: str, tmp_path: Path
) -> None:
    with gunicorn(SITE, tmp_path / "log", *options, "--threads", "4", worker=worker) as server:
        until(lambda: f"the thread pool of {name} is not gunicorn's own" in server.log)
        held = hold(3, lambda: ask(server.address, "/function/after-800-a"))
        until(lambda: counts(server)["waiting"] == 3)
        assert ask(server.address, "/function/after-100-b").status == 503
        assert statuses(held) == {200: 3}


@pytest.mark.soak
def test_few_worker_connections_are_told_and_kept(tmp_path: Path) -> None:
    with gunicorn(SITE, tmp_path / "log", *HOOK, "--threads", "2", "--worker-connections", "20") as server:
        until(lambda: "worker_connections is 20" in server.log)
        assert "15 requests may wait in a worker; for 1,000 (max_waiting) it must be 1,334" in server.log
        held = hold(15, lambda: ask(server.address, "/function/x"))
        until(lambda: counts(server)["waiting"] == 15)
        assert ask(server.address, "/function/y").status == 503
        ask(server.address, "/signal")
        assert statuses(held) == {200: 15}


# Five hundred wait


@pytest.mark.soak
class TestFiveHundredWait:
    OPTIONS = (*HOOK, "--threads", "4", "--graceful-timeout", "8")

    def test_and_the_server_is_told_to_stop(self, tmp_path: Path) -> None:
        with gunicorn(SITE, tmp_path / "log", *self.OPTIONS) as server:
            held = hold(500, lambda: ask(server.address, "/function/x"))
            until(lambda: counts(server)["waiting"] == 500)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert statuses(held) == {503: 500}
            assert server.process.wait(20) == 0
            assert time.monotonic() - begun < 8, server.log
            assert "Traceback" not in server.log

    def test_and_it_is_reloaded(self, tmp_path: Path) -> None:
        with gunicorn(SITE, tmp_path / "log", *self.OPTIONS) as server:
            held = hold(500, lambda: ask(server.address, "/function/x"))
            until(lambda: counts(server)["waiting"] == 500)
            [before] = server.workers()
            server.process.send_signal(signal.SIGHUP)
            assert statuses(held) == {503: 500}
            until(lambda: before not in server.workers())
            assert ask(server.address, "/function/after-100-y").status == 200

    def test_and_max_requests_are_served(self, tmp_path: Path) -> None:
        """Those who wait get their answers; the worker takes no other."""
        with gunicorn(SITE, tmp_path / "log", *self.OPTIONS, "--max-requests", "500") as server:
            until(lambda: len(server.workers()) == 1)
            [before] = server.workers()
            held = hold(500, lambda: ask(server.address, "/function/after-2000-x"))
            assert statuses(held) == {200: 500}
            until(lambda: before not in server.workers())
            assert ask(server.address, "/function/after-100-y").status == 200

    def test_and_their_worker_is_killed(self, tmp_path: Path) -> None:
        with gunicorn(SITE, tmp_path / "log", *self.OPTIONS, "--workers", "2") as server:
            until(lambda: len(server.workers()) == 2)
            held = hold(500, lambda: ask(server.address, "/function/after-3000-x"))
            until(lambda: sum(waiting_in_each(server).values()) == 500)
            each = waiting_in_each(server)
            killed = server.workers()[0]
            os.kill(killed, signal.SIGKILL)
            answered = statuses(held)
            assert answered[200] == 500 - each[killed]
            assert sum(answered.values()) == 500
            until(lambda: len(server.workers()) == 2)
            assert ask(server.address, "/function/after-100-y").status == 200


def waiting_in_each(server: Server) -> dict[int, int]:
    each: dict[int, int] = {}

    def all_have_told() -> bool:
        found = counts(server)
        each[found["pid"]] = found["waiting"]
        return set(each) == set(server.workers())

    until(all_have_told)
    return each


# Other servers


@pytest.mark.soak
@pytest.mark.parametrize("server_name", ["waitress", "cheroot"])
def test_other_servers_threads_do_the_same(server_name: str, tmp_path: Path) -> None:
    port = free_port()
    python = [sys.executable, "-m", server_name]
    commands = {
        "waitress": [*python, f"--listen=127.0.0.1:{port}", "--threads=4", SITE],
        "cheroot": [
            *(*python, SITE, "--bind", f"127.0.0.1:{port}"),
            *("--threads", "4", "--request-queue-size", "128"),
        ],
    }
    with serving(commands[server_name], port, tmp_path / "log", {"WORK": "0.01"}) as server:
        usual = counts(server)["threads"]
        for name in ("x", "y"):
            held = hold(70, lambda name=name: ask(server.address, f"/function/after-1000-{name}"))  # type: ignore[misc]
            until(lambda: counts(server)["waiting"] == 70)
            assert ask(server.address, "/other").seconds < 0.5
            assert statuses(held) == {200: 70}
            until(lambda: counts(server)["threads"] <= usual)
        assert counts(server)["most"] <= 4
        gone = hold(20, lambda: ask(server.address, "/function/z", timeout=0.5))
        assert statuses(gone)[200] == 0
        until(lambda: counts(server)["waiting"] == 0)
        ask(server.address, "/signal")  # or the start's own thread goes on
        until(lambda: counts(server)["threads"] <= usual)
        assert ask(server.address, "/function/after-100-a").status == 200
        assert "Traceback" not in server.log
