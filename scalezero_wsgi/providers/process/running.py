"""What runs on this host, of all state directories that this user has in the system's temporary one."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ...model import Function, ProviderError, SettingError
from . import files
from .files import StateDirectory
from .provider import ProcessProvider
from .state import Phase


@dataclass(frozen=True, slots=True)
class Running:
    """A process that runs a function.

    :param age: seconds since it was started, or resumed.
    :param log: the file that has what it wrote.
    """

    function: Function
    phase: Phase
    pid: int
    port: int
    age: float
    log: Path

    @property
    def state_dir(self) -> Path:
        """The directory that its workers share."""
        return self.log.parent


def running(state_dir: Path | None = None) -> list[Running]:
    """Return what runs. Changes nothing.

    :param state_dir: one directory; ``None``: all in the system's temporary one that are this user's.
    :raises SettingError: the directory is none of this user's.
    :raises ProviderError: a state cannot be read.
    """
    if state_dir is None:
        return [each for path in files.paths_of_this_user() if _is_private(path) for each in _in(path)]
    if not state_dir.is_dir():
        raise SettingError(f"state_dir: {str(state_dir)!r} is not there")
    return _in(state_dir)


def stop(processes: Collection[Running]) -> None:
    """Stop processes, each with the signal and the grace that it was started with, and wait for their end.

    :raises ProviderError: a state cannot be read or written, or a process cannot be killed. All others have
        been stopped nevertheless.
    """
    errors: list[ProviderError] = []
    for path in {each.state_dir for each in processes}:
        functions = [each.function for each in processes if each.state_dir == path]
        try:
            ProcessProvider({}, state_dir=path).stop(functions)
        except ProviderError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _is_private(path: Path) -> bool:
    try:
        StateDirectory(path)
    except SettingError:  # somebody else has put it there
        return False
    return True


def _in(path: Path) -> list[Running]:
    states = StateDirectory(path)
    found = []
    for function in sorted(states.functions()):
        state = states.read(function)
        if state.runs and state.process.lives():
            age = time.monotonic() - state.started_at
            log = states.log_path(function)
            found.append(Running(function, state.phase, state.process.pid, state.port, age, log))
    return found
