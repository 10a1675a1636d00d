"""The README's code and commands are what a newcomer pastes: they run here."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from scalezero_wsgi import Settings
from scalezero_wsgi._lib.backoff import backoff_step
from scalezero_wsgi.providers import ProcessProvider
from tests.servers.harness import ROOT, Server, free_port, gunicorn, is_up
from tests.support.waiting import until

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", README, re.DOTALL))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    for name, code in BLOCKS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "project" / "settings.py").write_text(
        "SECRET_KEY = 'x'\nALLOWED_HOSTS = ['*']\nROOT_URLCONF = 'project.urls'\n"
        "SCALEZERO = {'max_wait': '20s'}\n",
        encoding="utf-8",
    )
    (tmp_path / "systemctl").touch(0o755)
    return tmp_path


APPS = pytest.mark.parametrize("app", ["flask_app:app", "wsgi:application", "plain_app:application"])


@contextlib.contextmanager
def serving(app: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The app under gunicorn, and its functions' processes as long as the block runs."""
    monkeypatch.setattr("tempfile.tempdir", str(site))
    env = {"PYTHONPATH": f"{site}:{ROOT}", "TMPDIR": str(site)}
    try:
        with gunicorn(app, site / "log", "--chdir", str(site), env=env) as server:
            yield server
    finally:
        monkeypatch.chdir(site)
        ProcessProvider.from_toml("functions.toml").stop_all(5)


def kill(pid: int, port: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_up(port))


@APPS
def test_the_example_wakes_its_function(app: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(app, site, monkeypatch) as server:
        answer = server.get("/function/hello/functions.toml")
        assert answer.status_code == 200, server.log
        assert "[functions.hello]" in answer.text
        assert "Server-Timing" in answer.headers


@pytest.mark.soak
@APPS
def test_the_example_starts_its_function_again_when_it_was_killed(
    app: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(app, site, monkeypatch) as server:
        assert server.get("/function/hello/functions.toml").status_code == 200, server.log
        (state,) = site.glob("scalezero-*/hello.json")
        first = json.loads(state.read_bytes())
        # Before that it would count as a failed start, and rest.
        until(lambda: time.monotonic() > first["since"] + backoff_step(1))
        kill(first["pid"], first["port"])
        answer = server.get("/function/hello/functions.toml")
        assert answer.status_code == 200, server.log
        assert "[functions.hello]" in answer.text
        assert json.loads(state.read_bytes())["pid"] != first["pid"]


@pytest.mark.soak
@APPS
def test_the_example_passes_method_and_body_on_and_says_502_when_it_cannot(
    app: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function of the example takes no POST, and says so."""
    with serving(app, site, monkeypatch) as server:
        url = f"{server.url}/function/hello/functions.toml"
        refused = requests.post(url, data=b"body", headers={"Content-Type": "text/plain"}, timeout=30)
        assert (refused.status_code, "Unsupported method ('POST')" in refused.text) == (501, True), server.log
        (state,) = site.glob("scalezero-*/hello.json")
        first = json.loads(state.read_bytes())
        kill(first["pid"], first["port"])
        answer = requests.post(url, data=b"body", timeout=30)
        assert answer.status_code == 502, server.log
        assert "127.0.0.1" not in answer.text
        assert "Traceback" not in answer.text
        assert "Traceback" not in server.log


SYSTEMCTL = """#!{python}
# systemctl start UNIT, for a unit that says it is ready
import socket, subprocess, sys, time
with open("{site}/calls", "a") as calls:
    print(*sys.argv[1:], file=calls)

def is_up():
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", {port})) == 0

if not is_up():
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    server = subprocess.Popen(command, cwd="{site}/www", start_new_session=True, stderr=subprocess.DEVNULL)
    with open("{site}/pid", "w") as pid:
        print(server.pid, file=pid)
    while not is_up():
        time.sleep(0.01)
"""


@pytest.mark.soak
def test_the_callback_example_starts_its_function_and_starts_it_again_when_it_was_killed(site: Path) -> None:
    """As written but for the port, which somebody may have."""
    port = free_port()
    code = (site / "callback_app.py").read_text().replace(":9000/", f":{port}/")
    (site / "callback_app.py").write_text(code)
    (site / "www" / "hello").mkdir(parents=True)
    (site / "www" / "hello" / "greeting").write_text("hi\n")
    (site / "systemctl").write_text(SYSTEMCTL.format(python=sys.executable, site=site, port=port))
    env = {"PYTHONPATH": f"{site}:{ROOT}", "PATH": f"{site}:{os.environ['PATH']}"}

    def pid() -> int:
        return int((site / "pid").read_text())

    try:
        with gunicorn("callback_app:application", site / "log", "--chdir", str(site), env=env) as server:
            answer = server.get("/function/hello/greeting")
            started = time.monotonic()
            assert (answer.status_code, answer.text) == (200, "hi\n"), server.log
            kill(pid(), port)
            answer = server.get("/function/hello/greeting")
            assert answer.status_code == 502, server.log
            assert "127.0.0.1" not in answer.text
            until(lambda: time.monotonic() > started + 5.0)  # for so long a scale-up is believed
            answer = server.get("/function/hello/greeting")
            assert (answer.status_code, answer.text) == (200, "hi\n"), server.log
            assert (site / "calls").read_text() == "start function-hello\n" * 2
    finally:
        os.kill(pid(), signal.SIGKILL)


@pytest.mark.soak
def test_two_lines_show_what_happens_under_gunicorn(site: Path) -> None:
    env = {"PYTHONPATH": f"{site}:{ROOT}", "PATH": f"{site}:{os.environ['PATH']}"}
    (site / "systemctl").write_text("#!/bin/sh\nsleep 0.5\n", encoding="utf-8")
    options = ["--chdir", str(site), "-c", str(site / "gunicorn.conf.py"), "-w", "2", "--threads", "8"]
    with gunicorn("callback_app:application", site / "log", *options, env=env) as server:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda _: server.get("/function/hello"), range(12)))
        until(lambda: "hello: ready after" in server.log)
        lines = [line for line in server.log.splitlines() if "hello: requested" in line]
        assert len(lines) == 1, server.log
        assert re.fullmatch(r"\S+ \S+ \[\d+\] \[INFO\] hello: requested 0 → 1 replicas", lines[0])
        assert server.log.count("Booting worker") == 2  # gunicorn's own lines are not doubled


def test_the_settings_table_names_every_setting_and_its_default() -> None:
    table = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE)
    defaults = {name: eval(value) for name, value in rows}
    settings = Settings()
    values = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
    assert defaults == {**values, "idle_action": str(settings.idle_action)}  # as people write it


def test_the_role_is_the_one_that_the_tests_run_with() -> None:
    (role,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert role == (ROOT / "tests" / "engines" / "kubernetes_role.yaml").read_text(encoding="utf-8")


def test_the_install_commands_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"'\.\[(\w+)\]'", README))
    assert named == {"proxy", "redis", "serve", "test"}
    assert named <= extras.keys()
