"""Whose process has ended, as far as a name tells."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scalezero_wsgi.coordination.worker_name import has_ended, worker_name


@pytest.fixture
def process() -> subprocess.Popen[bytes]:
    """One that was killed and not waited for."""
    process = subprocess.Popen(["sleep", "60"])
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process


def name_of(pid: int) -> str:
    return worker_name().replace(f":{os.getpid()}:", f":{pid}:")


def test_one_that_lives_has_not_ended() -> None:
    assert not has_ended(worker_name())


@pytest.mark.parametrize("suffix", ["", "/use", "/apart", "/apart/use"])
def test_one_that_was_killed_has_ended_once_it_was_waited_for_or_is_known(
    suffix: str, process: subprocess.Popen[bytes]
) -> None:
    name = name_of(process.pid) + suffix
    assert not has_ended(name)
    assert not has_ended(name, killed=[process.pid + 1])
    assert has_ended(name, killed=[process.pid])
    process.wait()
    assert has_ended(name)


def test_of_one_elsewhere_nothing_is_known(process: subprocess.Popen[bytes]) -> None:
    """In a container the host may have the name of ours, and a process the id of one of ours."""
    process.wait()
    host, pid, rest = name_of(process.pid).split(":")
    elsewhere = [f"other:{pid}:{rest}", f"{host}:{pid}:00000000-abcdef01", f"{host}:x:{rest}"]
    for name in [*elsewhere, f"{host}:{'9' * 5000}:{rest}", "a:b:c", "a", ""]:
        assert not has_ended(name, killed=[process.pid])


def test_without_proc_those_have_ended_that_are_known_to_be_killed(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> Path:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "readlink", fails)
    process.wait()
    name = name_of(process.pid)
    assert not has_ended(name)
    assert has_ended(name, killed=[process.pid])


def test_another_users_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError(pid, number)

    monkeypatch.setattr(os, "kill", kill)
    assert not has_ended(name_of(1))
