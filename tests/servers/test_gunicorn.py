from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from scalezero_wsgi.providers import ProcessProvider
from tests.servers.harness import gunicorn
from tests.servers.site import FUNCTIONS
from tests.support.waiting import until

FLASK = "tests.servers.flask_site:app"
DJANGO = "tests.servers.django_site.wsgi:application"
WAITING = "tests.servers.waiting_site:application"
HOOK = ["-c", "python:tests.servers.matrix_conf"]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[dict[str, str]]:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    yield {"STATE_DIR": str(directory)}
    ProcessProvider({}, state_dir=directory).stop_all(5)


@pytest.mark.parametrize(
    ("worker", "app"),
    [
        ("sync", FLASK),
        ("gthread", DJANGO),
        pytest.param("sync", DJANGO, marks=pytest.mark.soak),
        pytest.param("gthread", FLASK, marks=pytest.mark.soak),
    ],
)
def test_a_function_at_zero_is_woken_by_its_first_request(
    worker: str, app: str, tmp_path: Path, state: dict[str, str]
) -> None:
    with gunicorn(app, tmp_path / "log", worker=worker, env=state) as server:
        first = server.get("/function/hello/a/b?x=1")
        assert first.status_code == 200, server.log
        assert first.text.startswith("GET /a/b?x=1 HTTP/1.1\n")
        assert first.headers["Server-Timing"].startswith("cold-start;dur=")
        counts = server.get("/counts").json()
        assert counts["starts"] == 1
        for _ in range(30):
            warm = server.get("/function/hello")
            assert warm.status_code == 200
            assert "Server-Timing" not in warm.headers
        assert server.get("/counts").json()["queries"] <= counts["queries"] + 1


@pytest.mark.soak
def test_a_function_stopped_behind_our_back_costs_a_wait_not_an_error(
    tmp_path: Path, state: dict[str, str]
) -> None:
    with gunicorn("tests.servers.proxy_site:application", tmp_path / "log", "-w", "2", env=state) as server:
        for _ in range(3):
            assert server.get("/function/hello").status_code == 200
            ProcessProvider(FUNCTIONS, state_dir=state["STATE_DIR"]).set_replicas("hello", "", 0)
            answers = together(30, lambda: server.get("/function/hello").status_code)
            assert answers == [200] * 30, server.log


def together(count: int, call: object) -> list[object]:
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(call())  # type: ignore[operator]
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


@pytest.mark.soak
def test_300_at_once_start_one_process(tmp_path: Path, state: dict[str, str]) -> None:
    # Three quarters of the threads may wait.
    with gunicorn(FLASK, tmp_path / "log", *HOOK, "--threads", "420", env=state) as server:
        assert together(300, lambda: server.get("/function/hello").status_code) == [200] * 300, server.log
        assert server.get("/counts").json()["starts"] == 1


@pytest.mark.soak
def test_preload_with_several_workers(tmp_path: Path) -> None:
    options = ["--preload", "-w", "3", "--threads", "4"]
    with gunicorn(WAITING, tmp_path / "log", *options, env={"DELAY": "0.3"}) as server:
        answers = together(12, lambda: server.get("/function/hello"))
        assert [answer.status_code for answer in answers if isinstance(answer, requests.Response)] == [
            200
        ] * 12
        used = {answer.text.split()[0] for answer in answers if isinstance(answer, requests.Response)}
        assert used <= {str(pid) for pid in server.workers()}


@pytest.mark.soak
@pytest.mark.parametrize("options", [[], ["--preload"]])
def test_200_requests_wait_in_one_gevent_worker_while_others_are_answered(
    options: list[str], tmp_path: Path
) -> None:
    with gunicorn(
        WAITING, tmp_path / "log", *HOOK, *options, worker="gevent", env={"DELAY": "1.5"}
    ) as server:
        outcomes: list[object] = []
        waiting = threading.Thread(
            target=lambda: outcomes.extend(together(200, lambda: server.get("/function/hello").status_code))
        )
        waiting.start()
        until(lambda: server.get("/starts").text == "1")
        time.sleep(0.3)
        begun = time.monotonic()
        assert server.get("/other").status_code == 200
        assert time.monotonic() - begun < 0.5
        assert outcomes == []
        waiting.join(60)
        assert outcomes == [200] * 200, server.log
        assert server.get("/starts").text == "1"


@pytest.mark.soak
def test_the_time_out_of_a_sync_worker_is_not_swallowed(tmp_path: Path) -> None:
    with gunicorn(WAITING, tmp_path / "log", "--timeout", "1", worker="sync", env={"DELAY": "4"}) as server:
        worker = server.get("/other").text.split()[0]
        assert server.get("/function/hello").status_code == 500
        assert server.get("/other").text.split()[0] != worker
        assert "SystemExit" in server.log


@pytest.mark.soak
def test_a_client_that_goes_leaves_the_flight_to_the_others(tmp_path: Path) -> None:
    with gunicorn(WAITING, tmp_path / "log", "--threads", "8", env={"DELAY": "0.5"}) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /function/hello HTTP/1.1\r\nHost: x\r\n\r\n")
            until(lambda: server.get("/starts").text == "1")
        assert server.get("/function/hello").status_code == 200
        assert server.get("/starts").text == "1"


@pytest.mark.soak
def test_a_worker_that_is_told_to_stop_answers_those_who_wait(tmp_path: Path) -> None:
    with gunicorn(WAITING, tmp_path / "log", "--threads", "8", env={"DELAY": "1"}) as server:
        outcomes: list[object] = []
        waiting = threading.Thread(
            target=lambda: outcomes.extend(together(4, lambda: server.get("/function/hello").status_code))
        )
        waiting.start()
        until(lambda: server.get("/starts").text == "1")
        time.sleep(0.3)
        os.kill(server.workers()[0], signal.SIGTERM)
        waiting.join(30)
        assert outcomes == [200] * 4, server.log
