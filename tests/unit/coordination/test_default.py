"""What is taken when nothing is configured: gunicorn loads the application here as its master does with
``--preload``. Its workers are in ``tests/servers/test_fleet.py``."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any, cast

import gunicorn.arbiter  # noqa: F401  as in every process of gunicorn's
import pytest
from gunicorn.app.base import BaseApplication

from scalezero_wsgi.coordination import Coordination, default, make_coordination
from scalezero_wsgi.coordination.default import default_coordination, own_coordination
from scalezero_wsgi.coordination.sqlite import SQLiteCoordination


class Application(BaseApplication):
    def __init__(self, workers: int, make: Any = default_coordination) -> None:
        self._workers = workers
        self._make = make
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("workers", self._workers)

    def load(self) -> Any:
        return self._make()


def made(workers: int, make: Any = default_coordination) -> Coordination | None:
    store: Any = Application(workers, make).wsgi()
    return cast("Coordination | None", store)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    default._warn.cache_clear()
    return tmp_path / f"scalezero-{os.geteuid()}"


def test_two_workers_meet_in_a_file_of_their_master(directory: Path) -> None:
    one, other = made(2), made(2)
    assert isinstance(one, SQLiteCoordination)
    assert isinstance(other, SQLiteCoordination)
    assert one._path.parent == other._path.parent == directory
    assert one._path != other._path  # of two middlewares
    assert f"-{os.getpid()}-" in one._path.name
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_single_worker_and_a_middleware_made_elsewhere_meet_nobody(directory: Path) -> None:
    assert made(1) is None
    assert default_coordination() is None
    assert not directory.exists()


def test_a_directory_that_is_somebody_elses_is_told_once(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.symlink_to(tmp_path)
    assert made(2) is made(2) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "the workers do not meet, each is on its own:" in record.message
    assert "is a link" in record.message


def test_what_a_master_has_left_that_is_gone_is_removed(directory: Path) -> None:
    store = made(2)
    assert isinstance(store, SQLiteCoordination)
    namespace = store._path.name.split("-")[1]
    gone = f"gunicorn-{namespace}-{os.getpid()}-1-0.db"  # this process id, but long ago
    for name in (gone, f"{gone}-wal", f"gunicorn-{namespace}-4194305-1-0.db.bad", store._path.name):
        (directory / name).touch(0o600)
    made(2)
    assert [path.name for path in directory.iterdir()] == [store._path.name]


def test_a_url_makes_a_store_for_the_user_of_the_workers(directory: Path) -> None:
    url = f"sqlite://{directory}/private/x.db"
    store = made(1, lambda: make_coordination(url))
    assert isinstance(store, SQLiteCoordination)
    assert (directory / "private").stat().st_uid == os.geteuid()


def test_one_that_is_about_to_be_a_master_has_a_file_of_its_own(directory: Path) -> None:
    """Nothing tells that gunicorn is about to run: it does not, yet."""
    assert default_coordination(least_workers=1) is None
    store = own_coordination()
    assert isinstance(store, SQLiteCoordination)
    assert store._path.parent == directory
    assert f"-{os.getpid()}-" in store._path.name
