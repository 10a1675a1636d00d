"""Paused processes: real ones, halted by the kernel."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalezero_wsgi import cli
from scalezero_wsgi.model import FunctionNotFound, ReplicaStatus
from scalezero_wsgi.providers.base import PausingProvider
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider, Ready, Stop
from scalezero_wsgi.providers.process.group import ProcessId
from scalezero_wsgi.providers.process.state import Phase
from tests.support.waiting import until

pytestmark = pytest.mark.server

SERVE = [sys.executable, "-S", str(Path(__file__).with_name("serve.py")), "{port}"]
SERVES = ProcessFunction(SERVE)
PAUSED = ReplicaStatus(0, 0, max_replicas=1, paused=True)
LEAVES = """
    import os, signal, sys, time
    def leave(*_):
        open('left', 'w').write('in order')
        os._exit(0)
    signal.signal(signal.SIGTERM, leave)
    open('up', 'w').close()
    time.sleep(600)
    """

Make = Callable[..., ProcessProvider]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a provider for one function ``fn``; all that was started is gone after the test."""

    def provider(function: ProcessFunction = SERVES) -> ProcessProvider:
        return ProcessProvider({"fn": function}, state_dir=tmp_path / "state")

    yield provider
    provider().stop_all(0)


def up(provider: ProcessProvider) -> ReplicaStatus:
    """Scale it up, and wait until it is ready."""
    provider.set_replicas("fn", "", 1)
    until(lambda: provider.get_replicas("fn", "").available_replicas)
    return provider.get_replicas("fn", "")


def about(status: ReplicaStatus) -> dict[str, Any]:
    with urllib.request.urlopen(f"{status.endpoint}/", timeout=10) as response:
        content: dict[str, Any] = json.load(response)
        return content


def letter(pid: int) -> str:
    """The process's state, as the kernel shows it: T is halted by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


def is_gone(pid: int) -> bool:
    return letter(pid) in "XZ"


def paused(provider: ProcessProvider) -> int:
    """Start the function and pause it; return its process."""
    pid: int = about(up(provider))["pid"]
    provider.pause("fn", "")
    until(lambda: letter(pid) == "T")
    return pid


def test_a_paused_process_is_halted_and_goes_on_as_the_same(make: Make) -> None:
    provider = make()
    assert isinstance(provider, PausingProvider)
    with pytest.raises(FunctionNotFound):
        provider.pause("nope", "")
    first = up(provider)
    before = about(first)
    provider.pause("fn", "")
    until(lambda: letter(before["pid"]) == "T")
    assert provider.get_replicas("fn", "") == PAUSED
    begun = time.monotonic()
    assert up(provider) == first
    print(f"\nwent on after {1000 * (time.monotonic() - begun):.1f} ms")
    after = about(first)
    assert after["pid"] == before["pid"]
    assert after["answers"] > before["answers"]  # it has not lost what it had in memory


def test_its_children_are_halted_too(make: Make) -> None:
    provider = make(ProcessFunction([*SERVE, "child"]))
    child = about(up(provider))["child"]
    provider.pause("fn", "")
    until(lambda: letter(child) == "T")
    up(provider)
    until(lambda: letter(child) == "S")


def test_what_is_at_zero_is_not_paused(make: Make) -> None:
    provider = make()
    provider.pause("fn", "")
    assert provider.get_replicas("fn", "") == replace(PAUSED, paused=False)


def test_one_that_starts_yet_is_paused_and_is_ready_only_after_it_has_answered(make: Make) -> None:
    provider = make(ProcessFunction([*SERVE, "failing-first"], ready=Ready("/health")))
    provider.set_replicas("fn", "", 1)
    provider.pause("fn", "")
    assert provider.get_replicas("fn", "") == PAUSED
    assert about(up(provider))["answers"] >= 5  # three that failed, a good one, and this


def test_one_that_was_killed_is_replaced(make: Make) -> None:
    provider = make()
    pid = paused(provider)
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_gone(pid))
    assert not provider.get_replicas("fn", "").paused
    assert about(up(provider))["pid"] != pid


def test_another_worker_and_a_later_one_know_that_it_is_paused(make: Make) -> None:
    pid = paused(make())
    later = make()
    assert later.get_replicas("fn", "") == PAUSED
    later.pause("fn", "")
    assert about(up(later))["pid"] == pid
    assert letter(pid) != "T"


def test_a_worker_that_dies_while_it_pauses_leaves_none_that_counts_as_available(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = make()
    pid = about(up(provider))["pid"]

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(ProcessId, "signal", die)
        with pytest.raises(SystemExit):
            provider.pause("fn", "")
    assert provider.get_replicas("fn", "") == PAUSED
    assert about(up(provider))["pid"] == pid


@pytest.mark.parametrize("how", ["zero", "all", "changed"])
def test_a_paused_process_ends_in_order(how: str, make: Make, tmp_path: Path) -> None:
    """By its own signal, long before it would be killed."""
    code = [sys.executable, "-S", "-c", textwrap.dedent(LEAVES)]
    function = ProcessFunction(code, cwd=tmp_path, ready=Ready(timeout=600), stop=Stop(grace=60))
    provider = make(function)
    provider.set_replicas("fn", "", 1)
    until((tmp_path / "up").exists)
    provider.pause("fn", "")
    assert provider.get_replicas("fn", "") == PAUSED
    if how == "zero":
        provider.set_replicas("fn", "", 0)
    elif how == "all":
        provider.stop_all(60)
    else:  # a changed command counts from the next start, and to go on is one for whoever asks
        make(replace(function, env={"A": "b"})).set_replicas("fn", "", 1)
    assert (tmp_path / "left").read_text() == "in order"
    assert not provider.get_replicas("fn", "").paused


def test_a_deaf_one_is_killed_after_its_grace(make: Make) -> None:
    provider = make(ProcessFunction([*SERVE, "ignore-term"], stop=Stop(grace=0.2)))
    pid = paused(provider)
    provider.set_replicas("fn", "", 0)
    assert is_gone(pid)
    assert provider.get_replicas("fn", "") == replace(PAUSED, paused=False)


def test_the_command_lists_it_as_paused_and_stops_it(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = paused(make())
    cli.ps(tmp_path / "state")
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["fn", Phase.PAUSED.value, str(pid)]
    cli.stop([], tmp_path / "state")
    assert capsys.readouterr().out == f"stopped fn (process {pid})\n"
    assert is_gone(pid)
