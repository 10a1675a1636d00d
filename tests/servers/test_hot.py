"""``serve --hot``: the file of functions changes under a server that is in use."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest
import requests

from scalezero_wsgi.cli import main
from tests.servers.harness import Server
from tests.servers.test_serve import functions_of, serve
from tests.support.waiting import until

BROKEN = ("[functions", "[functions.stays]\ncomand = ['x']\n", "", "[functions.'a b']\ncommand = ['x']\n")


FUNCTION = Path(__file__).parent / "idle_function.py"  # takes 0 to 20 ms, and dies at once when told to


class Functions:
    """A file of functions, which replaces the one before as an editor's does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self.path)

    def set(self, **functions: str) -> None:
        """Set functions: of each what else its table has."""
        command = [sys.executable, "-I", "-S", str(FUNCTION), "{port}"]
        tables = [
            f"[functions.{name}]\ncommand = {command}\nready = {{ path = '/0' }}\n{more}\n"
            for name, more in functions.items()
        ]
        self.write("".join(tables))


@pytest.fixture
def functions(tmp_path: Path) -> Functions:
    return Functions(tmp_path / "functions.toml")


class Load:
    """Requests without a pause; each that is not answered with 200 is kept."""

    def __init__(self, server: Server, *names: str) -> None:
        self.server, self.names = server, names
        self.answered = dict.fromkeys(names, 0)
        self.processes: dict[str, set[str]] = {name: set() for name in names}
        self.failed: list[str] = []
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(name,)) for name in names for _ in range(3)]

    def _run(self, name: str) -> None:
        while not self.ended.is_set():
            try:
                answer = self.server.get(f"/function/{name}", timeout=60)
            except requests.RequestException as error:
                self.failed.append(f"{name}: {error}")
            else:
                if answer.status_code != 200:
                    self.failed.append(f"{name}: {answer.status_code} {answer.text}")
                self.processes[name].add(answer.text)
                self.answered[name] += 1

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(90)


def everywhere(server: Server, name: str, status: int) -> bool:
    """Return whether so many requests in a row are answered so that each of the workers has had some."""
    return all(server.get(f"/function/{name}").status_code == status for _ in range(40))


@contextlib.contextmanager
def hot(tmp_path: Path, functions: Functions, workers: int = 3) -> Iterator[Server]:
    with serve(tmp_path, "--hot", "--workers", str(workers), str(functions.path)) as server:
        yield server
    assert "Traceback" not in server.log
    assert functions_of(tmp_path) == []


@pytest.mark.soak
def test_no_request_is_lost_while_the_file_changes_again_and_again(
    tmp_path: Path, functions: Functions
) -> None:
    rounds = int(os.environ.get("SCALEZERO_SOAK", "6"))
    functions.set(stays="", changes="")
    with hot(tmp_path, functions) as server, Load(server, "stays", "changes") as load:
        until(lambda: min(load.answered.values()) > 100)
        for number in range(rounds):
            name = f"new-{number}"
            before = len(load.processes["changes"])
            functions.set(**{"stays": "", "changes": f"env = {{ ROUND = '{number}' }}", name: ""})
            until(lambda: everywhere(server, name, 200))  # noqa: B023  called at once
            until(lambda: len(load.processes["changes"]) > before)  # noqa: B023
            refused = server.log.count("is not taken over")
            functions.write(BROKEN[number % len(BROKEN)])
            until(lambda: server.log.count("is not taken over") > refused)  # noqa: B023
            assert everywhere(server, name, 200)
        functions.set(stays="", changes="")
        until(lambda: everywhere(server, name, 404))
    assert load.failed == []
    assert len(load.processes["stays"]) == 1
    print(f"{rounds} rounds, requests: {load.answered}, processes of one: {len(load.processes['changes'])}")


@pytest.mark.soak
def test_what_has_changed_starts_anew_and_what_has_not_goes_on(tmp_path: Path, functions: Functions) -> None:
    functions.set(changes="", stays="")
    with hot(tmp_path, functions) as server:
        before = {name: server.get(f"/function/{name}").text for name in ("changes", "stays")}
        functions.set(changes="cwd = '/'", stays="idle_after = '2h'")
        until(lambda: server.get("/function/changes").text != before["changes"])
        assert server.get("/function/stays").text == before["stays"]
        assert len(functions_of(tmp_path)) == 2
        assert "is taken over; changed: changes, stays" in server.log


@pytest.mark.soak
def test_a_removed_function_is_stopped_once_its_requests_have_ended(
    tmp_path: Path, functions: Functions
) -> None:
    functions.set(stays="", goes="")
    with hot(tmp_path, functions) as server, futures.ThreadPoolExecutor(1) as pool:
        assert server.get("/function/stays").status_code == 200
        assert server.get("/function/goes").status_code == 200
        long = pool.submit(server.get, "/function/goes/stream/15", timeout=60)
        functions.set(stays="")
        until(lambda: everywhere(server, "goes", 404))
        assert not long.done()
        answer = long.result()
        assert answer.status_code == 200
        assert len(answer.content) == int(answer.headers["Content-Length"])
        until(lambda: "set no longer: goes" in server.log)
        assert len(functions_of(tmp_path)) == 1
        assert everywhere(server, "stays", 200)


@pytest.mark.soak
def test_a_worker_that_starts_while_the_file_is_wrong_has_what_the_others_have(
    tmp_path: Path, functions: Functions
) -> None:
    functions.set(first="")
    with hot(tmp_path, functions) as server:
        functions.set(first="", second="")
        until(lambda: everywhere(server, "second", 200))
        functions.write(BROKEN[0])
        until(lambda: "is not taken over" in server.log)
        ours = functions_of(tmp_path)
        former = [worker for worker in server.workers() if worker not in ours]
        for worker in former:
            os.kill(worker, signal.SIGKILL)
        until(lambda: len([each for each in server.workers() if each not in [*ours, *former]]) == 3)
        until(lambda: server.get("/healthz").status_code == 200, ignoring=(requests.RequestException,))
        assert everywhere(server, "second", 200)


def test_a_wrong_file_is_one_line(tmp_path: Path, functions: Functions) -> None:
    functions.set(first="")
    with hot(tmp_path, functions) as server:
        functions.write("[functions.first]\ncomand = ['x']\n")
        until(lambda: "is not taken over" in server.log)
        functions.set(first="", second="")
        until(lambda: "is taken over; new: second" in server.log)
        (line,) = re.findall(r".*is not taken over.*", server.log)
        assert "the functions stay as they were: function 'first': function: unknown key 'comand'" in line


def test_it_is_of_a_file_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (["docker://"], "'docker://'"), ([], "no provider"):
        assert main(["serve", "--hot", *words]) == 2
        assert f"--hot: {said} is not allowed with it" in capsys.readouterr().err
