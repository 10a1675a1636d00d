"""ProcessProvider against real processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalezero_wsgi.model import Function, FunctionNotFound, ProviderError, ReplicaStatus, SettingError
from scalezero_wsgi.providers.base import ListingProvider, WatchingProvider
from scalezero_wsgi.providers.process import files
from scalezero_wsgi.providers.process import group as process_group
from scalezero_wsgi.providers.process import provider as module
from scalezero_wsgi.providers.process.files import StateDirectory
from scalezero_wsgi.providers.process.group import ProcessId
from scalezero_wsgi.providers.process.ports import APART
from scalezero_wsgi.providers.process.provider import ProcessFunction, ProcessProvider, Ready, Stop
from scalezero_wsgi.providers.process.state import Phase
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]
SERVE = [sys.executable, "-S", str(Path(__file__).with_name("serve.py")), "{port}"]
PATIENCE = 10.0

pytestmark = pytest.mark.server

Make = Callable[..., ProcessProvider]


def serving(*options: str, **settings: Any) -> ProcessFunction:
    return ProcessFunction([*SERVE, *options], **settings)


def running(code: str, *arguments: str, **settings: Any) -> ProcessFunction:
    return ProcessFunction([sys.executable, "-S", "-c", code, *arguments], **settings)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def make(state_dir: Path) -> Iterator[Make]:
    """Makes a provider for one function ``fn``; all that was started is gone after the test."""

    def provider(function: ProcessFunction | None = None, **more: ProcessFunction) -> ProcessProvider:
        functions = {"fn": function or serving(), **more}
        return ProcessProvider(functions, state_dir=state_dir)

    yield provider
    if state_dir.is_dir():
        provider().stop_all(0)
        assert not any(read_json(path)["pid"] for path in state_dir.glob("*.json"))


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def edit_state(state_dir: Path, **changes: object) -> None:
    path = state_dir / "fn.json"
    path.write_text(json.dumps(read_json(path) | changes))


def settled(provider: ProcessProvider, name: str = "fn") -> ReplicaStatus:
    """The status when the process is ready or gone."""
    deadline = time.monotonic() + PATIENCE
    status = provider.get_replicas(name, "")
    while status.replicas and not status.available_replicas:
        assert time.monotonic() < deadline, "in vain"
        status = provider.wait_for_change(name, "", status, PATIENCE)
    return status


def started(provider: ProcessProvider) -> ReplicaStatus:
    provider.set_replicas("fn", "", 1)
    status = settled(provider)
    assert status.available_replicas == 1, status.failure
    return status


def about(status: ReplicaStatus, path: str = "/") -> dict[str, Any]:
    with urllib.request.urlopen(f"{status.endpoint}{path}", timeout=PATIENCE) as response:
        content: dict[str, Any] = json.load(response)
        return content


def alive(pid: int) -> bool:
    """Zombies count as gone: in a container nobody may reap an orphan."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Worker:
    """Another worker: a process of its own that runs code with ``provider`` and says when it is done."""

    def __init__(self, state_dir: Path, code: str) -> None:
        head = f"""\
            import os, sys, threading, time
            from scalezero_wsgi.providers.process.provider import ProcessFunction, ProcessProvider
            provider = ProcessProvider({{"fn": ProcessFunction({SERVE!r})}}, state_dir={str(state_dir)!r})
            """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0
        return output.strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


# -- the life of one process


def test_at_zero_until_it_is_started(make: Make) -> None:
    provider = make()
    assert provider.get_replicas("fn", "") == ReplicaStatus(0, 0, max_replicas=1)
    provider.set_replicas("fn", "", 0)
    assert provider.get_replicas("fn", "").failure is None


def test_starts_becomes_ready_and_answers(make: Make) -> None:
    provider = make()
    provider.set_replicas("fn", "", 1)
    status = provider.get_replicas("fn", "")
    assert (status.replicas, status.max_replicas, status.failure) == (1, 1, None)
    status = settled(provider)
    assert status.available_replicas == 1
    assert status.endpoint is not None
    assert status.endpoint.startswith("http://127.0.0.1:")
    pid = about(status)["pid"]
    provider.set_replicas("fn", "", 3)
    assert about(provider.get_replicas("fn", ""))["pid"] == pid
    assert os.getsid(pid) == pid


def test_port_and_environment(make: Make, tmp_path: Path) -> None:
    env = {"GREETING": "hi", "BASE": "http://x:{port}/{other}"}
    status = started(make(serving("at {port}", env=env, cwd=tmp_path)))
    said = about(status)
    port = str(status.endpoint).rpartition(":")[2]
    assert said["argv"][1:] == [port, f"at {port}"]
    assert said["env"] == {"GREETING": "hi", "BASE": f"http://x:{port}/{{other}}", "PORT": port}
    assert said["cwd"] == str(tmp_path)


def test_its_own_port_setting_wins(make: Make) -> None:
    assert about(started(make(serving(env={"PORT": "80"}))))["env"]["PORT"] == "80"


def test_http_probe_waits_for_a_good_answer(make: Make) -> None:
    provider = make(serving("failing-first", ready=Ready(path="/health")))
    assert about(started(provider))["answers"] == 5
    assert about(provider.get_replicas("fn", ""))["answers"] == 6  # no probe once it is ready


def test_nonsense_is_not_ready(make: Make) -> None:
    provider = make(serving(ready=Ready(path="/nonsense")))
    provider.set_replicas("fn", "", 1)
    until(lambda: about_or_nothing(provider))
    assert provider.get_replicas("fn", "").available_replicas == 0


def about_or_nothing(provider: ProcessProvider) -> bool:
    try:
        return bool(about(provider.get_replicas("fn", "")))
    except urllib.error.URLError:
        return False


def test_unknown_function(make: Make) -> None:
    provider = make()
    with pytest.raises(FunctionNotFound):
        provider.get_replicas("fn", "other")
    with pytest.raises(FunctionNotFound):
        provider.set_replicas("nope", "", 1)
    with pytest.raises(FunctionNotFound):
        provider.wait_for_change("nope", "", ReplicaStatus(0, 0), 1)


def test_functions_do_not_share_a_process(make: Make, state_dir: Path) -> None:
    provider = ProcessProvider(
        {"fn": serving(), "fn.ns": serving(), "a.b.ns": serving()}, state_dir=state_dir
    )
    assert provider.list_functions() == [Function("fn"), Function("fn", "ns"), Function("a.b", "ns")]
    assert isinstance(provider, ListingProvider)
    assert isinstance(provider, WatchingProvider)
    provider.set_replicas("fn", "ns", 1)
    assert provider.get_replicas("fn", "").replicas == 0
    provider.set_replicas("fn", "", 1)
    assert provider.get_replicas("fn", "").endpoint != provider.get_replicas("fn", "ns").endpoint


# -- when it goes wrong


def test_exit_before_ready_tells_the_last_lines(make: Make, state_dir: Path) -> None:
    code = (
        "import os, sys, time; os.path.exists('again') and time.sleep(60); open('again', 'w').close();"
        "[print('line', n) for n in range(9)]; print('x' * 300); print('bad'); sys.exit(3)"
    )
    provider = make(replace(running(code), cwd=state_dir.parent))
    provider.set_replicas("fn", "", 1)
    status = settled(provider)
    assert (status.replicas, status.available_replicas, status.endpoint) == (0, 0, None)
    assert status.failure == (
        f"exited with status 3 before it was ready: line 6\nline 7\nline 8\n{'x' * 300}\nbad"
    )
    assert (
        make(replace(running(code), cwd=state_dir.parent)).get_replicas("fn", "") == status
    )  # until the next start
    provider.set_replicas("fn", "", 1)
    assert provider.get_replicas("fn", "").replicas == 1


def test_last_lines_are_bounded(make: Make) -> None:
    provider = make(running("print('y' * 9000); raise SystemExit(1)"))
    provider.set_replicas("fn", "", 1)
    assert settled(provider).failure == f"exited with status 1 before it was ready: {'y' * 500}"


def test_exit_without_a_word(make: Make) -> None:
    provider = make(running("import os; os.abort()"))
    for _ in range(2):
        provider.set_replicas("fn", "", 1)
        assert settled(provider).failure == f"was ended by signal {signal.SIGABRT:d} before it was ready"


def test_exit_whose_log_was_removed(make: Make, state_dir: Path) -> None:
    provider = make(running("print('x'); input(); raise SystemExit(1)"))
    provider.set_replicas("fn", "", 1)
    (state_dir / "fn.log").unlink()
    assert str(settled(provider).failure).endswith(" before it was ready")


@pytest.mark.parametrize(
    "function", [ProcessFunction(["no-such-program-anywhere"]), running("", cwd="/no/such/directory")]
)
def test_command_that_cannot_be_executed(make: Make, function: ProcessFunction) -> None:
    provider = make(function)
    provider.set_replicas("fn", "", 1)
    status = provider.get_replicas("fn", "")
    assert status.replicas == 0
    assert status.failure == "the command cannot be started: No such file or directory"


def test_not_ready_in_time(make: Make, state_dir: Path) -> None:
    provider = make(serving("silent", ready=Ready(timeout=0.3)))
    provider.set_replicas("fn", "", 1)
    pid = read_json(state_dir / "fn.json")["pid"]
    status = settled(provider)
    assert status == ReplicaStatus(0, 0, max_replicas=1, failure="was not ready within 0.3 s")
    until(lambda: not alive(pid))
    assert provider.get_replicas("fn", "") == status
    until(lambda: provider.get_replicas("fn", "") == status and not read_json(state_dir / "fn.json")["pid"])


def test_not_ready_in_time_and_deaf(make: Make, state_dir: Path) -> None:
    """Nobody waits for its grace, but whoever asks after it has it killed."""
    stubborn = serving("ignore-term", "silent", ready=Ready(timeout=0.5), stop=Stop(grace=0.2))
    provider = make(stubborn)
    provider.set_replicas("fn", "", 1)
    pid = read_json(state_dir / "fn.json")["pid"]
    status = settled(provider)
    until(lambda: provider.get_replicas("fn", "") == status and not alive(pid))


def test_died_after_ready(make: Make) -> None:
    provider = make()
    first = started(provider)
    pid = about(first, "/exit/4")["pid"]
    changed = provider.wait_for_change("fn", "", first, PATIENCE)
    assert changed == ReplicaStatus(0, 0, max_replicas=1, failure="exited with status 4")
    second = started(provider)
    assert second.failure is None
    assert about(second)["pid"] != pid


def test_died_unseen_is_replaced_by_the_next_start(make: Make) -> None:
    provider = make()
    pid = about(started(provider), "/exit/0")["pid"]
    until(lambda: not alive(pid))
    assert about(started(provider))["pid"] != pid


def test_children_of_a_dead_process_are_swept_away(make: Make) -> None:
    provider = make(serving("child"))
    child = about(started(provider), "/exit/0")["child"]
    until(lambda: not provider.get_replicas("fn", "").replicas)
    until(lambda: not alive(child))


def test_log_is_bounded(make: Make, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = make()
    started(provider)
    log = state_dir / "fn.log"
    assert log.read_text() == "listening\n"
    monkeypatch.setattr(files, "MAX_LOG_BYTES", 5)
    provider.get_replicas("fn", "")
    assert log.read_text() == ""
    log.unlink()
    assert provider.get_replicas("fn", "").available_replicas == 1


# -- the stop


def test_stop_by_term_leaves_no_failure(make: Make) -> None:
    provider = make()
    pid = about(started(provider))["pid"]
    provider.set_replicas("fn", "", 0)
    assert not alive(pid)
    assert provider.get_replicas("fn", "") == ReplicaStatus(0, 0, max_replicas=1)


def test_stop_by_another_signal(make: Make, tmp_path: Path) -> None:
    code = """if True:
        import signal, sys, pathlib, socket
        def note(signum, frame):
            pathlib.Path(sys.argv[2]).write_text(str(signum))
            sys.exit()
        signal.signal(signal.SIGINT, note)
        server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
        while True: server.accept()
    """
    provider = make(running(code, "{port}", str(tmp_path / "note"), stop=Stop("INT")))
    started(provider)
    provider.set_replicas("fn", "", 0)
    assert (tmp_path / "note").read_text() == "2"


def test_kill_after_the_grace_and_zero_meanwhile(make: Make, state_dir: Path) -> None:
    provider = make(serving("ignore-term", stop=Stop(grace=1.0)))
    pid = about(started(provider))["pid"]
    begun = time.monotonic()
    stopper = threading.Thread(target=provider.set_replicas, args=("fn", "", 0))
    stopper.start()
    until(lambda: provider.get_replicas("fn", "").replicas == 0)
    assert time.monotonic() - begun < 0.9
    assert alive(pid)
    assert make().get_replicas("fn", "").failure is None
    stopper.join(PATIENCE)
    assert time.monotonic() - begun >= 1.0
    assert not alive(pid)


def test_start_during_a_stop_waits_for_its_end(make: Make) -> None:
    provider = make(serving("ignore-term", stop=Stop(grace=0.4)))
    pid = about(started(provider))["pid"]
    stopper = threading.Thread(target=provider.set_replicas, args=("fn", "", 0))
    stopper.start()
    until(lambda: provider.get_replicas("fn", "").replicas == 0)
    status = started(provider)
    stopper.join(PATIENCE)
    assert not stopper.is_alive()
    assert not alive(pid)
    assert about(status)["pid"] != pid


def test_children_are_stopped_too(make: Make) -> None:
    provider = make(serving("child", stop=Stop(grace=0.3)))
    said = about(started(provider))
    provider.set_replicas("fn", "", 0)
    assert not alive(said["pid"])
    assert not alive(said["child"])


def test_process_that_cannot_be_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = make(serving("ignore-term", stop=Stop(grace=0)))
    started(provider)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_KILL_WAIT", 0.05)
        patch.setattr(ProcessId, "signal", lambda *_: None)
        with pytest.raises(ProviderError, match="not gone although killed: fn"):
            provider.set_replicas("fn", "", 0)


def test_stop_all_by_one_who_started_nothing(make: Make, state_dir: Path) -> None:
    provider = make(other=serving("ignore-term"), gone=serving(), idle=serving())
    pids = [about(started(provider))["pid"]]
    for name in ("other", "gone"):
        provider.set_replicas(name, "", 1)
        pids.append(about(settled(provider, name))["pid"])
    (state_dir / "foreign thing.json").write_text("[]")
    begun = time.monotonic()
    make().stop_all(0.3)  # knows "fn" only
    assert time.monotonic() - begun < 5
    assert not any(map(alive, pids))
    assert provider.get_replicas("other", "").replicas == 0
    assert not (state_dir / "foreign thing.lock").exists()
    (state_dir / "foreign thing.json").unlink()
    make().stop_all(0)


def test_stop_all_goes_on_when_one_cannot_be_stopped(
    make: Make, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("fn", "locked", "deaf", "late", "last")
    provider = make(**{name: serving("ignore-term") for name in names})
    pids = {}
    for name in names:
        provider.set_replicas(name, "", 1)
        settled(provider, name)
        pids[name] = read_json(state_dir / f"{name}.json")["pid"]
    (state_dir / "unreadable.json").mkdir()
    kill = ProcessId.signal

    def signal_unless_deaf(process: ProcessId, signum: signal.Signals) -> None:
        if process.pid != pids["deaf"]:
            kill(process, signum)

    read = StateDirectory.read

    def read_unless_late(self: StateDirectory, key: Function) -> Any:
        state = read(self, key)
        if key.name == "late" and state.phase is Phase.STOPPING:
            raise ProviderError("late")  # its stop was noted, and can be followed no longer
        return state

    with (state_dir / "locked.lock").open("w") as lock, monkeypatch.context() as patch:
        patch.setattr(files, "LOCK_WAIT", 0.2)
        patch.setattr(module, "_KILL_WAIT", 0.3)
        patch.setattr(ProcessId, "signal", signal_unless_deaf)
        patch.setattr(StateDirectory, "read", read_unless_late)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ProviderError) as caught:
            make().stop_all(0.1)  # less than the wait for the lock takes
    said = [str(caught.value), *caught.value.__notes__]
    for part in ("locked stays locked", "unreadable is out of reach", "late", "although killed: deaf"):
        assert any(part in text for text in said)
    assert [name for name in names if alive(pids[name])] == ["locked", "deaf", "late"]
    (state_dir / "unreadable.json").rmdir()


# -- many workers


def test_eight_threads_start_one_process(make: Make, tmp_path: Path) -> None:
    note = tmp_path / "starts"
    code = "import sys, time; open(sys.argv[1], 'a').write('x'); time.sleep(600)"
    provider = make(running(code, str(note)))
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait(PATIENCE)
        provider.set_replicas("fn", "", 1)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    until(note.exists)
    provider.set_replicas("fn", "", 1)
    time.sleep(0.1)
    assert note.read_text() == "x"


def test_several_workers_and_their_forks_share_one_process(make: Make, state_dir: Path) -> None:
    code = """
        provider.get_replicas("fn", "")
        for _ in range(2):
            os.fork()
        provider.set_replicas("fn", "", 1)
        status = provider.get_replicas("fn", "")
        os.write(1, f"{status.endpoint}\\n".encode())
        """
    workers = [Worker(state_dir, code) for _ in range(3)]
    endpoints = [line for worker in workers for line in worker.finish().splitlines()]
    status = settled(make())
    assert endpoints == [status.endpoint] * 12


@pytest.mark.soak
def test_a_process_whose_port_refuses_is_not_available_any_more(make: Make) -> None:
    """A killed process closes its files, which may take a moment, before it is a zombie."""
    provider = make(serving("many-files"))
    for _ in range(5):
        status = started(provider)
        os.kill(about(status)["pid"], signal.SIGKILL)
        assert status.endpoint is not None
        port = int(status.endpoint.rpartition(":")[2])
        while not refused(port):
            pass
        now = provider.get_replicas("fn", "")
        assert (now.replicas, now.failure) == (0, "was ended by signal 9")


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_killed_worker_leaves_it_to_the_next(make: Make, state_dir: Path) -> None:
    worker = Worker(state_dir, 'provider.set_replicas("fn", "", 1); print("up", flush=True); input()')
    assert worker.line() == "up"
    worker.kill()
    provider = make()
    status = settled(provider)
    pid = about(status)["pid"]
    provider.set_replicas("fn", "", 1)
    assert provider.get_replicas("fn", "") == status
    about(status, "/exit/4")
    assert provider.wait_for_change("fn", "", status, PATIENCE).failure == "exited"
    provider.set_replicas("fn", "", 1)
    assert about(settled(provider))["pid"] != pid
    provider.set_replicas("fn", "", 0)


def test_zombie_of_a_busy_worker_counts_as_dead(make: Make, state_dir: Path) -> None:
    worker = Worker(
        state_dir,
        """
        provider.set_replicas("fn", "", 1)
        print("up", flush=True)
        input()
        provider.get_replicas("fn", "")
        print("reaped", flush=True)
        input()
        """,
    )
    try:
        assert worker.line() == "up"
        provider = make()
        pid = about(settled(provider))["pid"]
        provider.set_replicas("fn", "", 0)  # does not wait for a worker that does not reap
        assert Path(f"/proc/{pid}").exists()
        assert provider.get_replicas("fn", "").replicas == 0
        assert worker.process.stdin is not None
        worker.process.stdin.write("\n")
        worker.process.stdin.flush()
        assert worker.line() == "reaped"
        assert not Path(f"/proc/{pid}").exists()
    finally:
        worker.kill()


def test_worker_that_ends_says_nothing_about_its_child(make: Make, state_dir: Path) -> None:
    provider = make()
    started(provider)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del provider
    assert make().get_replicas("fn", "").available_replicas == 1


def test_status_taken_by_somebody_else(make: Make) -> None:
    provider = make()
    status = started(provider)
    pid = about(status, "/exit/4")["pid"]
    os.waitpid(pid, 0)
    assert provider.wait_for_change("fn", "", status, PATIENCE).failure == "exited"


def test_reused_process_id_is_not_ours(make: Make, state_dir: Path) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        provider = make()
        pid = about(started(provider))["pid"]
        provider.set_replicas("fn", "", 0)
        edit_state(state_dir, pid=stranger.pid, started="1", ready=True)
        assert provider.get_replicas("fn", "").failure == "exited"
        edit_state(state_dir, pid=stranger.pid, started="1", ready=True)
        assert about(started(provider))["pid"] != pid
        assert stranger.poll() is None
        stranger.communicate(b"\n", timeout=PATIENCE)


def test_process_id_that_is_reused_during_a_stop(make: Make, state_dir: Path) -> None:
    code = [sys.executable, "-S", "-c", "input()"]
    with subprocess.Popen(code, stdin=subprocess.PIPE, start_new_session=True) as stranger:
        provider = make()
        started(provider)
        provider.set_replicas("fn", "", 0)
        edit_state(state_dir, pid=stranger.pid, started="1", stop_by=time.monotonic() + 60)
        provider.set_replicas("fn", "", 0)
        assert not read_json(state_dir / "fn.json")["pid"]
        assert stranger.poll() is None
        stranger.communicate(b"\n", timeout=PATIENCE)


def test_without_proc(make: Make, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(process_group, "_PROC", tmp_path / "none")
        provider = make(serving("child", stop=Stop(grace=0.2)))
        first = started(provider)
        assert read_json(state_dir / "fn.json")["started"] == ""
        assert make(serving("child")).get_replicas("fn", "") == first
        child = about(first, "/exit/4")["child"]
        until(lambda: provider.get_replicas("fn", "").failure == "exited with status 4")
        until(lambda: not alive(child))
        said = about(started(provider))
        with contextlib.suppress(ProviderError):  # an orphaned zombie may look alive
            patch.setattr(module, "_KILL_WAIT", 0.2)
            provider.set_replicas("fn", "", 0)
        assert not alive(said["pid"])
        until(lambda: not alive(said["child"]))


# -- the state


def test_files_are_private(make: Make, state_dir: Path) -> None:
    started(make())
    assert state_dir.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in state_dir.iterdir()}
    assert modes == {f"fn.{kind}": 0o600 for kind in ("json", "lock", "log", "settings")}


def test_broken_state_is_none(make: Make, state_dir: Path) -> None:
    provider = make()
    for content in ("", "{", "[]", '{"unknown": 1}'):
        (state_dir / "fn.json").write_text(content)
        assert provider.get_replicas("fn", "").replicas == 0
    (state_dir / "fn.json").unlink()


def test_lock_that_stays(make: Make, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT", 0.1)
    provider = make()
    with (state_dir / "fn.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ProviderError, match="the state of function fn stays locked"):
            provider.set_replicas("fn", "", 1)
    provider.set_replicas("fn", "", 1)


def test_process_that_cannot_be_noted_is_not_left(
    make: Make, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def full(_: object, key: Function, state: Any) -> None:
        pids.append(state.process.pid)
        raise OSError(28, "No space left on device")

    provider = make()
    with monkeypatch.context() as patch:
        patch.setattr(StateDirectory, "write", full)
        with pytest.raises(ProviderError, match="No space left"):
            provider.set_replicas("fn", "", 1)
    until(lambda: not alive(pids[0]))
    assert provider.get_replicas("fn", "").replicas == 0


def test_directory_that_vanished(make: Make, state_dir: Path) -> None:
    provider = make()
    state_dir.rmdir()
    assert provider.get_replicas("fn", "").replicas == 0
    with pytest.raises(ProviderError, match="out of reach"):
        provider.set_replicas("fn", "", 1)


def test_functions_that_start_at_once_get_a_port_each(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """None listens yet, and a worker does not know what the others choose."""
    monkeypatch.setattr("scalezero_wsgi.providers.process.ports.APART", APART[:16])
    names = ["fn", *(f"fn{number}" for number in range(7))]
    workers = [make(serving("silent"), **dict.fromkeys(names[1:], serving("silent"))) for _ in names]
    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(lambda worker, name: worker.set_replicas(name, "", 1), workers, names))
    assert len({workers[0].get_replicas(name, "").endpoint for name in names}) == len(names)


def test_refuses_a_directory_that_is_not_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {"fn": serving()}
    public = tmp_path / "public"
    public.mkdir(mode=0o755)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    file = tmp_path / "file"
    file.touch()
    for path, allowed in ((public, "0700"), (link, "symbolic link"), (file, "can be made")):
        with pytest.raises(SettingError, match=rf"state_dir = '{path}' .* {allowed}"):
            ProcessProvider(functions, state_dir=path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SettingError, match="the user who runs this"):
        ProcessProvider(functions, state_dir=tmp_path / "theirs")


def test_default_directory_is_shared_by_equals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for env in ({"A": "1", "B": "2"}, {"B": "2", "A": "1"}, {"A": "2"}):
        ProcessProvider({"fn": serving(env=env)})
    found = list(tmp_path.iterdir())
    assert len(found) == 2
    assert all(path.name.startswith(f"scalezero-{os.geteuid()}-") for path in found)
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in found)


# -- waiting


def test_wait_returns_on_time(make: Make) -> None:
    provider = make(serving("silent"))
    for replicas in (0, 1):
        provider.set_replicas("fn", "", replicas)
        seen = provider.get_replicas("fn", "")
        begun = time.monotonic()
        assert provider.wait_for_change("fn", "", seen, 0.2) == seen
        assert 0.2 <= time.monotonic() - begun < 1.0
        assert provider.wait_for_change("fn", "", seen, 0) == seen


def test_wait_returns_at_once_when_it_differs(make: Make) -> None:
    begun = time.monotonic()
    make().wait_for_change("fn", "", ReplicaStatus(1, 1), PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2


def test_wait_returns_soon_after_it_is_ready(make: Make, tmp_path: Path) -> None:
    code = """if True:
        import pathlib, socket, sys, time
        time.sleep(0.1)
        server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
        pathlib.Path(sys.argv[2]).write_text(str(time.monotonic()))
        while True: server.accept()
    """
    note = tmp_path / "note"
    late = []
    for _ in range(3):
        provider = make(running(code, "{port}", str(note)))
        started(provider)
        seen_at = time.monotonic()
        until(lambda: note.exists() and bool(note.read_text()))
        late.append(seen_at - float(note.read_text()))
        provider.set_replicas("fn", "", 0)
        note.unlink()
    assert min(late) < 0.01


def test_wait_for_the_lock_lets_other_greenlets_run(state_dir: Path, make: Make) -> None:
    make()
    code = """
        from gevent import monkey
        monkey.patch_all()  # late: the provider is imported and made already
        import gevent
        from scalezero_wsgi.providers import process
        ticks = 0
        def tick():
            global ticks
            while True:
                gevent.sleep(0.005)
                ticks += 1
        gevent.spawn(tick)
        print("go", flush=True)
        provider.set_replicas("fn", "", 1)
        waited = ticks
        while not (status := provider.get_replicas("fn", "")).available_replicas:
            gevent.sleep(0.01)
        provider.set_replicas("fn", "", 0)
        print(waited, provider.get_replicas("fn", "").replicas)
        """
    lock = os.open(state_dir / "fn.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker = Worker(state_dir, code)
        assert worker.line() == "go"
        time.sleep(0.3)
    finally:
        os.close(lock)
    waited, replicas = worker.finish().split()
    assert int(waited) >= 10
    assert replicas == "0"
