from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from socket import AF_UNIX

import pytest
import requests

from scalezero_wsgi.cli import _parser, main
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider, Ready
from tests.servers.harness import ROOT, Server, free_port, serving
from tests.support.waiting import SOON, until


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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built_in")


@pytest.fixture(scope="module")
def built_in(home: Path) -> Iterator[Server]:
    """The built-in functions, with no option."""
    with serve(home) as server:
        yield server
    assert "Traceback" not in server.log
    assert "control socket" not in server.log.lower()  # gunicorn's, which it opens a little after its workers


def test_it_serves_the_built_in_functions_and_prints_the_line_to_try(built_in: Server, home: Path) -> None:
    server = built_in
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
    assert len(functions_of(home)) == 2


def test_it_lists_its_functions_and_answers_probes(built_in: Server) -> None:
    listed = {each["function"]: each["state"] for each in built_in.get("/").json()["functions"]}
    assert listed.keys() == {"hello", "echo"}
    page = built_in.get("/", headers={"Accept": "text/html"})
    assert '<a href="/function/hello/">hello</a>' in page.text
    style = re.search(r'href="(/function/[^"]+\.css)"', page.text)
    assert style is not None
    assert built_in.get(style[1]).status_code == 200
    assert [built_in.get(path).text for path in ("/healthz", "/readyz")] == ["ok\n", "ok\n"]


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (
            "dockr://",
            "provider: there is none called 'dockr'; there are: docker, kubernetes, openfaas, process, swarm",
        ),
        ("nowhere.toml", "nowhere.toml cannot be read: [Errno 2] No such file or directory: 'nowhere.toml'"),
        ("process", "provider process: missing a required argument: 'functions'"),
    ],
)
def test_a_provider_that_is_none_is_one_line(
    which: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", which]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


FORGED = {"X-Forwarded-Proto": "https", "SCRIPT_NAME": "/function", "PATH_INFO": "/function/hello"}


def test_headers_by_which_a_proxy_speaks_mean_nothing(built_in: Server) -> None:
    echo = built_in.get("/function/echo/here", headers=FORGED)
    assert echo.text.startswith("GET /here HTTP/1.1\n")
    assert "X-Forwarded-Proto: http\n" in echo.text
    assert "X-Forwarded-Prefix: /function/echo\n" in echo.text
    assert built_in.get("/function/echo", headers={"SCRIPT_NAME": "/elsewhere"}).status_code == 200


@pytest.mark.soak
def test_nor_do_they_on_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    command = [sys.executable, "-m", "scalezero_wsgi", "serve", "--bind", f"unix:{path}"]
    with serving(command, path, tmp_path / "log", {"TMPDIR": str(tmp_path)}), socket.socket(AF_UNIX) as sock:
        sock.connect(path)
        lines = [f"{name}: {value}" for name, value in FORGED.items()]
        head = ["GET /function/echo/here HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]
        sock.sendall("\r\n".join(head).encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b"GET /here HTTP/1.1\n" in answer
    assert b"X-Forwarded-Proto: http\n" in answer


@pytest.mark.soak
def test_behind_a_proxy_they_do(tmp_path: Path) -> None:
    with serve(tmp_path, "--trust-proxy") as server:
        echo = server.get("/app/function/echo/here", headers=FORGED | {"SCRIPT_NAME": "/app"})
        assert echo.text.startswith("GET /here HTTP/1.1\n")
        assert "X-Forwarded-Proto: https\n" in echo.text
        assert "X-Forwarded-Prefix: /app/function/echo\n" in echo.text


HEAD = b"POST /function/echo HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="silent", marks=pytest.mark.soak),
        pytest.param(HEAD, id="half a head"),
        pytest.param(HEAD + b"Content-Length: 9\r\n\r\n", id="no body", marks=pytest.mark.soak),
        pytest.param(HEAD + b"Content-Length: 9\r\n\r\n1234", id="half a body"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", id="no chunk", marks=pytest.mark.soak),
        pytest.param(HEAD + b"Content-Length: 99999\r\n\r\n" + 50_000 * b"x", id="half a long body"),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n12345", id="half a chunk", marks=pytest.mark.soak
        ),
        pytest.param(HEAD + b"\r\n", id="kept alive", marks=pytest.mark.soak),
        pytest.param(HEAD + b"Connection: close\r\n\r\n", id="not closed", marks=pytest.mark.soak),
    ],
)
def test_idle_connections_keep_nobody_waiting(said: bytes, built_in: Server) -> None:
    for name in ("hello", "echo"):  # warm from here on
        assert built_in.get(f"/function/{name}").status_code == 200
    assert isinstance(built_in.address, tuple)
    with contextlib.ExitStack() as crowd:
        for _ in range(80):
            crowd.enter_context(socket.create_connection(built_in.address)).sendall(said)
        for _ in range(10):  # again and again, for no server tells when it has taken them all up
            begun = time.monotonic()
            assert built_in.get("/healthz").status_code == 200
            assert built_in.get("/function/hello").status_code == 200
            assert time.monotonic() - begun < SOON  # the first of the crowd is given up after ten seconds
            time.sleep(0.05)


@pytest.mark.soak
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


@pytest.mark.soak
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
def test_settings_and_options_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("workers = 7\nthreads = 3\nroute = '/fn/'\nmax_wait = '2m'\ndeny = ['echo']\n", "utf-8")
    env = {"SCALEZERO_ROUTE": "/from-the-environment/"}
    with serve(tmp_path, "--config", str(file), "--workers", "1", env=env) as server:
        assert server.get("/from-the-environment/hello").status_code == 200
        assert server.get("/from-the-environment/echo").status_code == 404
        assert len([each for each in server.workers() if each not in functions_of(tmp_path)]) == 1


@pytest.mark.soak
def test_it_says_what_is_not_served_and_what_means_nothing(tmp_path: Path) -> None:
    file = tmp_path / "functions.toml"
    file.write_text(
        "[functions.hidden]\ncommand = ['true']\n[functions.sleepy]\ncommand = ['true']\nidle_after = '5m'\n",
        encoding="utf-8",
    )
    with serve(tmp_path, str(file), env={"SCALEZERO_DENY": "hidden"}) as server:
        until(lambda: "Ctrl-C" in server.log)
        assert "Functions: sleepy\nNot served, by allow and deny: hidden\n" in server.log
        assert "/function/sleepy   # starts it" in server.log
        assert "sleepy would go to zero by its own settings, and does not" in server.log
        assert "set SCALEZERO_IDLE_AFTER" in server.log


@pytest.mark.soak
def test_what_changed_in_the_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "functions.toml"

    def write(**names: str) -> None:
        command = f"[{sys.executable!r}, '-m', 'scalezero_wsgi.demo', '%s', '{{port}}']"
        tables = [f"[functions.{name}]\ncommand = {command % demo}\n" for name, demo in names.items()]
        file.write_text("".join(tables), encoding="utf-8")

    def process(server: Server, name: str) -> str:
        return server.get(f"/function/{name}").text.partition(",")[0]

    write(same="hello", changed="hello", removed="hello")
    with serve(tmp_path, str(file)) as server:
        before = {name: process(server, name) for name in ("same", "changed", "removed")}
        ours = functions_of(tmp_path)
        assert len(ours) == 3
        doomed = [server.process.pid, *(worker for worker in server.workers() if worker not in ours)]
        for pid in doomed:  # as if the machine's operator had been in a hurry: nobody stops the functions
            os.kill(pid, signal.SIGKILL)
        server.process.wait()
    assert len(functions_of(tmp_path)) == 3
    write(same="hello", changed="echo")
    with serve(tmp_path, str(file)) as server:
        assert process(server, "same") == before["same"]
        assert server.get("/function/changed").text.startswith("GET / HTTP/1.1\n")
        assert server.get("/function/removed").status_code == 404
        assert len(functions_of(tmp_path)) == 2
        assert "changed: stopped" in server.log
        assert "removed: stopped" in server.log
    assert functions_of(tmp_path) == []


def test_the_running_processes_are_listed_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def says(*arguments: str) -> str:
        main(arguments)
        output = capsys.readouterr()
        return output.out + output.err

    assert says("ps") == says("stop") == "nothing runs\n"
    assert says("stop", "hello") == "scalezero-wsgi: no function 'hello' runs; nothing runs\n"
    demo = ProcessFunction([sys.executable, "-m", "scalezero_wsgi.demo", "hello", "{port}"], Ready("/"))
    providers = ProcessProvider({"a": demo, "b.ns": demo}), ProcessProvider({"a": demo})
    for provider in providers:
        for name, namespace in provider.list_functions():
            provider.set_replicas(name, namespace, 1)
    until(lambda: providers[1].get_replicas("a", "").available_replicas)
    header, *lines = says("ps").splitlines()
    assert header.split() == ["NAME", "STATE", "PID", "PORT", "AGE", "LOG"]
    assert sorted(line.split()[0] for line in lines) == ["a", "a", "b.ns"]
    (ready,) = [line.split() for line in lines if " ready " in line]
    assert int(ready[2]) in functions_of(tmp_path)
    assert providers[1].get_replicas("a", "").endpoint == f"http://127.0.0.1:{ready[3]}"
    assert Path(ready[5]).is_file()
    only = says("ps", "--state-dir", str(Path(ready[5]).parent)).splitlines()
    assert len(only) == 2
    assert "no function 'c' runs; what runs is a, b.ns" in says("stop", "a", "c")
    assert len(functions_of(tmp_path)) == 3
    assert says("stop", "a").count("stopped a (process ") == 2
    assert len(functions_of(tmp_path)) == 1
    asked = says("stop")
    assert asked.startswith("NAME  STATE")
    assert asked.endswith("stop: nothing was stopped; name functions, or say --all for all of these\n")
    assert len(functions_of(tmp_path)) == 1
    assert "stop: b.ns and --all: say one of the two" in says("stop", "b.ns", "--all")
    assert "stopped b.ns" in says("stop", "--all")
    assert functions_of(tmp_path) == []
    assert providers[1].get_replicas("a", "").replicas == 0


def test_a_state_directory_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--state-dir", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"scalezero-wsgi: state_dir: '{tmp_path / 'none'}' is not there\n"
    assert not (tmp_path / "none").exists()


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


@pytest.mark.parametrize("kind", ["port", "path"])
def test_a_taken_address_is_one_line_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket.socket(AF_UNIX if kind == "path" else socket.AF_INET) as taken:
        taken.bind(str(tmp_path / "socket") if kind == "path" else ("127.0.0.1", 0))
        taken.listen()
        name = taken.getsockname()
        bind = f"unix:{name}" if kind == "path" else f"127.0.0.1:{name[1]}"
        begun = time.monotonic()
        assert main(["serve", "--bind", bind]) == 2
        assert time.monotonic() - begun < SOON  # gunicorn tries for five seconds
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scalezero-wsgi: --bind {bind}: ")
    assert line.endswith("; choose another address or port with --bind")


@pytest.mark.parametrize(
    ("bind", "says"),
    [
        ("8080", "it must be HOST:PORT, such as 127.0.0.1:8080"),
        ("127.0.0.1:http", "'http' is not a valid port number"),
        ("127.0.0.1:70000", "the port must be 0 to 65535"),
        ("192.0.2.1:8080", "Cannot assign requested address"),
        ("127.0.0.1:0,8080", "--bind 8080: it must be"),
        ("unix:/nowhere/socket", "/nowhere is not there, or not to be written to"),
        ("unix:/etc/passwd", "There is a file that is no socket"),
    ],
)
def test_an_impossible_address_is_one_line(
    bind: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["serve", "--bind", bind]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert not raised.value.code
    assert capsys.readouterr().out == f"scalezero-wsgi {version('scalezero_wsgi')}\n"


@pytest.mark.parametrize("command", ["serve", "ps", "stop"])
def test_the_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    help_text = capsys.readouterr().out
    assert f"\nexamples:\n  scalezero-wsgi {command}" in help_text
    examples = help_text.partition("\nexamples:\n")[2]
    for line in re.findall(rf"scalezero-wsgi ({command}.*?)(?:   .*)?$", examples, re.MULTILINE):
        _parser().parse_args(line.split())


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
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "none.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none.toml cannot be read" in line


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SCALEZERO_MAX_WAIT", "soon", "max_wait: 'soon' is not a duration"),
        ("SCALEZERO_MAX_WIAT", "5s", "did you mean SCALEZERO_MAX_WAIT"),
    ],
)
def test_a_wrong_setting_in_the_environment_stops_the_start(
    name: str,
    value: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


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


@pytest.mark.soak
def test_what_a_post_gets_after_somebody_else_has_stopped_the_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the README says; in one worker, for another one may not have looked at the function yet."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with serve(tmp_path, "--workers", "1") as server:

        def post() -> int:
            url = server.url + "/function/echo"
            return requests.post(url, data=b"x", headers={"Connection": "close"}, timeout=30).status_code

        assert post() == 200
        main(["stop", "echo"])
        assert [post(), post()] == [502, 200]
        main(["stop", "echo"])
        assert server.get("/function/echo").status_code == 200
        main(["stop", "echo"])
        time.sleep(5.5)  # cache_expiry and stale_for
        assert post() == 200
