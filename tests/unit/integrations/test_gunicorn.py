"""What the hook makes of a real gthread worker, before it serves."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers import gthread

from scalezero_wsgi.integrations.gunicorn import post_worker_init
from scalezero_wsgi.servers import server as server_module
from scalezero_wsgi.servers.server import Server
from scalezero_wsgi.servers.thread_pool import ThreadPool

Make = Callable[..., Any]


@pytest.fixture
def make(server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Make]:
    server.told = False
    monkeypatch.setattr(server_module, "_most_waiting", 0)
    monkeypatch.setattr(server_module, "_when_serving", [])  # else idlers of other tests start, and log
    monkeypatch.setattr("scalezero_wsgi.integrations.gunicorn.open_files", lambda: 20_000)
    monkeypatch.setattr(server_module, "open_files", lambda: 20_000)
    workers = []

    def make(kind: type[gthread.ThreadWorker] = gthread.ThreadWorker, **settings: Any) -> Any:
        config = Config()
        for name, value in {"threads": 4, **settings}.items():
            config.set(name, value)
        worker = kind(
            1, os.getpid(), [], BaseApplication.__new__(BaseApplication), 30, config, Logger(config)
        )
        worker.tpool = worker.get_thread_pool()
        workers.append(worker)
        with caplog.at_level(logging.WARNING, "scalezero_wsgi"):
            post_worker_init(worker)
        return worker

    yield make
    for worker in workers:
        worker.tpool.shutdown()
        worker.tmp.close()


def test_a_gthread_worker_gets_our_pool(make: Make, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    worker = make()
    assert isinstance(worker.tpool, ThreadPool)
    assert (worker.tpool.slots, worker.tpool.room) == (4, 1000)
    assert worker.worker_connections == 2000
    assert server.capacity == 4
    assert not caplog.records
    pool = worker.tpool
    post_worker_init(worker)  # the hook, and the worker class
    assert worker.tpool is pool


def test_few_connections_are_kept_and_named(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    worker = make(worker_connections=400)
    assert (worker.worker_connections, worker.tpool.room) == (400, 300)
    [record] = caplog.records
    assert "worker_connections is 400" in record.message
    assert "300 requests may wait in a worker; for 1,000 (max_waiting) it must be 1,334" in record.message


def test_few_connections_are_enough_for_a_smaller_max_waiting(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_most_waiting", 300)
    make(worker_connections=400)
    assert not caplog.records


def test_few_files_are_named(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalezero_wsgi.integrations.gunicorn.open_files", lambda: 1024)
    monkeypatch.setattr(server_module, "open_files", lambda: 1024)
    assert make().tpool.room == 768
    assert "the limit of open files (ulimit -n) is 1,024" in caplog.text


def test_a_pool_of_the_sites_own_stays(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    class OwnPool(gthread.ThreadWorker):
        def get_thread_pool(self) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(self.cfg.threads)

    worker = make(OwnPool)
    assert isinstance(worker.tpool, ThreadPoolExecutor)
    assert worker.worker_connections == 1000
    assert "OwnPool is not gunicorn's own get_thread_pool()" in caplog.text
    assert "takes one of its 4 threads" in caplog.text
