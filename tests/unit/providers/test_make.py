from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scalezero_wsgi import ScaleZeroMiddleware, SettingError, providers
from scalezero_wsgi.providers import ProcessFunction, ProcessProvider, make_provider
from tests.servers.harness import ROOT


def test_by_name_with_keywords(tmp_path: Path) -> None:
    made = make_provider("process", functions={"hello": ProcessFunction(["true"])}, state_dir=tmp_path / "s")
    assert isinstance(made, ProcessProvider)


def test_by_url(tmp_path: Path) -> None:
    file = tmp_path / "functions.toml"
    file.write_text("[functions.hello]\ncommand = ['true']\n", encoding="utf-8")
    made = make_provider(f"process://{file}?state_dir={tmp_path / 's'}")
    assert isinstance(made, ProcessProvider)
    assert made.list_functions() == [("hello", "")]


@pytest.mark.parametrize("which", ["dokcer", "dokcer://", "http://gateway:8080", ""])
def test_an_unknown_one_is_named_with_those_that_are_known(which: str) -> None:
    with pytest.raises(
        SettingError, match=r"there is none called .*docker, kubernetes, openfaas, process, swarm"
    ):
        make_provider(which)


@pytest.mark.parametrize("path", ["my functions.toml", "./functions", "/etc/functions.toml", "../x:y.toml"])
def test_a_path_is_told_how_to_become_a_url(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError) as caught:
        make_provider(path)
    found = re.fullmatch(r"provider: '(.*)' is a path, .* is '(process:///.*)'", str(caught.value))
    assert found
    assert found[1] == path
    if not path.startswith("/"):
        Path(path).write_text("[functions.hello]\ncommand = ['true']\n", encoding="utf-8")
        assert isinstance(make_provider(f"{found[2]}?state_dir={tmp_path / 's'}"), ProcessProvider)


def test_a_url_takes_no_keywords() -> None:
    with pytest.raises(SettingError, match="takes no keywords"):
        make_provider("process:///x.toml", state_dir="/x")


@pytest.mark.parametrize("url", ["process://", "process:///x.toml?stat_dir=/x"])
def test_a_wrong_url_of_the_process_provider(url: str) -> None:
    with pytest.raises(SettingError):
        make_provider(url)


def test_a_third_partys_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(
        "class Theirs:\n"
        "    def __init__(self, *, size=0): self.size = size\n"
        "    @classmethod\n"
        "    def from_url(cls, url): return cls(size=len(url))\n"
        "    def get_replicas(self, name, namespace): raise NotImplementedError\n"
        "    def set_replicas(self, name, namespace, replicas): raise NotImplementedError\n",
        encoding="utf-8",
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[scalezero_wsgi.providers]\ntheirs = theirs:Theirs\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_provider("theirs", size=3).size == 3  # type: ignore[attr-defined]
    assert make_provider("theirs+x://").size == 11  # type: ignore[attr-defined]
    door = ScaleZeroMiddleware(lambda environ, start_response: [], "theirs://")
    assert door.scaler is not None


def test_an_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = providers.Nothing


def test_the_core_imports_nothing_but_its_two_dependencies() -> None:
    code = (
        "import sys, scalezero_wsgi, scalezero_wsgi.providers;"
        "allowed = {'scalezero_wsgi', 'werkzeug', 'markupsafe'};"
        "found = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - allowed;"
        "sys.exit(', '.join(sorted(name for name in found if not name.startswith('_'))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r};" + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
