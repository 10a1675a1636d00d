"""What runs on a host, and what is stopped of it: real processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi.model import Function, FunctionNotFound, ProviderError, SettingError
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider, Ready, Stop, files
from scalezero_wsgi.providers.process.files import path_for_file
from scalezero_wsgi.providers.process.running import Running, running, stop
from scalezero_wsgi.providers.process.state import Phase
from tests.support.waiting import until

pytestmark = pytest.mark.server

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
SLEEPS = ProcessFunction(SLEEP, ready=Ready(timeout=600))
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory for temporary files; nothing runs of it after the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    stop([*running(), *(running(own) if (own := tmp_path / "own").exists() else [])])


def start(provider: ProcessProvider) -> None:
    for name, namespace in provider.list_functions():
        provider.set_replicas(name, namespace, 1)


def names(state_dir: Path | None = None) -> list[str]:
    return [str(each.function) for each in running(state_dir)]


def test_nothing_runs_in_a_new_home(home: Path) -> None:
    assert running() == []
    assert list(home.iterdir()) == []


def test_what_runs_is_told_and_looking_changes_nothing(home: Path) -> None:
    provider = ProcessProvider({"fn": ProcessFunction(SLEEP, ready=Ready(timeout=0.01)), "at-zero": SLEEPS})
    provider.set_replicas("fn", "", 1)
    (found,) = running()
    assert found.function == Function("fn")
    assert found.phase is Phase.STARTING
    assert 0 <= found.age < 60
    assert found.log == found.state_dir / "fn.log"
    os.kill(found.pid, 0)
    before = {path: path.read_bytes() for path in found.state_dir.iterdir()}
    assert [each.pid for each in running()] == [found.pid]  # not stopped, though late
    assert {path: path.read_bytes() for path in found.state_dir.iterdir()} == before


def test_one_that_has_ended_does_not_run(home: Path) -> None:
    start(ProcessProvider({"fn": ProcessFunction(["true"])}))
    until(lambda: names() == [])


def test_a_given_directory_alone(home: Path) -> None:
    start(ProcessProvider({"a": SLEEPS}, state_dir=home / "own"))
    start(ProcessProvider({"b": SLEEPS}))
    assert names() == ["b"]
    assert names(home / "own") == ["a"]
    with pytest.raises(SettingError, match="is not there"):
        running(home / "none")


def test_a_directory_that_others_may_enter_is_passed_over(home: Path) -> None:
    start(ProcessProvider({"fn": SLEEPS}))
    (found,) = running()
    found.state_dir.chmod(0o755)
    assert running() == []
    with pytest.raises(SettingError, match="0700"):
        running(found.state_dir)
    found.state_dir.chmod(0o700)


def test_each_is_stopped_in_its_own_way(home: Path) -> None:
    """``stop`` has no configuration: the signal and the grace are those of the start."""
    settings = ProcessFunction(
        [sys.executable, "-S", "-c", DEAF], ready=Ready(timeout=600), stop=Stop("INT", 60)
    )
    start(ProcessProvider({"fn": settings}))
    (found,) = running()
    until(lambda: found.log.read_text(encoding="utf-8"))
    stop([found])  # TERM would take ten seconds, and a kill
    assert running() == []


def test_one_that_an_earlier_release_started_is_stopped_too(home: Path) -> None:
    start(ProcessProvider({"fn": SLEEPS}))
    (found,) = running()
    (found.state_dir / "fn.settings").unlink()
    stop([found])
    assert running() == []


def test_one_that_cannot_be_stopped_does_not_keep_the_others(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(ProcessProvider({"a": SLEEPS}))
    start(ProcessProvider({"b": SLEEPS}))
    stuck, free = running()
    monkeypatch.setattr(files, "LOCK_WAIT", 0.05)
    (stuck.state_dir / f"{stuck.function}.lock").unlink()
    (stuck.state_dir / f"{stuck.function}.lock").mkdir()
    with pytest.raises(ProviderError, match=f"function {stuck.function} is out of reach"):
        stop([stuck, free])
    assert names() == [str(stuck.function)]
    (stuck.state_dir / f"{stuck.function}.lock").rmdir()


# What changed in a file


def started(home: Path, **functions: ProcessFunction) -> dict[str, Running]:
    start(ProcessProvider(functions, state_dir=home / "own"))
    return {str(each.function): each for each in running(home / "own")}


OTHER = ProcessFunction([*SLEEP, "other"], ready=Ready(timeout=600))


@pytest.mark.parametrize(
    "other",
    [
        OTHER,
        ProcessFunction(SLEEP, ready=Ready(timeout=600), env={"A": "b"}),
        ProcessFunction(SLEEP, ready=Ready("/", timeout=600)),
        ProcessFunction(SLEEP, ready=Ready(timeout=600), cwd="/"),
        ProcessFunction(SLEEP, ready=Ready(timeout=600), stop=Stop("INT")),
    ],
    ids=["command", "env", "ready", "cwd", "stop"],
)
def test_what_changed_is_stopped_and_the_rest_is_not(home: Path, other: ProcessFunction) -> None:
    before = started(home, same=SLEEPS, changed=SLEEPS, removed=SLEEPS)
    after = ProcessProvider({"same": SLEEPS, "changed": other}, state_dir=home / "own")
    assert sorted(after.stop_changed(5)) == [Function("changed"), Function("removed")]
    assert [each.pid for each in running(home / "own")] == [before["same"].pid]
    after.set_replicas("changed", "", 1)
    assert after.stop_changed(5) == []
    assert names(home / "own") == ["changed", "same"]


def test_one_of_which_nothing_is_known_counts_as_changed(home: Path) -> None:
    started(home, fn=SLEEPS)
    (home / "own" / "fn.settings").unlink()
    assert ProcessProvider({"fn": SLEEPS}, state_dir=home / "own").stop_changed(5) == [Function("fn")]


def test_a_file_has_a_directory_of_its_own_whatever_is_in_it(home: Path) -> None:
    assert path_for_file("a.toml") == path_for_file(Path.cwd() / "a.toml")
    assert path_for_file("a.toml") != path_for_file("b.toml")
    ProcessProvider({"fn": SLEEPS}, state_dir=path_for_file("a.toml"))
    assert files.paths_of_this_user() == [path_for_file("a.toml")]


def labels(provider: ProcessProvider, name: str) -> dict[str, str]:
    return dict(provider.get_replicas(name, "").labels)


def test_other_functions_are_taken_over_and_what_runs_is_told_as_outdated(home: Path) -> None:
    started(home, same=SLEEPS, changed=SLEEPS, removed=SLEEPS)
    provider = ProcessProvider({"same": SLEEPS, "changed": SLEEPS, "removed": SLEEPS}, state_dir=home / "own")
    provider.tells_outdated = True
    later = ProcessFunction(SLEEP, ready=Ready(timeout=600), idle_after="5m")
    changes = provider.take_over({"same": later, "changed": OTHER, "new": SLEEPS})
    assert changes == ([Function("new")], [Function("same"), Function("changed")], [Function("removed")])
    assert provider.left_over() == [Function("removed")]
    assert labels(provider, "same") == {"scalezero.idle-after": "300.0"}
    assert labels(provider, "changed") == {"scalezero.outdated": "true"}
    with pytest.raises(FunctionNotFound):
        provider.get_replicas("removed", "")
    provider.set_replicas("changed", "", 0)
    assert labels(provider, "changed") == {}
    provider.set_replicas("changed", "", 1)
    assert labels(provider, "changed") == {}


def test_wrong_functions_are_not_taken_over(home: Path) -> None:
    provider = ProcessProvider({"fn": SLEEPS})
    with pytest.raises(SettingError, match="'a b' is not allowed"):
        provider.take_over({"fn": OTHER, "a b": SLEEPS})
    assert provider.functions == {Function("fn"): SLEEPS}


def test_a_process_is_asked_whether_it_is_ready_as_it_was_set_when_it_started(home: Path) -> None:
    serves = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    provider = ProcessProvider({"fn": ProcessFunction(serves, Ready("/"))})
    provider.set_replicas("fn", "", 1)
    provider.take_over({"fn": ProcessFunction(serves, Ready("/nowhere"))})
    until(lambda: provider.get_replicas("fn", "").available_replicas)
