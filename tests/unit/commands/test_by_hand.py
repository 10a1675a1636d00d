"""What an operator does by hand, on real processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi.cli import main
from scalezero_wsgi.coordination import make_coordination
from scalezero_wsgi.coordination.base import WorkerReport
from scalezero_wsgi.operate import provider_of, table
from scalezero_wsgi.providers import ProcessProvider
from tests.support.waiting import until

pytestmark = pytest.mark.server

FUNCTIONS = f"""
[functions.hello]
command = ["{sys.executable}", "-m", "http.server", "{{port}}", "--bind", "127.0.0.1"]
ready = {{ path = "/" }}
[functions.bad]
command = ["false"]
"""
HELLO = Function("hello")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file of functions; what of them runs is gone after the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = tmp_path / "functions.toml"
    path.write_text(FUNCTIONS)
    yield str(path)
    provider = provider_of(str(path))
    assert isinstance(provider, ProcessProvider)
    provider.stop_all(5)


def test_a_function_is_woken_listed_and_stopped(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wake", "--provider", file, "hello"]) == 0
    told = capsys.readouterr()
    assert re.fullmatch(r"hello is available after [0-9.]+ s\n", told.out)
    assert told.err.startswith("hello: starting, ")
    assert main(["status", "--provider", file]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME   STATE    AVAILABLE",
        "bad    at zero  0 of 0",
        "hello  ready    1 of 1",
    ]
    assert main(["stop", "--provider", file, "hello"]) == 0
    assert capsys.readouterr().out == "stopped hello\n"
    assert provider_of(file).get_replicas("hello", "").replicas == 0


def test_the_provider_may_stand_in_the_environment(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALEZERO_PROVIDER", file)
    assert main(["status", "--json"]) == 0
    assert [each["function"] for each in json.loads(capsys.readouterr().out)["functions"]] == ["bad", "hello"]


def test_the_store_tells_who_uses_a_function(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite://{tmp_path}/workers.db"
    store = make_coordination(url)
    store.report(WorkerReport("a", {HELLO: 2}, {HELLO: 1}, {HELLO: 30.0}), 60.0)
    store.report(WorkerReport("b", {HELLO: 1}, {}, {HELLO: 0.0}), 60.0)
    assert main(["status", "--provider", file, "--coordination", url]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "hello  at zero  0 of 0     3          1        0 s"
    assert main(["status", "--provider", file, "--coordination", url, "--json"]) == 0
    hello = json.loads(capsys.readouterr().out)["functions"][1]
    assert (hello["in_flight"], hello["waiting"]) == (3, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wake", "hello"], "provider: it is not set; say --provider"),
        (["wake", "--provider", "FILE", "helo"], "function helo is not known to the provider"),
        (["wake", "--provider", "FILE", "Bad!"], "'Bad!' is not a function's name"),
        (["wake", "--provider", "FILE", "bad"], "function bad failed to start: exited with status 1"),
        (["wake", "--provider", "FILE", "--timeout", "3x", "hello"], "--timeout: '3x' is not a duration"),
        (["wake", "--provider", "FILE", "--timeout", "1ms", "hello"], "hello is not available after 0.001 s"),
        (["stop", "--provider", "FILE", "hello", "helo"], "function helo is not known to the provider"),
        (["stop", "--provider", "FILE"], "with --provider it must be said which functions"),
        (["stop", "--provider", "FILE", "--all"], "--all: it is of local processes"),
        (["stop", "--provider", "FILE", "--state-dir", "x", "hello"], "not allowed with --provider"),
        (["status", "--provider", "dockr"], "there is none called 'dockr'"),
        (["status", "dockr"], "there is none called 'dockr'"),
        (["status", "a.toml", "--provider", "b.toml"], "'a.toml' and --provider 'b.toml': say one of the"),
        (["check", "a.toml", "--provider", "b.toml"], "'a.toml' and --provider 'b.toml': say one of the"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    file: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([file if word == "FILE" else word for word in words]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scalezero-wsgi: ")]
    assert len(told) == 1
    assert said in told[0]


def test_what_an_application_runs_of_the_same_file_is_found(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    provider = ProcessProvider.from_toml(file)
    request.addfinalizer(lambda: provider.stop_all(5))
    provider.set_replicas("hello", "", 1)
    until(lambda: provider.get_replicas("hello", "").available_replicas)
    (tmp_path / "link.toml").symlink_to(file)
    for path in (file, str(tmp_path / "link.toml")):
        assert main(["status", "--provider", path]) == 0
        assert "hello  ready    1 of 1" in capsys.readouterr().out
    assert main(["stop", "--provider", file, "hello"]) == 0
    assert provider.get_replicas("hello", "").replicas == 0


def test_ps_tells_the_file(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wake", "--provider", file, "hello"]) == 0
    capsys.readouterr()
    assert main(["ps"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "STATE", "PID", "PORT", "AGE", "FROM", "LOG"]
    assert line.split()[5] == file


def test_watch_goes_on_until_a_signal(file: str, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-m", "scalezero_wsgi", "status", "--provider", file, "--watch"]
        watch = subprocess.Popen(command, stdout=out, stderr=out)
    until(lambda: (tmp_path / "out").read_text().count("NAME") == 2)
    watch.send_signal(signal.SIGINT)
    assert watch.wait(30) == 130
    assert "Traceback" not in (tmp_path / "out").read_text()


@pytest.mark.soak
def test_who_reads_may_have_enough(file: str) -> None:
    command = [sys.executable, "-m", "scalezero_wsgi", "status", "--provider", file, "--watch"]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watch.stdout is not None
    assert watch.stderr is not None
    with watch.stdout, watch.stderr:
        assert watch.stdout.readline().startswith(b"NAME")
        watch.stdout.close()
        assert watch.wait(30) == 141
        assert watch.stderr.read() == b""


def test_no_function_is_said() -> None:
    assert table([]) == "there is no function"
