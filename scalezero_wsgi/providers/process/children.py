"""The processes that this worker has started itself: only their parent can take their exit status."""

from __future__ import annotations

import os
import subprocess
import time
from typing import IO

from ..._lib.per_process import PerProcess
from ...model import Function
from .config import ProcessFunction
from .group import ProcessId

_END = 1.0
"""Seconds that a process may take from the beginning of its end to its exit status: it frees its memory, and
may write a core file before."""


class Children:
    """Starts processes and takes their exit statuses. Safe for threads and after a fork."""

    def __init__(self) -> None:
        self._pids: PerProcess[dict[Function, int]] = PerProcess(dict)

    def start(self, key: Function, function: ProcessFunction, port: int, log: IO[bytes]) -> ProcessId:
        """Start the function's command in a session of its own.

        :param log: where its output goes.
        :raises OSError: it cannot be started.
        """
        self.reap(key)
        env = {"PORT": "{port}", **function.env}
        process = subprocess.Popen(  # noqa: S603 - the command is the configuration's
            [word.replace("{port}", str(port)) for word in function.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=function.cwd,
            env=os.environ | {name: text.replace("{port}", str(port)) for name, text in env.items()},
            start_new_session=True,
        )
        # The process may outlive us, and reap() takes its status. An object that does not know of an end
        # would warn when it is dropped, and have subprocess reap the process behind our back.
        process.returncode = 0
        self._pids.get()[key] = process.pid
        return ProcessId.of(process.pid)

    def reap(self, key: Function, wanted: int = 0) -> int | None:
        """Take the exit status of this worker's child, if it has ended.

        :param wanted: the process of interest; it may be another worker's.
        :return: the exit code, if it is that of ``wanted``.
        """
        pids = self._pids.get()
        if (pid := pids.get(key)) is None:
            return None
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # another thread, or an event loop that reaps all children, was first
            pids.pop(key, None)
            return None
        if not ended:
            return None
        pids.pop(key, None)
        return os.waitstatus_to_exitcode(status) if pid == wanted else None

    def reap_soon(self, key: Function, wanted: int) -> int | None:
        """Take the exit status of this worker's child, which has begun to end: wait for it a moment."""
        deadline = time.monotonic() + _END
        while True:
            code = self.reap(key, wanted)
            if code is not None or self._pids.get().get(key) != wanted or time.monotonic() >= deadline:
                return code
            time.sleep(0.001)

    def reap_former(self, key: Function, pid: int) -> None:
        """Reap a child that is no longer the function's process, ``pid``: it would stay a zombie."""
        if self._pids.get().get(key, pid) != pid:
            self.reap(key)
