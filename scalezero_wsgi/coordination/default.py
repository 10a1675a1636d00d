"""The store of gunicorn's workers when none is configured: a SQLite file for each gunicorn master."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..model import SettingError
from ..servers.gunicorn import loading_gunicorn
from .base import Coordination

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("scalezero_wsgi")

ABANDONED = 86_400.0
"""Seconds without a write after which a file of another container counts as abandoned."""

_numbers: Iterator[int] = itertools.count()


def default_coordination(least_workers: int = 2) -> Coordination | None:
    """Return the store for a middleware that is constructed while gunicorn loads the application.

    All workers of a master construct their middlewares in the same order, so the middlewares with the same
    number share a file. A master that replaces another one (USR2) has a file of its own, because its
    configuration may differ.

    :param least_workers: with fewer of them there is no store.
    :return: ``None`` outside gunicorn, with too few workers, and if the file cannot be made.
    """
    gunicorn = loading_gunicorn()
    if gunicorn is None or gunicorn.workers < least_workers:
        return None
    return _store_of(gunicorn.master, gunicorn.uid)


def own_coordination() -> Coordination | None:
    """Return the store for the workers of a gunicorn that this process is about to become the master of.

    :return: ``None`` if the file cannot be made.
    """
    return _store_of(os.getpid(), os.geteuid())


def _store_of(pid: int, uid: int) -> Coordination | None:
    master = _Master.of(str(pid))
    if master is None:
        return None  # not Linux: a file of another gunicorn might have the same name
    directory = Path(tempfile.gettempdir()) / f"scalezero-{uid}"
    try:
        from .sqlite import SQLiteCoordination

        store = SQLiteCoordination(directory / f"gunicorn-{'-'.join(master)}-{next(_numbers)}.db", owner=uid)
        _sweep(directory, master.namespace)
    except (ImportError, OSError, SettingError) as error:
        _warn(str(error))
        return None
    return store


@functools.cache  # once, however many middlewares there are
def _warn(why: str) -> None:
    logger.warning("the workers do not meet, each is on its own: %s", why)


class _Master(NamedTuple):
    """The identity of a running process.

    :ivar namespace: its PID namespace: containers may share the directory.
    :ivar started: when it started, in clock ticks since boot: process ids are reused.
    """

    namespace: str
    pid: str
    started: str

    @classmethod
    def of(cls, pid: str) -> _Master | None:
        """Return the process that has this id now; ``None`` if there is none, or no ``/proc``."""
        try:
            namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
            # The 22nd field; the second may have spaces and parentheses in it (proc(5)).
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        except OSError:
            return None
        return cls(namespace, pid, stat.rpartition(")")[2].split()[19])


def _sweep(directory: Path, here: str) -> None:
    """Remove the files of masters that have ended.

    :param here: this process's PID namespace.
    """
    for path in directory.glob("gunicorn-*"):
        match = re.match(r"gunicorn-(\d+)-(\d+)-(\d+)-", path.name)
        if match is None:
            continue
        if match[1] == here:
            ended = _Master.of(match[2]) != match.groups()
        else:  # another container's: its processes are not visible here, but their writes are
            ended = _last_write(directory, match[0]) < time.time() - ABANDONED
        if ended:
            path.unlink(missing_ok=True)


def _last_write(directory: Path, prefix: str) -> float:
    times = [0.0]
    for path in directory.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)
