"""The code and commands of the README and of its pages are what a newcomer pastes: they run here."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from scalezero_wsgi import Settings, events
from scalezero_wsgi._lib.backoff import backoff_step
from scalezero_wsgi.cli import main
from scalezero_wsgi.commands.config_file import ConfigFile
from scalezero_wsgi.integrations.dashboard.overview import STATES, Row
from scalezero_wsgi.integrations.prometheus import PrometheusMetrics
from scalezero_wsgi.integrations.savings import Savings
from scalezero_wsgi.providers import ProcessProvider
from scalezero_wsgi.providers.process.config import _KEYS as KEYS
from tests.servers.harness import ROOT, Server, free_port, gunicorn, is_up
from tests.support.waiting import until

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / ".github" / "docs").glob("*.md"))]
DOCUMENTATION = "\n".join(
    [README, *PAGES]
)  # without the recipes, whose files tests/servers/test_recipes.py runs
BLOCKS = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", DOCUMENTATION, re.DOTALL))

TOKEN = "the token of the tests"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    for name, code in BLOCKS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "systemctl").touch(0o755)
    return tmp_path


FIRST = ["small_app:app", "wsgi:application"]
"""Those whose examples the README's test command starts; the long tests start all of them."""

APPS = pytest.mark.parametrize(
    "app",
    [
        *FIRST,
        "flask_app:app",
        "idle_app:application",
        "plain_app:application",
        "hooks_app:application",
        "metrics_app:application",
        "tracing_app:application",
        "dashboard_app:application",
        "savings_app:application",
    ],
)


@contextlib.contextmanager
def serving(app: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The app under gunicorn, and its functions' processes as long as the block runs."""
    monkeypatch.setattr("tempfile.tempdir", str(site))
    env = {"PYTHONPATH": f"{site}:{ROOT}", "TMPDIR": str(site), "DASHBOARD_TOKEN": TOKEN}
    try:
        with gunicorn(app, site / "log", "--chdir", str(site), env=env) as server:
            yield server
    finally:
        monkeypatch.chdir(site)
        ProcessProvider.from_toml("functions.toml").stop_all(5)


def kill(pid: int, port: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_up(port))


@pytest.mark.parametrize("app", FIRST)
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


def test_the_simulation_reads_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = '- - - [29/Nov/2026:11:36:04 +0000] "GET /function/model/ HTTP/1.1" 200 5 "-" "-" 0.020\n'
    Path("access.log").write_text(request)
    (command,) = re.findall(r"^scalezero-wsgi (simulate .*--svg.*)$", DOCUMENTATION, re.MULTILINE)
    assert main(shlex.split(command)) == 0
    assert "<svg" in Path("plot.svg").read_text()


def test_the_settings_table_names_every_setting_and_its_default() -> None:
    table = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE)
    defaults = {name: eval(value) for name, value in rows}
    settings = Settings()
    values = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
    assert defaults == {**values, "idle_action": str(settings.idle_action)}  # as people write it


def test_the_settings_of_the_environment_can_be_read() -> None:
    section = README.partition("\n## Settings\n")[2].partition("\n| setting |")[0]
    told = dict(re.findall(r"`(SCALEZERO_\w+)=([^`]+)`", section))
    settings = Settings.from_environ(told)
    assert settings.idle_after == 900.0
    assert settings.allow == ("hello", "job-*")
    assert settings.max_wait_of == {"hello": 40.0, "slow.dev": 120.0}
    assert settings.dry_run


def test_the_role_is_the_one_that_the_tests_run_with() -> None:
    (role,) = re.findall(r"```yaml\n(.*?)```", DOCUMENTATION, re.DOTALL)
    assert role == (ROOT / "tests" / "engines" / "kubernetes_role.yaml").read_text(encoding="utf-8")


def test_the_file_of_serve_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(BLOCKS["serve.toml"], encoding="utf-8")
    read = ConfigFile.read(tmp_path / "serve.toml")
    assert read.options["provider"] == "functions.toml"
    assert read.settings == {"max_wait": "2m", "allow": ["job-*", "hello"]}


def test_the_install_commands_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"'\.\[(\w+)\]'", DOCUMENTATION))
    assert named == {"completion", "opentelemetry", "prometheus", "proxy", "redis", "serve", "test"}
    assert named <= extras.keys()


def test_the_metrics_table_names_every_metric() -> None:
    table = README.partition("\n### Metrics\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(scalezero_\w+)`", table.partition("| metric |")[2]))
    metrics = PrometheusMetrics()
    made = {family.name for family in metrics.registry.collect()}
    assert {name.removesuffix("_total") for name in named} == made | {
        "scalezero_in_flight",
        "scalezero_waiting",
    }


def test_the_table_of_what_is_saved_names_every_metric(tmp_path: Path) -> None:
    page = (ROOT / ".github" / "docs" / "savings.md").read_text(encoding="utf-8")
    metrics, savings = PrometheusMetrics(), Savings(f"sqlite://{tmp_path}/own/savings.db")

    def told(app: WSGIApplication) -> set[str]:
        exposition = b"".join(app({}, lambda *_: lambda _: None)).decode()
        return {family.name for family in text_string_to_metric_families(exposition)}

    named = set(re.findall(r"`(scalezero_\w+)`", page.partition("| metric |")[2]))
    assert named == told(metrics.exposition(savings=savings)) - told(metrics.exposition())


def test_the_events_table_names_every_event_and_its_fields() -> None:
    table = README.partition("\n### Hooks\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `([A-Z]\w+)` \|([^|]*)\|", table, re.MULTILINE)
    told = {event: re.findall(r"`(\w+)`", cell) for event, cell in rows}
    kinds = [
        each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)
    ]
    assert told == {
        kind.__name__: [field.name for field in dataclasses.fields(kind) if field.name != "function"]
        for kind in kinds
        if kind not in (events.Event, events.FunctionEvent)
    }


def test_the_table_of_labels_names_every_label_and_whose_it_is() -> None:
    table = README.partition("\n### Labels\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.-]+)` \| ([^|]*) \|", table, re.MULTILINE)
    told = {label: {word.lower() for word in cell.split(", ")} for label, cell in rows}
    assert len(told) == len(rows)
    assert told == labels_in_the_code()


def labels_in_the_code() -> dict[str, set[str]]:
    """Every label, and whose functions may have it. The process provider makes them of its TOML file."""
    label = re.compile(r"(scalezero|com\.openfaas\.scale)\.[a-z-]+")
    package, found = ROOT / "scalezero_wsgi", dict[str, set[str]]()
    for room in ("activation", "providers"):
        for path in (package / room).rglob("*.py"):
            reader = "all" if room == "activation" else path.relative_to(package / room).parts[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and label.fullmatch(text):
                    found.setdefault(text, set()).add(reader)
    for own in ("ledger", "kept-up", "outdated"):  # of the store, and of the process provider
        del found[f"scalezero.{own}"]
    return {name: readers - {"process"} for name, readers in found.items()}


def test_the_table_of_the_dashboards_json_names_every_field() -> None:
    section = (ROOT / ".github" / "docs" / "dashboard.md").read_text(encoding="utf-8")
    first = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == set(Row._fields) - {"key"}
    assert all(f"`{state}`" in section for state in STATES)


def test_the_dashboards_example_shows_its_function_and_wakes_it(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with serving("dashboard_app:application", site, monkeypatch) as server:
        assert server.get("/dashboard/").status_code == 401

        def state() -> str:
            told = server.get("/dashboard/functions", headers=headers).json()
            return str({each["function"]: each["state"] for each in told["functions"]}["hello"])

        assert state() == "at zero"
        url = f"{server.url}/dashboard/wake"
        assert requests.post(url, data={"function": "hello"}, headers=headers, timeout=30).status_code == 202
        until(lambda: state() == "ready")


def test_the_table_of_the_toml_file_names_every_key() -> None:
    table = README.partition("\n| key | what |\n")[2].partition("\n\n")[0]
    first = [row.split("|")[1] for row in table.splitlines()[1:]]
    assert {key for cell in first for key in re.findall(r"`(\w+)`", cell)} == set(KEYS)
