"""Functions as local commands: for development, small hosts and model servers.

There is no daemon and no supervising thread. The state of a function's process is kept in a small file in
a private directory, and changed only under a file lock; so all workers of a host share the one
process, whoever started it, and a worker that is recycled or killed neither ends nor doubles it. The next
call notices what has happened meanwhile, and acts on it.

For POSIX systems. Where there is no ``/proc``, a process is recognised by its id alone.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import unquote

from ...model import Function, FunctionNotFound, ProviderError, ReplicaStatus
from ..checks import not_allowed
from ..probe import answers
from ..url import read_url
from . import files
from .children import Children
from .config import OUTDATED, ProcessFunction, Ready, Stop, checked_name, digest, functions_from_toml
from .files import StartedWith, StateDirectory
from .group import ProcessId
from .ports import free_port
from .sleep import ask
from .state import HOST, Phase, ProcessState

__all__ = ["ProcessFunction", "ProcessProvider", "Ready", "Stop"]

_log = logging.getLogger("scalezero_wsgi")

_PROBE_WAIT = 1.0
_KILL_WAIT = 5.0
_NOT_CONFIGURED = ProcessFunction(["true"])


class Changes(NamedTuple):
    """How the functions that were taken over differ from those before."""

    new: list[Function]
    changed: list[Function]
    removed: list[Function]


class ProcessProvider:
    """Runs each function as one process of this host.

    Safe for threads, forks and any number of workers: they share the process through ``state_dir``, and
    any of them may start it, see it or stop it. It outlives them all; :meth:`stop_all` ends it.

    :param functions: by ``"name"`` or ``"name.namespace"``. A changed command counts from the next start.
    :param state_dir: a directory that only its owner may enter; made if there is none. The default lies
        in the system's temporary directory and is shared by equal ``functions`` of one user.
    :ivar tells_outdated: whether a status has the label ``scalezero.outdated`` when the process was started
        with other settings than the function has now; for who calls :meth:`take_over`.
    :raises SettingError: a function's name, or the directory, is not allowed.
    """

    lists_only_functions = True
    tells_outdated = False

    def __init__(
        self, functions: Mapping[str, ProcessFunction], *, state_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self._functions = _checked(functions)
        path = files.default_path(self._functions) if state_dir is None else Path(state_dir)
        self._states = StateDirectory(path)
        self._children = Children()
        self._source = ""

    @classmethod
    def from_toml(
        cls, path: str | os.PathLike[str], *, state_dir: str | os.PathLike[str] | None = None
    ) -> Self:
        """Read the functions from a file's ``[functions.<name>]`` tables.

        :param path: the file. A relative ``cwd`` in it counts from the directory that it lies in.
        :param state_dir: as for the class.
        :raises SettingError: it cannot be read, or a key or a value in it is not allowed.
        """
        provider = cls(functions_from_toml(path), state_dir=state_dir)
        provider._source = str(Path(path).resolve())
        return provider

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make one from ``process:///path/functions.toml``, with ``state_dir`` as an optional parameter.

        :raises SettingError: as :meth:`from_toml`, or a parameter is unknown.
        """
        parts, keywords = read_url(url, ("state_dir",))
        return cls.from_toml(parts.netloc + unquote(parts.path), **keywords)

    @property
    def functions(self) -> Mapping[Function, ProcessFunction]:
        """What is set for each function."""
        return self._functions

    def take_over(self, functions: Mapping[str, ProcessFunction]) -> Changes:
        """Set these functions in place of those before, all at once. No process is touched.

        What has changed in a command counts from the next start; a function that is not among them is not
        known any more, and what runs of it is :meth:`left_over`.

        :raises SettingError: as the class; then all stays as it was.
        """
        before, after = self._functions, _checked(functions)
        self._functions = after
        return Changes(
            new=[key for key in after if key not in before],
            changed=[key for key in after if key in before and after[key] != before[key]],
            removed=[key for key in before if key not in after],
        )

    def left_over(self) -> list[Function]:
        """Name what runs in the state directory and is not set, or not any more.

        A state that cannot be read counts as one that runs.
        """
        return [key for key in self._states.functions() if key not in self._functions and self._may_run(key)]

    def list_functions(self) -> list[Function]:
        """Name every function, in the order they were given. Asks nothing and never fails."""
        return list(self._functions)

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Return the present status; probes a process that is not ready yet, once.

        Takes a second at most, and a few file reads when the process is ready.

        :raises FunctionNotFound: it was not configured.
        :raises ProviderError: the state cannot be read or written.
        """
        key = self._known(name, namespace)
        return self._status(key, self._observe(key))

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Start the process or let a paused one go on, or stop it.

        :param replicas: 1 or more: start it unless it runs, and return without waiting until it is
            ready. A paused one is replaced if its settings have changed since its start, or if it sleeps and
            does not wake up, which is waited for. While an old process is still being stopped, its end is
            waited for first. 0: stop it, and return when it and
            its children are gone, killed after the grace if need be.
        :raises FunctionNotFound: it was not configured.
        :raises ProviderError: the state cannot be read or written, or the process cannot be killed. A
            command that cannot be started is no error here; it is the status's ``failure``.
        """
        key = self._known(name, namespace)
        if replicas < 1:
            self._stop([key])
        else:
            self._wake(key)
            while (kill_at := self._start(key)) is not None:
                _raise_first(self._await_stop({key: kill_at}))

    def pause(self, name: str, namespace: str) -> None:
        """Halt the process and its children, by SIGSTOP: they keep memory, files and connections, and take no
        time of the processor. One that has a ``sleep`` path is asked to sleep instead.

        :raises FunctionNotFound: it was not configured.
        :raises ProviderError: the state cannot be read or written, or the process does not go to sleep, and
            goes on.
        """
        key = self._known(name, namespace)
        settings = self._settings(key)
        with self._states.locked(key):
            state = self._settle(key)
            if state.phase not in (Phase.STARTING, Phase.READY):
                return
            # First: if this worker died in between, a process that is halted would count as available.
            self._states.write(key, state.paused())
            if settings.sleep is None:
                state.process.signal(signal.SIGSTOP)
                return
        try:  # without the lock: that may take long
            ask(state.port, settings.sleep, settings.ready.timeout)
        except ProviderError as error:
            if error.__cause__ is not None:  # there was no answer: it may still go to sleep
                self._wake(key)
            self._start(key)
            raise

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
            state = self._observe(key, probe_timeout=min(_PROBE_WAIT, max(left, 0.01)))
            status = self._status(key, state)
            left = deadline - time.monotonic()
            if status != seen or left <= 0:
                return status
            pause = 0.05
            if state.phase is Phase.STARTING:
                # Tight at first; a process that takes long is asked less often: 0.2 % of its age.
                pause = min(pause, max(0.005, 0.002 * (time.monotonic() - state.started_at)))
            time.sleep(min(pause, left))

    def stop_all(self, timeout: float) -> None:
        """Stop every process of the state directory, whoever started it, all at once.

        For the final shutdown: a worker that still runs could start one again.

        :param timeout: seconds after which one that was asked to end and has not is killed, if its grace
            has not passed before.
        :raises ProviderError: the state cannot be read or written, or a process cannot be killed. All
            others have been stopped nevertheless.
        """
        self._stop([key for key in self._states.functions() if self._may_run(key)], within=timeout)

    def stop(self, functions: Collection[Function]) -> None:
        """Stop these processes of the state directory, whoever started them, all at once.

        :raises ProviderError: as :meth:`stop_all`.
        """
        self._stop(functions)

    def stop_changed(self, timeout: float) -> list[Function]:
        """Stop what runs in the state directory with other settings than these, or is not set any more.

        For a start after a change: the next request starts the function with what is set now.

        :param timeout: as for :meth:`stop_all`.
        :return: the functions that were stopped.
        :raises ProviderError: as :meth:`stop_all`.
        """
        changed = [key for key in self._states.functions() if self._may_run(key) and self._is_changed(key)]
        self._stop(changed, within=timeout)
        return changed

    def _is_changed(self, key: Function) -> bool:
        function = self._functions.get(key)
        started_with = self._states.started_with(key)
        return function is None or started_with is None or started_with.digest != digest({key: function})

    def _known(self, name: str, namespace: str) -> Function:
        key = Function(name, namespace)
        if key not in self._functions:
            raise FunctionNotFound(name, namespace)
        return key

    def _settings(self, key: Function) -> ProcessFunction:
        """Return what is set for a function; the defaults for one that only an earlier worker knew."""
        return self._functions.get(key, _NOT_CONFIGURED)

    def _ready(self, key: Function, state: ProcessState) -> Ready:
        """Return when the process counts as available: by the settings that it was started with."""
        started_with = self._states.started_with(key) if state.phase is Phase.STARTING else None
        if started_with is None or started_with.ready is None:
            return self._settings(key).ready
        return started_with.ready

    def _status(self, key: Function, state: ProcessState) -> ReplicaStatus:
        labels = self._settings(key).labels
        if self.tells_outdated and state.runs and state.phase is not Phase.STOPPING and self._is_changed(key):
            labels = {**labels, OUTDATED: "true"}
        return replace(state.status(), labels=labels)

    # -- what has become of the process

    def _observe(self, key: Function, probe_timeout: float = _PROBE_WAIT) -> ProcessState:
        """Return the present state. Takes the lock only when it has changed."""
        state = self._states.read(key)
        self._children.reap_former(key, state.process.pid)
        if not state.runs:
            return state
        self._states.trim_log(key)
        ready = self._ready(key, state)
        answered = state.phase is Phase.STARTING and answers(HOST, state.port, ready.path, probe_timeout)
        is_due = time.monotonic() >= state.due(ready.timeout)
        # Without /proc (no start time) only the parent can tell a zombie, and it does so under the lock.
        if state.process.started and state.process.serves() and not answered and not is_due:
            return state
        with self._states.locked(key):
            return self._settle(key, state.process if answered else None)

    def _settle(self, key: Function, answered: ProcessId | None = None) -> ProcessState:
        """Write down what has happened since, act on it, and return the state. The lock is held.

        :param answered: the process that has answered a probe.
        """
        state = self._states.read(key)
        if not state.runs:
            return state
        new = self._next(key, state, state.process == answered)
        if new != state:
            self._states.write(key, new)
        return new

    def _next(self, key: Function, state: ProcessState, answered: bool) -> ProcessState:
        settings = self._settings(key)
        process = state.process
        lives = process.lives()  # first: an end between the two is then seen with its status
        code = self._children.reap(key, process.pid)
        lives = lives and code is None
        if state.phase is Phase.STOPPING:
            if not lives and not process.group_lives():
                return state.gone()
            if time.monotonic() >= state.kill_at:
                process.signal(signal.SIGKILL)
            return state
        if not lives or not process.serves():
            if code is None:
                code = self._children.reap_soon(key, process.pid)
            process.signal(signal.SIGKILL)  # what it left in its group
            return state.exited(self._exit_reason(key, state, code))
        if answered and state.phase is Phase.STARTING:
            return state.answered()
        ready = self._ready(key, state)
        if time.monotonic() >= state.due(ready.timeout):
            process.signal(settings.stop.signum)
            # No waiting here: whoever asks after the grace has it killed.
            failure = f"was not ready within {ready.timeout:g} s"
            return state.stopping(time.monotonic() + settings.stop.grace, failure)
        return state

    def _exit_reason(self, key: Function, state: ProcessState, code: int | None) -> str:
        if code is None:
            text = "exited"
        else:
            text = f"exited with status {code}" if code >= 0 else f"was ended by signal {-code}"
        if state.phase in (Phase.READY, Phase.PAUSED):
            return text
        last = self._states.last_lines(key)
        return f"{text} before it was ready" + (f": {last}" if last else "")

    # -- start and stop

    def _start(self, key: Function) -> float | None:
        """Start the process unless it runs, or let it go on.

        :return: when an old one that is being stopped will be killed; ``None`` if there is none.
        """
        with self._states.locked(key):
            state = self._settle(key)
            if state.phase is Phase.PAUSED:
                state = self._end(key, state) if self._is_changed(key) else self._resume(state)
                self._states.write(key, state)
            elif not state.runs:
                state = self._launch(key, state)
                try:
                    self._states.write(key, state)
                except BaseException:  # nobody would know of the process
                    state.process.signal(signal.SIGKILL)
                    raise
            return state.kill_at if state.phase is Phase.STOPPING else None

    def _wake(self, key: Function) -> None:
        """Ask a process that sleeps to wake up; stop one that does not."""
        state, settings = self._states.read(key), self._settings(key)
        if settings.wake is None or state.phase is not Phase.PAUSED or self._is_changed(key):
            return
        state.process.signal(signal.SIGCONT)  # it was halted, if it had no such path then
        try:
            ask(state.port, settings.wake, settings.ready.timeout)
        except ProviderError as error:
            _log.warning("function %s does not wake up and is started anew: %s", key, error)
            self._stop([key])

    def _resume(self, state: ProcessState) -> ProcessState:
        state.process.signal(signal.SIGCONT)
        return state.resumed(time.monotonic())

    def _launch(self, key: Function, state: ProcessState) -> ProcessState:
        functions = self._functions
        function = functions.get(key)
        if function is None:  # others were taken over meanwhile
            raise FunctionNotFound(*key)
        port = free_port(sorted(functions).index(key), len(functions))
        self._states.write_started_with(key, StartedWith.of(key, function, self._source))
        with self._states.new_log(key) as log:
            try:
                process = self._children.start(key, function, port, log)
            except OSError as error:
                _log.warning("function %s: %r cannot be started: %s", key, function.command[0], error)
                return state.not_launched(f"the command cannot be started: {error.strerror}")
        return state.launched(process, port, time.monotonic())

    def _may_run(self, key: Function) -> bool:
        try:
            return self._states.read(key).runs
        except ProviderError:
            return True

    def _stop(self, keys: Collection[Function], within: float = math.inf) -> None:
        """Stop them all at once. One that is out of reach does not keep the others alive."""
        kill_at: dict[Function, float] = {}
        errors: list[ProviderError] = []
        for key in keys:
            try:
                if (killed_at := self._ask_to_stop(key, within)) is not None:
                    kill_at[key] = killed_at
            except ProviderError as error:
                errors.append(error)
        _raise_first(errors + self._await_stop(kill_at))

    def _ask_to_stop(self, key: Function, within: float) -> float | None:
        """Signal the process unless it was asked before.

        :return: when it will be killed; ``None`` if nothing runs.
        """
        with self._states.locked(key):
            state = self._settle(key)
            if not state.runs:
                return None
            if state.phase is not Phase.STOPPING:
                state = self._end(key, state)
            # Not from the beginning of it all: another function's lock may have taken that time.
            state = state.stopping(time.monotonic() + within)
            self._states.write(key, state)
            return state.kill_at

    def _end(self, key: Function, state: ProcessState) -> ProcessState:
        stop = (self._states.started_with(key) or self._settings(key)).stop
        state.process.signal(stop.signum)
        if state.phase is Phase.PAUSED:  # it is to take the signal, before it does anything else
            state.process.signal(signal.SIGCONT)
        return state.stopping(time.monotonic() + stop.grace)

    def _await_stop(self, kill_at: Mapping[Function, float]) -> list[ProviderError]:
        """Wait until they are gone, and return what went wrong."""
        errors: list[ProviderError] = []
        deadline = _KILL_WAIT + max([time.monotonic(), *kill_at.values()])
        keys: Collection[Function] = kill_at
        while keys := [key for key in keys if self._is_stopping(key, errors)]:
            # Each error may have kept the others waiting for a lock.
            if time.monotonic() >= deadline + files.LOCK_WAIT * len(errors):
                return [*errors, ProviderError(f"not gone although killed: {', '.join(map(str, keys))}")]
            time.sleep(0.01)
        return errors

    def _is_stopping(self, key: Function, errors: list[ProviderError]) -> bool:
        try:
            with self._states.locked(key):
                return self._settle(key).phase is Phase.STOPPING
        except ProviderError as error:
            errors.append(error)
            return False


def _checked(functions: Mapping[str, ProcessFunction]) -> dict[Function, ProcessFunction]:
    checked = {checked_name(key): functions[key] for key in functions}
    for key, function in checked.items():
        if not isinstance(function, ProcessFunction):
            raise not_allowed(f"function {key}", function, "a ProcessFunction")
    return checked


def _raise_first(errors: Collection[ProviderError]) -> None:
    if errors:
        first, *others = errors
        for other in others:
            first.add_note(f"and {other}")
        raise first
