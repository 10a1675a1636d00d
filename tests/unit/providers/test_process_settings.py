"""What a ProcessProvider is made of, and its TOML file. No process is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scalezero_wsgi.model import Function, SettingError
from scalezero_wsgi.providers.process.provider import ProcessFunction, ProcessProvider, Ready, Stop


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


TOML = """
[functions.hello]
command = ["python", "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
ready = { path = "/", timeout = "30s" }
env = { GREETING = "hi" }
stop = { signal = "INT", grace = "2m" }

[functions."plain.dev"]
command = ["serve", "{port}"]
ready = { tcp = true }
cwd = "app"
"""


def test_from_toml(tmp_path: Path, state_dir: Path) -> None:
    file = tmp_path / "functions.toml"
    file.write_text(TOML)
    provider = ProcessProvider.from_toml(file, state_dir=state_dir)
    assert provider.list_functions() == [Function("hello"), Function("plain", "dev")]
    hello, plain = provider._functions.values()
    assert hello == ProcessFunction(
        ["python", "-m", "http.server", "{port}", "--bind", "127.0.0.1"],
        ready=Ready("/", 30.0),
        env={"GREETING": "hi"},
        stop=Stop("INT", 120.0),
    )
    assert plain == ProcessFunction(["serve", "{port}"], cwd=tmp_path / "app")
    assert plain.ready == Ready(path=None, timeout=30.0)
    assert plain.stop == Stop("TERM", 10.0)


@pytest.mark.parametrize(
    ("told", "label"), [("'10m'", "600.0"), ("90", "90.0"), ("'never'", "never"), (None, None)]
)
def test_how_long_it_may_be_idle_is_told_as_a_label(
    told: str | None, label: str | None, tmp_path: Path, state_dir: Path
) -> None:
    file = tmp_path / "functions.toml"
    file.write_text("[functions.a]\ncommand = ['x']\n" + (f"idle_after = {told}" if told else ""))
    status = ProcessProvider.from_toml(file, state_dir=state_dir).get_replicas("a", "")
    assert status.labels.get("scalezero.idle-after") == label


@pytest.mark.parametrize("told", ["Mon-Fri 08:00-18:00 Europe/Berlin", "never", None])
def test_its_hours_are_told_as_a_label(told: str | None, tmp_path: Path, state_dir: Path) -> None:
    file = tmp_path / "functions.toml"
    file.write_text("[functions.a]\ncommand = ['x']\n" + (f"keep_warm = '{told}'" if told else ""))
    status = ProcessProvider.from_toml(file, state_dir=state_dir).get_replicas("a", "")
    assert status.labels.get("scalezero.keep-warm") == told


def test_what_is_done_when_it_is_idle_is_told_as_a_label(tmp_path: Path, state_dir: Path) -> None:
    file = tmp_path / "functions.toml"
    text = "pause after 5m, stop after 1h"
    file.write_text(f"[functions.a]\ncommand = ['x']\nidle_action = '{text}'")
    status = ProcessProvider.from_toml(file, state_dir=state_dir).get_replicas("a", "")
    assert status.labels == {"scalezero.idle-action": text}


@pytest.mark.parametrize(("told", "label"), [("'4GiB'", "4294967296"), ("1000", "1000")])
def test_what_it_needs_and_of_which_budget_is_told_as_labels(
    told: str, label: str, tmp_path: Path, state_dir: Path
) -> None:
    file = tmp_path / "functions.toml"
    file.write_text(f"[functions.a]\ncommand = ['x']\nmemory = {told}\nbudget = 'gpu'")
    status = ProcessProvider.from_toml(file, state_dir=state_dir).get_replicas("a", "")
    assert status.labels == {"scalezero.memory": label, "scalezero.budget": "gpu"}


BAD = {
    "": ("functions = None", "one table"),
    "functions = 3": ("functions = 3", "one table"),
    "other = 1": ("unknown key 'other' (1)", "functions"),
    "[functions.a]": ("function 'a'", "command = None", "a list of strings"),
    "[functions]\na = 1": ("function 'a'", "= 1", "cwd, stop, idle_after, idle_action, keep_warm"),
    "[functions.a]\ncommand = 'x'": ("function 'a'", "command = 'x'", "a list of strings"),
    "[functions.a]\ncommand = []": ("function 'a'", "command = []", "begins with the program"),
    "[functions.a]\ncommand = ['']": ("function 'a'", "command = ['']", "begins with the program"),
    "[functions.a]\ncommand = [1]": ("function 'a'", "command = [1]", "a list of strings"),
    "[functions.a]\ncommand = ['x']\nenv = 'x'": ("function 'a'", "env = 'x'", "a table of strings"),
    "[functions.a]\ncommand = ['x']\nenv = { A = 1 }": ("function 'a'", "env = {'A': 1}", "strings"),
    "[functions.a]\ncommand = ['x']\nenv = { 'A=' = '1' }": ("function 'a'", "'A='", "without '='"),
    "[functions.a]\ncommand = ['x']\ncwd = 1": ("function 'a'", "cwd = 1", "the path of a directory"),
    "[functions.a]\ncommand = ['x']\nready = '/'": ("function 'a'", "ready = '/'", "path, tcp, timeout"),
    "[functions.a]\ncommand = ['x']\nready = { pth = '/' }": ("function 'a'", "'pth' ('/')", "path, tcp"),
    "[functions.a]\ncommand = ['x']\nready = { path = 'x' }": ("function 'a'", "ready.path = 'x'", "'/'"),
    "[functions.a]\ncommand = ['x']\nready = { path = 1 }": ("function 'a'", "ready.path = 1", "'/'"),
    "[functions.a]\ncommand = ['x']\nready = { path = '/', tcp = true }": ("ready.tcp = True", "left out"),
    "[functions.a]\ncommand = ['x']\nready = { tcp = false }": ("ready.tcp = False", "true"),
    "[functions.a]\ncommand = ['x']\nready = { timeout = '1 x' }": ("ready.timeout", "'1 x'", "'250ms'"),
    "[functions.a]\ncommand = ['x']\nready = { timeout = 0 }": ("ready.timeout = 0.0", "more than 0"),
    "[functions.a]\ncommand = ['x']\nstop = { signal = 'BOOM' }": ("stop.signal = 'BOOM'", "'TERM'"),
    "[functions.a]\ncommand = ['x']\nstop = { signal = 9 }": ("stop.signal = 9", "'TERM'"),
    "[functions.a]\ncommand = ['x']\nstop = { grace = -1 }": ("stop.grace", "-1", "0 or more"),
    "[functions.a]\ncommand = ['x']\nstop = { after = 1 }": ("'after' (1)", "signal, grace"),
    "[functions.a]\ncommand = ['x']\nidle_after = 0": ("idle_after = 0", "more than 0"),
    "[functions.a]\ncommand = ['x']\nidle_after = 'soon'": ("idle_after", "'soon'", "'10m30s'"),
    "[functions.a]\ncommand = ['x']\nkeep_warm = '8-18'": ("keep_warm: '8-18' is not allowed", "'Mon-Fri 08"),
    "[functions.a]\ncommand = ['x']\nkeep_warm = 8": ("keep_warm: 8 is not allowed", "'Mon-Fri 08"),
    "[functions.a]\ncommand = ['x']\nidle_action = 'rest'": ("idle_action: 'rest'", "'pause'"),
    "[functions.a]\ncommand = ['x']\nidle_action = 3": ("function 'a'", "idle_action: 3", "'pause'"),
    "[functions.a]\ncommand = ['x']\nmemory = 'much'": ("function 'a'", "memory: 'much'", "'512MiB'"),
    "[functions.a]\ncommand = ['x']\nmemory = 0": ("memory: 0 is not allowed", "1 or more"),
    "[functions.a]\ncommand = ['x']\nbudget = ' '": ("budget = ' '", "the name of a group"),
    "[functions.a]\ncommand = ['x']\nbudget = 1": ("budget = 1", "the name of a group"),
    "[functions.'../a']\ncommand = ['x']": ("functions = '../a'", "'name.namespace'"),
    "[functions.'a.']\ncommand = ['x']": ("functions = 'a.'", "'name.namespace'"),
    "[functions.'.a']\ncommand = ['x']": ("functions = '.a'", "'name.namespace'"),
    "[functions.'']\ncommand = ['x']": ("functions = ''", "'name.namespace'"),
    f"[functions.{'a' * 64}]\ncommand = ['x']": ("functions = 'aaa", "'name.namespace'"),
    "[functions": ("functions.toml cannot be read",),
}


@pytest.mark.parametrize("content", BAD)
def test_bad_toml(tmp_path: Path, state_dir: Path, content: str) -> None:
    file = tmp_path / "functions.toml"
    file.write_text(content)
    with pytest.raises(SettingError) as caught:
        ProcessProvider.from_toml(file, state_dir=state_dir)
    for part in BAD[content]:
        assert part in str(caught.value)
    assert not state_dir.exists()


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.toml cannot be read"):
        ProcessProvider.from_toml(tmp_path / "none.toml")


def test_bad_objects(state_dir: Path) -> None:
    wrong: Any = {"command": ["x"]}
    with pytest.raises(SettingError, match=r"function a = .* a ProcessFunction"):
        ProcessProvider({"a": wrong}, state_dir=state_dir)
    with pytest.raises(SettingError, match="a Ready"):
        ProcessFunction(["x"], ready=wrong)
    with pytest.raises(SettingError, match="a Stop"):
        ProcessFunction(["x"], stop=wrong)
    with pytest.raises(SettingError, match="command"):
        ProcessFunction(["x", "nul\0"])
    long: Any = "1m30s"
    assert Ready(timeout=long).timeout == 90.0
