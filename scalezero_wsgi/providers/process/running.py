"""What runs on this host, of all state directories that this user has in the system's temporary one."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...model import Function, ProviderError, SettingError
from . import files
from .files import StateDirectory
from .provider import ProcessProvider
from .state import Phase

SERVED = ".served"
"""A file in the directory of functions that a server holds; no function's name begins with a dot."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process that runs a function.

    :param age: seconds since it was started, or resumed.
    :param log: the file that has what it wrote.
    :param source: the file of functions that it was started from; empty: not known, or none.
    """

    function: Function
    phase: Phase
    pid: int
    port: int
    age: float
    log: Path
    source: str = ""

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


def serving(state_dir: Path) -> IO[str]:
    """Note that a server runs the functions of a directory, until what is returned is closed.

    Its functions' processes do not inherit the file (PEP 446), so none of them is taken for a server.
    """
    held = (state_dir / SERVED).open("a")
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def is_served(state_dir: Path) -> bool:
    """Return whether a server runs the functions of a directory, be they up or not."""
    try:
        with (state_dir / SERVED).open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


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
            started_with = states.started_with(function)
            source = "" if started_with is None else started_with.source
            found.append(Running(function, state.phase, state.process.pid, state.port, age, log, source))
    return found
