from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi.cli import main
from scalezero_wsgi.servers.address import only_this_host
from tests.servers.harness import ROOT, Server, free_port, serving
from tests.support.waiting import until


@contextlib.contextmanager
def serve(
    tmp_path: Path, *arguments: str, host: str = "127.0.0.1", env: dict[str, str] | None = None
) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "scalezero_wsgi", "serve", *arguments, "--bind", f"{host}:{port}"]
    env = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), **(env or {})}
    with serving(command, port, tmp_path / "log", env) as server:
        yield server


def functions_of(tmp_path: Path) -> list[int]:
    """The processes whose output goes into the state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(tmp_path / "scalezero-") in str((entry / "fd" / "1").readlink()):
                found.append(int(entry.name))
    return found


def test_it_serves_the_built_in_functions_and_prints_the_line_to_try(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        until(lambda: "curl" in server.log)
        line = re.search(r"curl -i http://[\d.:]+(/function/\w+)", server.log)
        assert line is not None
        answer = server.get(line[1])
        assert answer.text.startswith("Hello from process ")
        assert "Server-Timing" in answer.headers
        echo = server.get("/function/echo/a%2Fb?x=1", headers={"X-Custom": "y"}).text
        assert echo.startswith("GET /a%2Fb?x=1 HTTP/1.1\n")
        assert "X-Custom: y" in echo
        assert server.get("/function/nope").status_code == 404
        assert len(functions_of(tmp_path)) == 2


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", "2") as server:
        assert server.get("/function/hello").status_code == 200
        before = functions_of(tmp_path)
        assert len(before) == 1
        for worker in server.workers():
            if worker not in before:
                os.kill(worker, signal.SIGKILL)
        until(lambda: len(server.workers()) == 2 and server.get("/function/hello").status_code == 200)
        assert functions_of(tmp_path) == before
    assert functions_of(tmp_path) == []


def test_all_workers_share_one_process(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", "4", "--threads", "2") as server:
        told = {server.get("/function/hello").text.partition(",")[0] for _ in range(40)}
        assert len(told) == 1


def test_it_serves_a_file(tmp_path: Path) -> None:
    file = tmp_path / "functions.toml"
    file.write_text(
        "[functions.greet]\n"
        f"command = [{sys.executable!r}, '-m', 'scalezero_wsgi.demo', 'hello', '{{port}}']\n"
        "[functions.broken]\ncommand = ['sh', '-c', 'echo no database; exit 3']\n",
        encoding="utf-8",
    )
    with serve(tmp_path, str(file)) as server:
        assert server.get("/function/greet").status_code == 200
        for _ in range(5):
            broken = server.get("/function/broken")
            assert broken.status_code == 503
            assert "no database" in broken.json()["detail"]
            assert int(broken.headers["Retry-After"]) >= 1


@pytest.mark.soak
@pytest.mark.parametrize(
    ("host", "env"), [("0.0.0.0", {}), ("127.0.0.1", {"SCALEZERO_EXPOSE_FAILURES": "false"})]
)
def test_others_than_this_host_are_not_told_why_a_start_failed(
    host: str, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "functions.toml"
    file.write_text("[functions.broken]\ncommand = ['sh', '-c', 'echo no database; exit 3']\n", "utf-8")
    with serve(tmp_path, str(file), host=host, env=env) as server:
        broken = server.get("/function/broken")
        assert broken.status_code == 503
        assert "no database" not in broken.text
        (line,) = [line for line in server.log.splitlines() if broken.headers["X-Call-Id"] in line]
        assert "no database" in line


@pytest.mark.parametrize(
    ("bind", "told"),
    [
        ("127.0.0.1:8080", True),
        ("127.1.2.3:80", True),
        ("localhost:8080", True),
        ("tcp://LOCALHOST:8080", True),
        ("[::1]:8080", True),
        ("unix:/run/functions.sock", True),
        ("127.0.0.1:8080,[::1]:8080", True),
        ("0.0.0.0:8080", False),
        (":8080", False),
        ("8080", False),
        ("", False),
        ("[::]:8080", False),
        ("10.0.0.1:8080", False),
        ("functions.example:8080", False),
        ("fd://3", False),
        ("127.0.0.1:8080,0.0.0.0:8081", False),
        ("127.0.0.1.example:8080", False),
    ],
)
def test_only_this_host(bind: str, told: bool) -> None:
    assert only_this_host(bind) == told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[functions.a]\ncomand = ['x']\n", "comand"),
        ("[functions.a]\ncommand = 'x'\n", "command"),
        ("[functions", "cannot be read"),
    ],
)
def test_a_wrong_file_stops_the_start_and_is_named(
    content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "functions.toml"
    file.write_text(content, encoding="utf-8")
    assert main(["serve", str(file)]) == 2
    assert told in capsys.readouterr().err


def test_a_wrong_setting_in_the_environment_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SCALEZERO_MAX_WAIT", "soon")
    assert main(["serve"]) == 2
    assert "max_wait: 'soon' is not a duration" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--workers", "--threads"])
def test_a_wrong_option_is_named(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", option, "0"])
    assert "'0' is not allowed" in capsys.readouterr().err


def test_without_gunicorn_the_extra_is_named() -> None:
    code = "import sys; sys.modules['gunicorn.app.base'] = None;"
    code += "from scalezero_wsgi.cli import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "scalezero_wsgi[serve]" in done.stderr
