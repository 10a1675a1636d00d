"""Watches from when to when processes live, by what the kernel says."""

from __future__ import annotations

import os
import select
import threading
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class Lives(threading.Thread):
    """Watches the processes of a program that are a site's, until it is told to end.

    A process must live for longer than the pause between two looks, or it may be missed.

    :param program: what is part of their command line.
    :param idle: the site's ``$IDLE``, which they have as well: another test may run the same program.
    :ivar ended: the last argument of each, and when it began and ended, in seconds since the epoch.
    """

    def __init__(self, program: Path, idle: Path, pause: float = 0.05) -> None:
        super().__init__(daemon=True)
        self._program, self._variable, self._pause = bytes(program), b"IDLE=%b" % bytes(idle), pause
        self._watched: dict[int, tuple[int, str, float]] = {}
        self._told_to_end = threading.Event()
        self.ended: list[tuple[str, float, float]] = []

    def run(self) -> None:
        poll = select.poll()
        others: set[int] = set()
        while not self._told_to_end.is_set():
            pids = {int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal()}
            others &= pids
            for pid in pids - others - self._watched.keys():
                self._begin(pid, poll, others)
            until = time.monotonic() + self._pause
            while (left := until - time.monotonic()) > 0:
                now_ended = {descriptor for descriptor, _ in poll.poll(left * 1000)}
                self._note(now_ended, poll)

    def _begin(self, pid: int, poll: select.poll, others: set[int]) -> None:
        try:
            descriptor = os.pidfd_open(pid)
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if self._program not in command or self._variable not in self._environ(pid):
                os.close(descriptor)
                if time.time() > self._began(pid) + 1:  # one that is younger may not have called exec yet
                    others.add(pid)
                return
            self._watched[pid] = descriptor, command.split(b"\0")[-2].decode(), self._began(pid)
            poll.register(descriptor, select.POLLIN)
        except (OSError, IndexError):
            pass  # it has ended

    def _note(self, now_ended: set[int], poll: select.poll) -> None:
        for pid, (descriptor, name, began_at) in list(self._watched.items()):
            if descriptor in now_ended:
                self.ended.append((name, began_at, time.time()))
                poll.unregister(descriptor)
                os.close(descriptor)
                del self._watched[pid]

    @staticmethod
    def _environ(pid: int) -> list[bytes]:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    @staticmethod
    def _began(pid: int) -> float:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        up_for = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - up_for + int(ticks) / TICKS

    def pids(self) -> list[int]:
        """Return those that live, as of the last look."""
        return list(self._watched)

    def end(self) -> list[tuple[str, float, float]]:
        """End, and return the last argument of each, and when it began and ended; one that lives ends now."""
        self._told_to_end.set()
        self.join()
        lasting = [(name, began_at, time.time()) for _, name, began_at in self._watched.values()]
        for descriptor, _, _ in self._watched.values():
            os.close(descriptor)
        return self.ended + lasting
