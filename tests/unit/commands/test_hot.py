"""What a worker does with a changed file. How that goes under load is in ``tests/servers/test_hot.py``."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from scalezero_wsgi import Function, ScaleZeroMiddleware
from scalezero_wsgi.commands.hot import HotFile
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.providers.process import ProcessProvider
from scalezero_wsgi.providers.process.files import path_for_file
from tests.support.wsgi import App

ONE, TWO = "[functions.one]\ncommand = ['true']\n", "[functions.two]\ncommand = ['true']\n"


class Worker:
    """One of those that share a file."""

    def __init__(self, file: Path, state_dir: Path) -> None:
        self.provider = ProcessProvider.from_toml(file, state_dir=state_dir)
        self.hot = HotFile(str(file), self.provider, MemoryCoordination())
        self.app = ScaleZeroMiddleware(App(), self.provider)

    def looks(self, times: int = 1) -> list[str]:
        for _ in range(times):
            self.hot.look(self.app)
        return [function.name for function in self.provider.list_functions()]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = tmp_path / "functions.toml"
    path.write_text(ONE, "utf-8")
    return path


@pytest.fixture
def worker(file: Path) -> Worker:
    worker = Worker(file, path_for_file(file))
    worker.hot.begin(worker.app)
    return worker


def test_a_file_is_taken_over_once_two_looks_find_it_the_same(worker: Worker, file: Path) -> None:
    file.write_text(ONE + "[functions.tw", "utf-8")  # half-way
    assert worker.looks() == ["one"]
    file.write_text(ONE + TWO, "utf-8")
    assert worker.looks() == ["one"]
    assert worker.looks() == ["one", "two"]


def test_a_wrong_one_is_refused_and_said_once(
    worker: Worker, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        file.write_text("[functions.one]\ncomand = 'x'\n", "utf-8")
        assert worker.looks(4) == ["one"]
        file.unlink()
        assert worker.looks(4) == ["one"]
        file.write_text(TWO, "utf-8")
        assert worker.looks(2) == ["two"]
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        f"{file} is not taken over, and the functions stay as they were",
        f"{file} is not taken over, and the functions stay as they were",
        f"{file} is taken over; new",
    ]
    assert caplog.records[-1].getMessage().endswith("new: two; removed: one")


def test_a_worker_that_begins_with_a_wrong_file_has_what_was_taken_over_last(
    worker: Worker, file: Path
) -> None:
    file.write_text(TWO, "utf-8")
    worker.looks(2)
    file.write_text("[functions", "utf-8")
    worker.provider.take_over({"one": worker.provider.functions[Function("two")]})  # as its master had it
    worker.hot.begin(worker.app)
    assert [function.name for function in worker.provider.list_functions()] == ["two"]


def test_what_an_earlier_server_has_kept_means_nothing(worker: Worker, file: Path) -> None:
    kept = list(worker.provider._states._path.glob(".taken-over.toml"))
    assert len(kept) == 1
    HotFile(str(file), worker.provider, None)
    assert not kept[0].exists()
