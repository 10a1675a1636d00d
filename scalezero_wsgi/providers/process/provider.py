"""Functions as local commands: for development, small hosts and model servers.

There is no daemon and no supervising thread. What is known of a function's process lies in a small file,
in a private directory, and is changed only under a file lock; so all workers of a host share the one
process, whoever started it, and a worker that is recycled or killed neither ends nor doubles it. Whoever
asks next notices what has happened meanwhile, and acts on it.

For POSIX systems. Where there is no ``/proc``, a process is recognised by its id alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from ..._lib.per_process import PerProcess
from ...model import Function, FunctionNotFound, ProviderError, ReplicaStatus
from ..checks import not_allowed
from ..probe import answers
from ..url import read_url
from .config import ProcessFunction, Ready, Stop, checked_name, digest, functions_from_toml, split_name
from .group import ProcessId

__all__ = ["ProcessFunction", "ProcessProvider", "Ready", "Stop"]

_log = logging.getLogger("scalezero_wsgi")

HOST = "127.0.0.1"
_PROBE_WAIT = 1.0
_LOCK_WAIT = 5.0
_KILL_WAIT = 5.0
_LOG_BYTES = 4 * 2**20
_FORGOTTEN = ProcessFunction(["true"])


@dataclass(frozen=True, slots=True)
class _State:
    """What the workers tell each other of a function's process.

    Times are ``time.monotonic()``, which all processes of one host have in common.
    """

    pid: int = 0  # also its process group; 0: there is none
    started: str = ""  # as the kernel counts it; tells the process from a later one with the same id
    port: int = 0
    since: float = 0.0
    ready: bool = False
    stop_by: float | None = None  # it is being stopped; when this has passed, it is killed
    failure: str | None = None

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.started)

    def status(self) -> ReplicaStatus:
        if not self.pid or self.stop_by is not None:
            return ReplicaStatus(0, 0, max_replicas=1, failure=self.failure)
        return ReplicaStatus(1, int(self.ready), max_replicas=1, endpoint=f"http://{HOST}:{self.port}")

    def due(self, ready: Ready) -> float:
        """When something has to happen even if the process does nothing."""
        if self.stop_by is not None:
            return self.stop_by
        return math.inf if self.ready else self.since + ready.timeout


class ProcessProvider:
    """Runs each function as one process of this host.

    Safe for threads, forks and any number of workers: they share the process through ``state_dir``, and
    any of them may start it, see it or stop it. It outlives them all; :meth:`stop_all` ends it.

    :param functions: by ``"name"`` or ``"name.namespace"``. A changed command counts from the next start.
    :param state_dir: a directory that only its owner may enter; made if there is none. The default lies
        in the system's temporary directory and is shared by equal ``functions`` of one user.
    :raises SettingError: a function's name, or the directory, is not allowed.
    """

    def __init__(
        self, functions: Mapping[str, ProcessFunction], *, state_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self._functions = {checked_name(key): functions[key] for key in functions}
        for key, function in self._functions.items():
            if not isinstance(function, ProcessFunction):
                raise not_allowed(f"function {key}", function, "a ProcessFunction")
        self._dir = Path(_default_dir(self._functions) if state_dir is None else state_dir)
        _make_private(self._dir)
        self._children: PerProcess[dict[Function, int]] = PerProcess(dict)

    @classmethod
    def from_toml(
        cls, path: str | os.PathLike[str], *, state_dir: str | os.PathLike[str] | None = None
    ) -> Self:
        """Read the functions from a file's ``[functions.<name>]`` tables.

        :param path: the file. A relative ``cwd`` in it counts from the directory that it lies in.
        :param state_dir: as for the class.
        :raises SettingError: it cannot be read, or a key or a value in it is not allowed.
        """
        return cls(functions_from_toml(path), state_dir=state_dir)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make one from ``process:///path/functions.toml``, with ``state_dir`` as an optional parameter.

        :raises SettingError: as :meth:`from_toml`, or a parameter is unknown.
        """
        parts, keywords = read_url(url, ("state_dir",))
        return cls.from_toml(parts.netloc + unquote(parts.path), **keywords)

    def list_functions(self) -> list[Function]:
        """Name every function, in the order they were given. Asks nothing and never fails."""
        return list(self._functions)

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Tell the present status; asks a process that is not ready yet, once, whether it is.

        Takes a second at most, and a few file reads when the process is ready.

        :raises FunctionNotFound: it was not configured.
        :raises ProviderError: the state cannot be read or written.
        """
        return self._observe(self._known(name, namespace)).status()

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Start the process, or stop it.

        :param replicas: 1 or more: start it unless it runs, and return without waiting until it is
            ready. While an old process is still being stopped, its end is waited for first. 0: stop it,
            and return when it and its children are gone, killed after the grace if need be.
        :raises FunctionNotFound: it was not configured.
        :raises ProviderError: the state cannot be read or written, or the process cannot be killed. A
            command that cannot be started is no error here; it is the status's ``failure``.
        """
        key = self._known(name, namespace)
        if replicas < 1:
            self._stop([key])
        else:
            while (stop_by := self._start(key)) is not None:
                _raise_first(self._await_stop({key: stop_by}))

    def wait_for_change(
        self, name: str, namespace: str, seen: ReplicaStatus, timeout: float
    ) -> ReplicaStatus:
        """Return the status as soon as it differs from ``seen``.

        :param timeout: seconds after which it returns in any case.
        :raises FunctionNotFound: it was not configured.
        :raises ProviderError: the state cannot be read or written.
        """
        key = self._known(name, namespace)
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            state = self._observe(key, patience=min(_PROBE_WAIT, max(left, 0.01)))
            status = state.status()
            left = deadline - time.monotonic()
            if status != seen or left <= 0:
                return status
            pause = 0.05
            if status.replicas and not state.ready:
                # Tight at first; a process that takes long is asked less often: 0.2 % of its age.
                pause = min(pause, max(0.005, 0.002 * (time.monotonic() - state.since)))
            time.sleep(min(pause, left))

    def stop_all(self, timeout: float) -> None:
        """Stop every process of the state directory, whoever started it, all at once.

        For the final shutdown: a worker that still runs could start one again.

        :param timeout: seconds after which one that was asked to end and has not is killed, if its grace
            has not passed before.
        :raises ProviderError: the state cannot be read or written, or a process cannot be killed. All
            others have been stopped nevertheless.
        """
        keys = [split_name(path.stem) for path in self._dir.glob("*.json")]
        self._stop([key for key in keys if self._may_run(key)], within=timeout)

    def _known(self, name: str, namespace: str) -> Function:
        key = Function(name, namespace)
        if key not in self._functions:
            raise FunctionNotFound(name, namespace)
        return key

    def _settings(self, key: Function) -> ProcessFunction:
        """Also for a function that is configured no longer, but may still run."""
        return self._functions.get(key, _FORGOTTEN)

    # -- the state, shared by all workers

    def _file(self, key: Function, kind: str) -> Path:
        return self._dir / f"{key}.{kind}"

    def _read(self, key: Function) -> _State:
        try:
            return _State(**json.loads(self._file(key, "json").read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return _State()
        except OSError as error:
            raise _out_of_reach(key, error) from error

    def _write(self, key: Function, state: _State) -> None:
        new = self._file(key, "tmp")
        with open(new, "w", encoding="utf-8", opener=_private) as file:
            json.dump(asdict(state), file)
        new.replace(self._file(key, "json"))

    @contextlib.contextmanager
    def _locked(self, key: Function) -> Iterator[None]:
        # Never a blocking flock: it would halt all greenlets of a gevent worker.
        deadline = time.monotonic() + _LOCK_WAIT
        try:
            with open(self._file(key, "lock"), "a", encoding="utf-8", opener=_private) as file:
                while True:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() >= deadline:
                            raise ProviderError(f"the state of function {key} stays locked") from None
                        time.sleep(0.002)
                try:
                    yield
                finally:
                    # Closing is not enough when somebody forked meanwhile: the copy would keep the lock.
                    fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            raise _out_of_reach(key, error) from error

    # -- what has become of the process

    def _observe(self, key: Function, patience: float = _PROBE_WAIT) -> _State:
        """The present state. Takes the lock only when it has changed."""
        state = self._read(key)
        if self._children.get().get(key, state.pid) != state.pid:
            self._reap(key)
        if not state.pid:
            return state
        self._trim_log(key)
        ready = self._settings(key).ready
        asked = not state.ready and state.stop_by is None
        answered = asked and answers(HOST, state.port, ready.path, patience)
        # Without /proc (no start time) only the parent can tell a zombie, and it does so under the lock.
        if state.started and state.process.lives() and not answered and time.monotonic() < state.due(ready):
            return state
        with self._locked(key):
            return self._settle(key, state.process if answered else None)

    def _settle(self, key: Function, answered: ProcessId | None = None) -> _State:
        """The state, with what has happened since written down and acted on. The lock is held."""
        state = self._read(key)
        if not state.pid:
            return state
        new = self._next(key, state, state.process == answered)
        if new != state:
            self._write(key, new)
        return new

    def _next(self, key: Function, state: _State, answered: bool) -> _State:
        settings = self._settings(key)
        process = state.process
        lives = process.lives()  # first: an end between the two is then seen with its status
        code = self._reap(key, state.pid)
        lives = lives and code is None
        if state.stop_by is not None:
            if not lives and not process.group_lives():
                return _State(failure=state.failure)
            if time.monotonic() >= state.stop_by:
                process.signal(signal.SIGKILL)
            return state
        if not lives:
            process.signal(signal.SIGKILL)  # what it left in its group
            return _State(failure=self._last_words(key, state, code))
        if state.ready or answered:
            return replace(state, ready=True)
        if time.monotonic() >= state.since + settings.ready.timeout:
            process.signal(settings.stop.signum)
            # No waiting here: whoever asks after the grace has it killed.
            failure = f"was not ready within {settings.ready.timeout:g} s"
            return replace(state, stop_by=time.monotonic() + settings.stop.grace, failure=failure)
        return state

    def _reap(self, key: Function, wanted: int = 0) -> int | None:
        """Take the exit status of this worker's own child; return it if it is that of ``wanted``."""
        children = self._children.get()
        if (pid := children.get(key)) is None:
            return None
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # another thread, or an event loop that reaps all children, was first
            children.pop(key, None)
            return None
        if not ended:
            return None
        children.pop(key, None)
        return os.waitstatus_to_exitcode(status) if pid == wanted else None

    def _last_words(self, key: Function, state: _State, code: int | None) -> str:
        if code is None:
            text = "exited"
        else:
            text = f"exited with status {code}" if code >= 0 else f"was ended by signal {-code}"
        if state.ready:
            return text
        last = _last_lines(self._file(key, "log"))
        return f"{text} before it was ready" + (f": {last}" if last else "")

    def _trim_log(self, key: Function) -> None:
        log = self._file(key, "log")
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > _LOG_BYTES:
                os.truncate(log, 0)

    # -- start and stop

    def _start(self, key: Function) -> float | None:
        """Start the process unless it runs. While an old one is being stopped: when that will be killed."""
        with self._locked(key):
            state = self._settle(key)
            if not state.pid:
                state = self._launch(key)
                try:
                    self._write(key, state)
                except BaseException:  # nobody would know of the process
                    state.process.signal(signal.SIGKILL)
                    raise
            return state.stop_by

    def _launch(self, key: Function) -> _State:
        function = self._functions[key]
        port = self._free_port()
        env = {"PORT": "{port}", **function.env}
        self._reap(key)
        with open(self._file(key, "log"), "ab", opener=_private) as log:
            log.truncate(0)
            try:
                process = subprocess.Popen(  # noqa: S603 - the command is the configuration's
                    [word.replace("{port}", str(port)) for word in function.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=function.cwd,
                    env=os.environ | {name: text.replace("{port}", str(port)) for name, text in env.items()},
                    start_new_session=True,
                )
            except OSError as error:
                _log.warning("function %s: %r cannot be started: %s", key, function.command[0], error)
                return _State(failure=f"the command cannot be started: {error.strerror}")
        # The process may outlive us, and _reap takes its status. An object that does not know of an end
        # would warn when it is dropped, and have subprocess reap the process behind our back.
        process.returncode = 0
        self._children.get()[key] = process.pid
        return _State(process.pid, ProcessId.of(process.pid).started, port, since=time.monotonic())

    def _free_port(self) -> int:
        """One that nothing listens on, and that no other function was given and may be about to use."""
        taken = {self._read(key).port for key in self._functions}
        while True:
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                port: int = probe.getsockname()[1]
            if port not in taken:
                return port

    def _may_run(self, key: Function) -> bool:
        try:
            return bool(self._read(key).pid)
        except ProviderError:
            return True

    def _stop(self, keys: Collection[Function], within: float = math.inf) -> None:
        """Stop them all at once. One that is out of reach does not keep the others alive."""
        stop_by: dict[Function, float] = {}
        errors: list[ProviderError] = []
        for key in keys:
            try:
                if (due := self._ask_to_stop(key, within)) is not None:
                    stop_by[key] = due
            except ProviderError as error:
                errors.append(error)
        _raise_first(errors + self._await_stop(stop_by))

    def _ask_to_stop(self, key: Function, within: float) -> float | None:
        """When it will be killed; ``None`` if nothing runs."""
        with self._locked(key):
            state = self._settle(key)
            if not state.pid:
                return None
            stop = self._settings(key).stop
            stop_by = state.stop_by
            if stop_by is None:
                state.process.signal(stop.signum)
                stop_by = time.monotonic() + stop.grace
            # Not from the beginning of it all: another function's lock may have taken that time.
            stop_by = min(stop_by, time.monotonic() + within)
            self._write(key, replace(state, stop_by=stop_by))
            return stop_by

    def _await_stop(self, stop_by: Mapping[Function, float]) -> list[ProviderError]:
        """Return when they are gone, with what went wrong."""
        errors: list[ProviderError] = []
        deadline = _KILL_WAIT + max([time.monotonic(), *stop_by.values()])
        keys: Collection[Function] = stop_by
        while keys := [key for key in keys if self._stopping(key, errors)]:
            # Each error may have kept the others waiting for a lock.
            if time.monotonic() >= deadline + _LOCK_WAIT * len(errors):
                return [*errors, ProviderError(f"not gone although killed: {', '.join(map(str, keys))}")]
            time.sleep(0.01)
        return errors

    def _stopping(self, key: Function, errors: list[ProviderError]) -> bool:
        try:
            with self._locked(key):
                return self._settle(key).stop_by is not None
        except ProviderError as error:
            errors.append(error)
            return False


def _raise_first(errors: Collection[ProviderError]) -> None:
    if errors:
        first, *others = errors
        for other in others:
            first.add_note(f"and {other}")
        raise first


def _out_of_reach(key: Function, error: OSError) -> ProviderError:
    return ProviderError(f"the state of function {key} is out of reach: {error}")


# -- files


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _default_dir(functions: Mapping[Function, ProcessFunction]) -> Path:
    return Path(tempfile.gettempdir()) / f"scalezero-{os.geteuid()}-{digest(functions)}"


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise not_allowed(
            "state_dir", str(path), f"a directory that can be made: {error.strerror}"
        ) from error
    if path.is_symlink():
        raise not_allowed("state_dir", str(path), "a directory, not a symbolic link")
    if found.st_uid != os.geteuid():
        raise not_allowed("state_dir", str(path), "a directory of the user who runs this")
    if found.st_mode & 0o077:
        raise not_allowed("state_dir", str(path), "open to its owner only (mode 0700)")


def _last_lines(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-5:])[-500:]
