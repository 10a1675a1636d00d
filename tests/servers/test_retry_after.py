"""Clients that heed ``Retry-After`` and try three times more, as urllib3's do, outlast a start of which
nothing is known."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3

from tests.servers.harness import gunicorn
from tests.servers.matrix_client import ask

SITE = "tests.servers.matrix_site:application"
CLIENTS = 24


def get(url: str) -> tuple[int, float]:
    """The status in the end, and after how many seconds."""
    tries = urllib3.Retry(total=3, status_forcelist=[502, 503, 504], respect_retry_after_header=True)
    begun = time.monotonic()
    with urllib3.PoolManager(retries=tries) as pool:
        try:
            status = pool.request("GET", url, timeout=30.0).status
        except urllib3.exceptions.MaxRetryError:
            status = 0
    return status, time.monotonic() - begun


@pytest.mark.engine
@pytest.mark.parametrize(
    ("start", "workers"),
    [(2, 1), (10, 1), (10, 2)],
)
def test_three_tries_more_outlast_a_start_of_which_nothing_is_known(
    start: int, workers: int, tmp_path: Path
) -> None:
    """Few may wait, and not for long: most are refused at once."""
    env = {"SCALEZERO_MAX_WAIT": str(start / 5), "SCALEZERO_MAX_WAITING": "4", "TMPDIR": str(tmp_path)}
    options = ["--workers", str(workers), "--threads", "32"]
    with gunicorn(SITE, tmp_path / "log", *options, env=env) as server:
        url = f"{server.url}/function/after-{start * 1000}-a"
        with ThreadPoolExecutor(CLIENTS) as pool:
            outcomes = list(pool.map(get, [url] * CLIENTS))
        assert Counter(status for status, _ in outcomes) == {200: CLIENTS}, server.log
        assert max(taken for _, taken in outcomes) < 2 * start + 10
        if workers == 1:
            assert sum(ask(server.address, "/counts").json["starts"].values()) == 1
        print(f"the last had its answer after {max(taken for _, taken in outcomes):.1f} s")
