"""Stops by hand under load, of two servers with two workers each: no request is lost."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from scalezero_wsgi.providers import ProcessProvider
from tests.browser.dashboard_functions import FUNCTIONS, TOKEN
from tests.servers.harness import gunicorn
from tests.support.waiting import until

pytestmark = pytest.mark.engine  # it takes half a minute

STOPS = 5
PAUSE = 0.7
"""Seconds between two requests of a client: now and then none comes while the workers agree on a stop."""


def test_stops_by_hand_lose_no_request(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    env = {"STATE_DIR": str(state), "STORE": f"sqlite:///{state / 'store.db'}"}
    app, options = "tests.browser.dashboard_site:application", ("--workers", "2", "--threads", "8")
    over = threading.Event()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    told: Counter[str] = Counter()
    try:
        with contextlib.ExitStack() as stack:
            servers = [
                stack.enter_context(gunicorn(app, tmp_path / name, *options, env=env)) for name in ("a", "b")
            ]
            for server in servers:
                until(lambda server=server: server.get("/ready").status_code == 200)  # type: ignore[misc]

            def client(number: int) -> Counter[int]:
                statuses: Counter[int] = Counter()
                while not over.wait(PAUSE):
                    # A POST is not sent again, whatever became of it.
                    answer = requests.post(f"{servers[number % 2].url}/function/posts", data=b"x", timeout=60)
                    statuses[answer.status_code] += 1
                return statuses

            def stops() -> int:
                url = f"{servers[told.total() % 2].url}/real/stop"
                answer = requests.post(url, data={"function": "posts"}, headers=headers, timeout=60).json()
                text = answer["said"]
                told["stopped" if "was stopped" in text else text] += 1
                return told["stopped"]

            with ThreadPoolExecutor(3) as pool:
                clients = [pool.submit(client, number) for number in range(3)]
                try:
                    until(lambda: stops() >= STOPS, timeout=120)
                finally:
                    over.set()
            statuses = sum((each.result() for each in clients), Counter[int]())
    finally:
        ProcessProvider(FUNCTIONS, state_dir=state).stop_all(5)
    print(dict(told), dict(statuses))
    assert set(statuses) == {200}
