"""Where the functions of a file run."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalezero_wsgi.operate import where_they_run
from scalezero_wsgi.providers import ProcessProvider
from scalezero_wsgi.providers.process.files import path_for_file
from scalezero_wsgi.providers.process.running import is_served, serving


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = tmp_path / "functions.toml"
    path.write_text("[functions.hello]\ncommand = ['true']\n", encoding="utf-8")
    return path


def test_they_run_where_a_server_runs_them_though_none_is_up(file: Path) -> None:
    served = path_for_file(file)
    ProcessProvider.from_toml(file, state_dir=served)
    app = ProcessProvider.from_toml(file)
    app.get_replicas("hello", "")  # makes its directory
    assert where_they_run(str(file)) != served
    with serving(served):
        assert is_served(served)
        assert where_they_run(str(file)) == served
    assert not is_served(served)
    assert where_they_run(str(file)) != served


def test_without_a_directory_nothing_is_served(file: Path) -> None:
    assert not is_served(path_for_file(file))
    assert where_they_run(str(file)) == path_for_file(file)
