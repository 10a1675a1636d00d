"""``serve --hot``: a changed file of functions is taken over by the workers, without a restart.

Each worker looks at the file by itself. What was taken over last is kept in the functions' state directory:
a worker that starts while the file is wrong begins with that. A function whose command has changed is
labelled by its provider, and replaced without losing a request (``activation/idling/replacing.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from pathlib import Path

from ..coordination import Coordination
from ..middleware import ScaleZeroMiddleware
from ..model import Function, ScaleZeroError
from ..providers.process import ProcessProvider
from ..providers.process.config import functions_from_text
from ..providers.process.files import path_for_file

LOOK_EVERY = 0.5
"""Seconds between two looks. The file is taken over when two of them find it the same: who writes into the
file itself, instead of replacing it, is not read half-way."""

SETTLED = 3.0
"""Seconds after which all workers have taken a change over, and have reported since."""

_log = logging.getLogger("scalezero_wsgi")

_Signature = tuple[int, int, int] | None
"""Time of the last change in nanoseconds, size and inode."""


class HotFile:
    """Of one server. Made in its master; safe after a fork.

    :param file: the file of functions.
    :param provider: the functions' own; it is told what is in the file.
    :param store: where the workers meet.
    """

    def __init__(self, file: str, provider: ProcessProvider, store: Coordination | None) -> None:
        self._file = Path(file)
        self._provider = provider
        self._store = store
        state_dir = path_for_file(file)
        self._kept, self._lock_path = state_dir / ".taken-over.toml", state_dir / ".hot"
        # A function's files never begin with a dot. What an earlier server has kept says nothing here.
        self._kept.unlink(missing_ok=True)
        provider.tells_outdated = True
        self._taken: _Signature = None
        self._found: _Signature = None
        self._lock: int | None = None
        self._refreshed_until: dict[Function, float] = {}
        self._left_since: dict[Function, float] = {}
        self._stopping: set[Function] = set()

    def start(self, app: ScaleZeroMiddleware) -> None:
        """Begin in a worker, before it serves, and go on looking in a thread."""
        self.begin(app)
        threading.Thread(target=self._run, args=(app,), name="scalezero-hot", daemon=True).start()

    def begin(self, app: ScaleZeroMiddleware) -> None:
        """Take over what is in the file; if that is wrong, what another worker has taken over last."""
        self._found = _signature(self._file)
        if not self._take_over(app):
            with contextlib.suppress(FileNotFoundError):
                kept = self._kept.read_text(encoding="utf-8")
                self._provider.take_over(functions_from_text(kept, self._file))

    def _run(self, app: ScaleZeroMiddleware) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            try:
                self.look(app)
            except Exception:  # noqa: BLE001  a full disk, for one, ends no watch
                _log.exception("%s: a look at it failed", self._file)

    def look(self, app: ScaleZeroMiddleware) -> None:
        """Take the file over if it has changed, and stop what was removed once nobody uses it any more."""
        before, self._found = self._found, _signature(self._file)
        if self._found != self._taken and self._found == before:
            self._take_over(app)
        self._refresh(app)
        if self._leads():
            self._stop_removed(app)

    def _refresh(self, app: ScaleZeroMiddleware) -> None:
        """Have asked for what has changed, and again until no worker tells the others what was before."""
        now = time.monotonic()
        self._refreshed_until = {each: until for each, until in self._refreshed_until.items() if now < until}
        for function in self._refreshed_until:
            app.scaler.refresh(function)

    def _take_over(self, app: ScaleZeroMiddleware) -> bool:
        self._taken = self._found
        try:
            text = self._file.read_text(encoding="utf-8")
            changes = self._provider.take_over(functions_from_text(text, self._file))
        except (OSError, ValueError, ScaleZeroError) as error:
            if self._leads():
                why = " ".join(str(error).split())
                _log.error("%s is not taken over, and the functions stay as they were: %s", self._file, why)
            return False
        new = self._kept.with_suffix(f".{os.getpid()}")
        new.write_text(text, encoding="utf-8")
        new.replace(self._kept)
        until = time.monotonic() + SETTLED
        self._refreshed_until |= dict.fromkeys((*changes.new, *changes.changed, *changes.removed), until)
        self._refresh(app)
        if any(changes) and self._leads():
            told = zip(changes._fields, changes, strict=True)
            lists = "; ".join(f"{what}: {', '.join(map(str, which))}" for what, which in told if which)
            _log.info("%s is taken over; %s", self._file, lists)
        return True

    def _leads(self) -> bool:
        """Return whether this worker speaks for all, and stops what was removed: it does until it ends."""
        if self._lock is None:
            # Not inherited by the functions' processes (PEP 446), which may outlive the worker.
            lock = os.open(self._lock_path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    def _stop_removed(self, app: ScaleZeroMiddleware) -> None:
        now, left = time.monotonic(), self._provider.left_over()
        self._left_since = {each: self._left_since.get(each, now) for each in left}
        # Until then a worker may pass a request down by what it knows from before.
        due = [each for each in left if now > self._left_since[each] + app.cache.usable + SETTLED]
        due = [each for each in due if each not in self._stopping]
        if not due:
            return
        reports = [app.reports()[0]]
        if self._store is not None:
            try:
                reports += self._store.workers()
            except Exception:  # noqa: BLE001  without the store nothing is stopped; who lost it reports that
                return
        in_use = {function for report in reports for function in report.in_flight}
        if due := [each for each in due if each not in in_use]:
            self._stopping.update(due)
            threading.Thread(target=self._stop, args=(due,), name="scalezero-hot-stop", daemon=True).start()

    def _stop(self, functions: list[Function]) -> None:
        """Stop them, which takes their grace."""
        try:
            self._provider.stop(functions)
            _log.info("stopped, for they are set no longer: %s", ", ".join(map(str, functions)))
        except ScaleZeroError as error:
            _log.warning("not stopped, though they are set no longer: %s", error)
        finally:
            self._stopping.difference_update(functions)


def _signature(file: Path) -> _Signature:
    """Return what changes with the file; ``None``: it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
