"""The directory in which all workers of a host keep what they know of the processes.

Of each function there are four files: ``<function>.json`` is its state, ``<function>.lock`` is held while
that is changed, ``<function>.settings`` says with what the process was started, and ``<function>.log`` has
what it wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...model import Function, ProviderError, SettingError
from ..checks import not_allowed
from .config import ProcessFunction, Ready, Stop, digest, split_name
from .state import ProcessState

LOCK_WAIT = 5.0
"""Seconds that a lock is waited for."""

MAX_LOG_BYTES = 4 * 2**20
"""A longer log is emptied."""


@dataclass(frozen=True, slots=True)
class StartedWith:
    """What is kept of the settings with which a process was started.

    :param digest: the same for equal settings.
    :param stop: how the process is stopped.
    :param ready: when it counts as available; ``None``: an earlier release has not kept that.
    :param source: the file that the settings stood in; empty: not known, or none.
    """

    digest: str
    stop: Stop
    ready: Ready | None = None
    source: str = ""

    @classmethod
    def of(cls, function: Function, settings: ProcessFunction, source: str = "") -> StartedWith:
        """Return it for a function that is about to be started."""
        return cls(digest({function: settings}), settings.stop, settings.ready, source)


class StateDirectory:
    """Reads and writes the files. Safe for threads, forks and any number of processes.

    :param path: made if there is none; only its owner may enter it.
    :raises SettingError: it is not so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        _make_private(path)

    def functions(self) -> list[Function]:
        """Name every function of which there is a state, whoever configured it."""
        return [split_name(path.stem) for path in self._path.glob("*.json")]

    def read(self, function: Function) -> ProcessState:
        """Return the state that was written last. Takes no lock.

        :raises ProviderError: the file cannot be read.
        """
        try:
            return ProcessState.from_file(json.loads(self._file(function, "json").read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return ProcessState()
        except OSError as error:
            raise _out_of_reach(function, error) from error

    def write(self, function: Function, state: ProcessState) -> None:
        """Replace the state. The lock is held.

        :raises OSError: the file cannot be written; :meth:`locked` makes a ``ProviderError`` of it.
        """
        self._replace(function, "json", state.to_file())

    def started_with(self, function: Function) -> StartedWith | None:
        """Return with what the process was started; ``None`` if it is not known: by an earlier release."""
        try:
            content = json.loads(self._file(function, "settings").read_bytes())
            ready = Ready(*content["ready"]) if "ready" in content else None
            stop = Stop(content["signal"], content["grace"])
            return StartedWith(str(content["digest"]), stop, ready, str(content.get("source", "")))
        except (OSError, ValueError, TypeError, LookupError, SettingError):
            return None

    def write_started_with(self, function: Function, settings: StartedWith) -> None:
        """Replace what :meth:`started_with` returns. The lock is held.

        :raises OSError: as :meth:`write`.
        """
        stop = settings.stop
        content: dict[str, object] = {
            "digest": settings.digest,
            "signal": stop.signal,
            "grace": stop.grace,
            "source": settings.source,
        }
        if settings.ready is not None:
            content["ready"] = [settings.ready.path, settings.ready.timeout]
        self._replace(function, "settings", content)

    @contextlib.contextmanager
    def locked(self, function: Function) -> Iterator[None]:
        """Hold the function's lock for the block.

        :raises ProviderError: it is not free within ``LOCK_WAIT``, or the block raised an ``OSError``.
        """
        # Never a blocking flock: it would halt all greenlets of a gevent worker.
        deadline = time.monotonic() + LOCK_WAIT
        try:
            with open(self._file(function, "lock"), "a", encoding="utf-8", opener=_private) as file:
                while True:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() >= deadline:
                            raise ProviderError(f"the state of function {function} stays locked") from None
                        time.sleep(0.002)
                try:
                    yield
                finally:
                    # Closing is not enough when somebody forked meanwhile: the copy would keep the lock.
                    fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            raise _out_of_reach(function, error) from error

    @contextlib.contextmanager
    def new_log(self, function: Function) -> Iterator[IO[bytes]]:
        """Open an empty log for a process to write to."""
        with open(self._file(function, "log"), "ab", opener=_private) as log:
            log.truncate(0)
            yield log

    def trim_log(self, function: Function) -> None:
        """Empty the log if it has grown too long."""
        log = self._file(function, "log")
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > MAX_LOG_BYTES:
                os.truncate(log, 0)

    def last_lines(self, function: Function) -> str:
        """Return the end of the log: five lines and 500 characters at most."""
        try:
            with self._file(function, "log").open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
                lines = log.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-5:])[-500:]

    def log_path(self, function: Function) -> Path:
        """Return where the process's output is."""
        return self._file(function, "log")

    def _replace(self, function: Function, kind: str, content: object) -> None:
        new = self._file(function, "tmp")
        with open(new, "w", encoding="utf-8", opener=_private) as file:
            json.dump(content, file)
        new.replace(self._file(function, kind))

    def _file(self, function: Function, kind: str) -> Path:
        return self._path / f"{function}.{kind}"


def default_path(functions: Mapping[Function, ProcessFunction]) -> Path:
    """Return the directory in the system's temporary one that equal functions of one user share."""
    return _of_this_user(digest(functions))


def path_for_file(file: str | os.PathLike[str]) -> Path:
    """Return the directory of the functions of a file, whatever is in it; another one for another path."""
    return _of_this_user(hashlib.sha256(os.fsencode(Path(file).resolve())).hexdigest()[:16])


def paths_of_this_user() -> list[Path]:
    """Return every directory in the system's temporary one that the two above may have named."""
    return sorted(Path(tempfile.gettempdir()).glob(_of_this_user("*").name))


def _of_this_user(key: str) -> Path:
    return Path(tempfile.gettempdir()) / f"scalezero-{os.geteuid()}-{key}"


def _out_of_reach(function: Function, error: OSError) -> ProviderError:
    return ProviderError(f"the state of function {function} is out of reach: {error}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        allowed = f"a directory that can be made: {error.strerror}"
        raise not_allowed("state_dir", str(path), allowed) from error
    if path.is_symlink():
        raise not_allowed("state_dir", str(path), "a directory, not a symbolic link")
    if found.st_uid != os.geteuid():
        raise not_allowed("state_dir", str(path), "a directory of the user who runs this")
    if found.st_mode & 0o077:
        raise not_allowed("state_dir", str(path), "open to its owner only (mode 0700)")
