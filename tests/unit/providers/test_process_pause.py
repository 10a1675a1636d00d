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
from scalezero_wsgi.model import Function, FunctionNotFound, ProviderError, ReplicaStatus, SettingError
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
    cli.stop(["fn"], tmp_path / "state")
    assert capsys.readouterr().out == f"stopped fn (process {pid})\n"
    assert is_gone(pid)


# By the function itself

SLEEPS = """
    import http.server, sys, time

    class Model(http.server.BaseHTTPRequestHandler):
        asleep, deaf = False, "deaf" in sys.argv

        def do_GET(self):
            self.send_response(500 if Model.asleep and self.path != "/health" else 200)
            self.end_headers()

        def do_POST(self):
            with open("asked", "a") as asked:
                print(self.path, file=asked)
            if self.path == "/late":
                time.sleep(1.0)
            if self.path == "/wake_up" and Model.deaf or self.path == "/none":
                return self.send_error(503)
            Model.asleep = self.path.startswith(("/sleep", "/late"))
            self.send_response(200)
            self.end_headers()

    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Model).serve_forever()
    """


def model(cwd: Path, *options: str, sleep: str = "/sleep?level=1") -> ProcessFunction:
    command = [sys.executable, "-S", "-c", textwrap.dedent(SLEEPS), "{port}", *options]
    return ProcessFunction(command, Ready("/health"), cwd=cwd, sleep=sleep, wake="/wake_up")


def pid_of(provider: ProcessProvider) -> int:
    return provider._states.read(Function("fn")).process.pid


def test_a_model_server_sleeps_and_wakes_up(make: Make, tmp_path: Path) -> None:
    provider = make(model(tmp_path))
    status = up(provider)
    pid = pid_of(provider)
    provider.pause("fn", "")
    assert provider.get_replicas("fn", "") == replace(PAUSED, labels=status.labels)
    assert letter(pid) in "SR"  # it was not halted, or nobody could ask it to wake up
    assert (tmp_path / "asked").read_text().split() == ["/sleep?level=1"]
    assert up(make(model(tmp_path))) == status  # by another worker
    assert pid_of(provider) == pid
    assert (tmp_path / "asked").read_text().split() == ["/sleep?level=1", "/wake_up"]
    with urllib.request.urlopen(f"{status.endpoint}/", timeout=10) as response:
        assert response.status == 200


def test_one_that_does_not_go_to_sleep_stays_up(make: Make, tmp_path: Path) -> None:
    provider = make(model(tmp_path, sleep="/none"))
    up(provider)
    pid = pid_of(provider)
    with pytest.raises(ProviderError, match="POST /none was answered with 503"):
        provider.pause("fn", "")
    until(lambda: provider.get_replicas("fn", "").available_replicas)
    assert pid_of(provider) == pid


def test_one_that_goes_to_sleep_too_late_is_woken(make: Make, tmp_path: Path) -> None:
    provider = make(replace(model(tmp_path, sleep="/late"), ready=Ready("/health", timeout=0.5)))
    up(provider)
    with pytest.raises(ProviderError, match="POST /late was not answered"):
        provider.pause("fn", "")
    until(lambda: (tmp_path / "asked").read_text().split() == ["/late", "/wake_up"])


def test_one_that_does_not_wake_up_is_started_anew(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = make(model(tmp_path, "deaf"))
    up(provider)
    pid = pid_of(provider)
    provider.pause("fn", "")
    up(provider)
    assert pid_of(provider) != pid
    until(lambda: is_gone(pid))
    assert "does not wake up and is started anew: POST /wake_up was answered with 503" in caplog.text


def test_one_that_sleeps_can_be_stopped(make: Make, tmp_path: Path) -> None:
    provider = make(model(tmp_path))
    up(provider)
    pid = pid_of(provider)
    provider.pause("fn", "")
    provider.set_replicas("fn", "", 0)
    assert is_gone(pid)
    assert (tmp_path / "asked").read_text().split() == ["/sleep?level=1"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sleep": "/sleep"}, "sleep and wake belong together"),
        ({"wake": "/wake_up"}, "sleep and wake belong together"),
        ({"sleep": "sleep", "wake": "/wake_up"}, "sleep = 'sleep' is not allowed; it must be a path such as"),
        ({"sleep": "/sleep", "wake": "/a b"}, "wake = '/a b' is not allowed; it must be a path such as"),
    ],
)
def test_wrong_paths(values: dict[str, str], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ProcessFunction(["true"], **values)  # type: ignore[arg-type]
