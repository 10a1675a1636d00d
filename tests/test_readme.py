"""The README's code and commands are what a newcomer pastes: they run here."""

from __future__ import annotations

import os
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scalezero_wsgi import Settings
from scalezero_wsgi.providers import ProcessProvider
from tests.servers.harness import ROOT, gunicorn, until

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", README, re.DOTALL))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, code in BLOCKS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "settings.py").write_text(
        "SECRET_KEY = 'x'\nALLOWED_HOSTS = ['*']\nROOT_URLCONF = 'tests.servers.plain_urls'\n"
        "SCALEZERO = {'max_wait': '20s'}\n",
        encoding="utf-8",
    )
    (tmp_path / "systemctl").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "systemctl").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("app", ["flask_app:app", "wsgi:application", "plain_app:application"])
def test_the_example_wakes_its_function(app: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(site))
    env = {"PYTHONPATH": f"{site}:{ROOT}", "TMPDIR": str(site)}
    try:
        with gunicorn(app, site / "log", "--chdir", str(site), env=env) as server:
            answer = server.get("/function/hello/functions.toml")
            assert answer.status_code == 200, server.log
            assert "[functions.hello]" in answer.text
            assert "Server-Timing" in answer.headers
    finally:
        monkeypatch.chdir(site)
        ProcessProvider.from_toml("functions.toml").stop_all(5)


def test_the_callback_example_passes_the_request_to_what_it_started(site: Path) -> None:
    env = {"PYTHONPATH": f"{site}:{ROOT}", "PATH": f"{site}:{os.environ['PATH']}"}
    with gunicorn("callback_app:application", site / "log", "--chdir", str(site), env=env) as server:
        answer = server.get("/function/hello")
        assert answer.status_code == 502, server.log
        assert "127.0.0.1" not in answer.text


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
    assert defaults == {name: getattr(settings, name) for name in Settings.__dataclass_fields__}


def test_the_role_is_the_one_that_the_tests_run_with() -> None:
    (role,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert role == (ROOT / "tests" / "engines" / "kubernetes_role.yaml").read_text(encoding="utf-8")


def test_the_install_commands_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"'\.\[(\w+)\]'", README))
    assert named == {"redis", "serve", "test"}
    assert named <= extras.keys()
