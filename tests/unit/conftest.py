from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from scalezero_wsgi.coordination.heartbeat import Worker
from scalezero_wsgi.servers import watch
from scalezero_wsgi.servers.server import Server, this_server
from tests.support.connection import Connection

USUAL = watch.CHECK_EVERY


@pytest.fixture
def server() -> Iterator[Server]:
    """What this process's server has told; forgotten again after the test."""
    server = this_server()
    before = {name: getattr(server, name) for name in Server.__slots__}
    yield server
    for name, value in before.items():
        setattr(server, name, value)


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.close()


@pytest.fixture(autouse=True)
def no_heartbeat_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Else hundreds would slow down the later tests, and fill what is printed of a test that hangs."""
    started: list[Worker] = []
    start = Worker.start

    def noted(worker: Worker) -> None:
        started.append(worker)
        start(worker)

    with monkeypatch.context() as patched:
        patched.setattr(Worker, "start", noted)
        yield
    for worker in started:
        worker.stop()


@pytest.fixture(autouse=True)
def logs_of_this_test_alone(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A flight may outlive its test, and tells of its end in the middle of a later one."""
    earlier = {*threading.enumerate()} - {threading.current_thread()}

    def is_ours(_: logging.LogRecord) -> bool:
        return threading.current_thread() not in earlier

    caplog.handler.addFilter(is_ours)
    yield
    caplog.handler.removeFilter(is_ours)


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have those who wait looked after ten times as often: who puts the clock forward waits for that."""
    monkeypatch.setattr(watch, "CHECK_EVERY", USUAL / 10)


@pytest.fixture
def usual_checks(frequent_checks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have those who wait looked after as often as ever, where just that is measured."""
    monkeypatch.setattr(watch, "CHECK_EVERY", USUAL)
