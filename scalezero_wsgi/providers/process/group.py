"""A process and its group, as the kernel knows them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import NamedTuple, Self

_PROC = Path("/proc")

_EXITING = 0x4
"""``PF_EXITING`` of linux/sched.h: set before the files and sockets of a process are closed."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that leads a group of its own, told from a later one with the same id.

    :param pid: also the group's id; 0: there is none.
    :param started: when, as the kernel counts it; empty where there is no ``/proc``.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the process that has this id now."""
        stat = _read_stat(pid)
        return cls(pid, stat.started if stat else "")

    def lives(self) -> bool:
        """Return whether it is there, and no zombie."""
        stat = _read_stat(self.pid)
        return stat is not None and stat.started == self.started and stat.alive

    def serves(self) -> bool:
        """Return whether it lives and has not begun to end: while it ends, its sockets are closed already."""
        stat = _read_stat(self.pid)
        return stat is not None and stat.started == self.started and stat.alive and not stat.exiting

    def group_lives(self) -> bool:
        """Return whether its group has members other than zombies."""
        try:
            os.killpg(self.pid, 0)
        except OSError:
            return False
        if not self._has_group():
            return False
        if not _has_proc():
            return True
        stats = (_read_stat(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
        return any(stat and stat.group == self.pid and stat.alive for stat in stats)

    def signal(self, signum: Signals) -> None:
        """Signal the process and its children."""
        if self._has_group():
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signum)

    def _has_group(self) -> bool:
        """Return whether the group is still its own; not if the id has gone to another process."""
        stat = _read_stat(self.pid)
        return bool(self.pid) and (stat is None or stat.started == self.started)


NO_PROCESS = ProcessId(0, "")


class _Stat(NamedTuple):
    """A process as the kernel shows it."""

    state: str
    group: int
    exiting: bool
    started: str

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


def _read_stat(pid: int) -> _Stat | None:
    """Ask the kernel for a process; ``None`` if there is none."""
    try:
        # proc_pid_stat(5). The second field is in parentheses and may hold anything, even parentheses.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        if _has_proc():
            return None
    else:
        return _Stat(fields[0], int(fields[2]), bool(int(fields[6]) & _EXITING), fields[19])
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return _Stat("?", pid, False, "")


def _has_proc() -> bool:
    return (_PROC / "self" / "stat").exists()
