"""The recipes' files, run as they stand but for addresses, and for times that would be too long."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

import pytest
import redis
import requests

from scalezero_wsgi.providers import ProcessProvider
from tests.engines.engine import engine
from tests.servers.harness import ROOT, free_port, gunicorn, serving
from tests.servers.test_serve import serve
from tests.support.waiting import until
from tests.unit.coordination.test_redis import Server as RedisServer

pytestmark = pytest.mark.server

EXAMPLES = ROOT / "tests" / "examples"
HOOKS = ["-c", "python:scalezero_wsgi.integrations.gunicorn"]


def example(path: str) -> str:
    return (EXAMPLES / path).read_text(encoding="utf-8")


def replaced(text: str, changes: dict[str, str]) -> str:
    """The text with other addresses and times; each must have been there."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    for state in tmp_path.glob(f"scalezero-{os.geteuid()}-*"):
        if state.is_dir():
            ProcessProvider({}, state_dir=state).stop_all(0)


VLLM = """#!{python}
# A fake: vLLM's paths and command line, without a model. It writes down what it is told.
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open("{told}", "a") as told:
            print(self.command, self.path, file=told)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\\n")

    do_POST = do_GET

assert sys.argv[1] == "serve" and "--enable-sleep-mode" in sys.argv
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.mark.soak
def test_a_model_sleeps_wakes_up_and_ends(tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "vllm").write_text(VLLM.format(python=sys.executable, told=told), encoding="utf-8")
    (tmp_path / "vllm").chmod(0o755)
    times = {"after 15m": "after 1s", "after 2h": "after 9s", "Mon-Fri 08:00-18:00 Europe/Berlin": "never"}
    functions = replaced(example("night/functions.toml"), times)
    (tmp_path / "functions.toml").write_text(functions, encoding="utf-8")
    (tmp_path / "model_app.py").write_text(example("night/model_app.py"), encoding="utf-8")
    env = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "TMPDIR": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    options = ["--chdir", str(tmp_path), "--workers", "2", "--threads", "32", *HOOKS]

    def lines(line: str) -> int:
        return told.read_text(encoding="utf-8").splitlines().count(line)

    with gunicorn("model_app:application", tmp_path / "log", *options, env=env) as server:
        assert server.get("/function/model/v1/models").text == "ok\n", server.log
        until(lambda: lines("POST /sleep?level=1") == 1)
        assert server.get("/function/model/v1/models").text == "ok\n", server.log
        assert lines("POST /wake_up") == 1
        (state,) = tmp_path.glob(f"scalezero-{os.geteuid()}-*")
        provider = ProcessProvider.from_toml(tmp_path / "functions.toml", state_dir=state)
        until(lambda: not provider.get_replicas("model", "").paused and lines("POST /sleep?level=1") == 2)
        until(lambda: provider.get_replicas("model", "").replicas == 0)


FUNCTIONS = """
[functions.hello]
command = ["python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
ready = { path = "/" }
"""


@pytest.mark.engine
def test_two_hosts_meet_in_a_redis_whose_user_reaches_nothing_else(tmp_path: Path) -> None:
    """Processes of one host stand for functions that both hosts reach."""
    (tmp_path / "functions.toml").write_text(FUNCTIONS, encoding="utf-8")
    provider = f"process://{tmp_path}/functions.toml"
    code = replaced(example("hosts/redis_app.py"), {"swarm://": provider})
    (tmp_path / "redis_app.py").write_text(code, encoding="utf-8")
    (tmp_path / "users.acl").write_text(example("hosts/users.acl"), encoding="utf-8")
    port = free_port()
    env = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "TMPDIR": str(tmp_path),
        "SCALEZERO_COORDINATION": f"redis://scalezero:change-me@127.0.0.1:{port}/0",
    }
    store = RedisServer(tmp_path / "r", "--aclfile", str(tmp_path / "users.acl"), port=port)
    with store.running():
        with (
            gunicorn("redis_app:application", tmp_path / "one", *HOOKS, env=env) as one,
            gunicorn("redis_app:application", tmp_path / "two", *HOOKS, env=env) as two,
            ThreadPoolExecutor(8) as pool,
        ):
            answers = list(pool.map(lambda host: host.get("/function/hello"), [one, two] * 4))
            assert [answer.status_code for answer in answers] == [200] * 8, one.log + two.log
            assert "store cannot be used" not in one.log + two.log
        user = redis.Redis(port=port, username="scalezero", password="change-me")
        assert any(user.scan_iter("scalezero:*"))
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.get("another's")
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.flushall()
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(port=port).ping()
        user.close()


NGINX = """
pid {here}/nginx.pid;
error_log {here}/error.log;
daemon off;
events {{}}
http {{
    access_log off;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    include {here}/site.conf;
}}
"""


@pytest.mark.engine
def test_nginx_wakes_a_function_and_says_who_asks(tmp_path: Path) -> None:
    nginx = str(engine("SCALEZERO_TEST_NGINX", "nginx"))
    port = free_port()
    with serve(tmp_path, "--trust-proxy") as server:
        behind = server.url.removeprefix("http://")
        changes = {"127.0.0.1:8080": behind, "listen 8000;": f"listen 127.0.0.1:{port};"}
        (tmp_path / "site.conf").write_text(replaced(example("nginx/site.conf"), changes), encoding="utf-8")
        config = tmp_path / "nginx.conf"
        config.write_text(NGINX.format(here=tmp_path), encoding="utf-8")
        command = [nginx, "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(config)]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        with serving(command, port, tmp_path / "nginx.log") as front:
            forged = {
                "X-Forwarded-For": "192.0.2.1",
                "X-Forwarded-Prefix": "/forged",
                "SCRIPT_NAME": "/forged",
            }
            echo = front.get("/function/echo/path", headers={**forged, "Host": "site.example"})
            assert echo.status_code == 200, (tmp_path / "error.log").read_text()
            assert "Server-Timing" in echo.headers
            assert "X-Forwarded-Host: site.example\n" in echo.text
            assert "X-Forwarded-Prefix: /function/echo\n" in echo.text
            assert "192.0.2.1" not in echo.text
            assert front.get("/healthz").status_code == 200


@pytest.mark.engine
def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    analyze = str(engine("SCALEZERO_TEST_SYSTEMD_ANALYZE", "systemd-analyze"))
    program = shutil.which("scalezero-wsgi", path=str(Path(sys.executable).parent)) or sys.executable
    changes = {"/opt/scalezero/bin/scalezero-wsgi": program}
    unit = tmp_path / "scalezero.service"
    unit.write_text(replaced(example("systemd/scalezero.service"), changes), encoding="utf-8")
    found = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    # It also tells of the units of this machine that ours stands on.
    assert [line for line in found.stderr.splitlines() if "scalezero" in line] == []


def test_the_units_command_tells_systemd_that_it_is_ready_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """A fake of systemd: the socket that it listens on, and the environment that it gives."""
    unit = ConfigParser(interpolation=None)
    unit.read_string(example("systemd/scalezero.service"))
    _, *arguments = shlex.split(unit["Service"]["ExecStart"])
    (tmp_path / "functions.toml").write_text(FUNCTIONS, encoding="utf-8")
    arguments = [argument.replace("/etc/scalezero", str(tmp_path)) for argument in arguments]
    setting, _, value = unit["Service"]["Environment"].partition("=")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        env = {
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
            "TMPDIR": str(tmp_path),
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            setting: value,
        }
        port = free_port()
        command = [sys.executable, "-m", "scalezero_wsgi", *arguments, "--bind", f"127.0.0.1:{port}"]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
        try:
            assert b"READY=1" in notify.recv(4096)
            assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=30).status_code == 200
            process.send_signal(signal.SIGTERM)
            # A worker that is being forked misses the signal: gunicorn ends it after 30 s.
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(30)
