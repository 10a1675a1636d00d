"""Where gunicorn's workers meet when nothing was configured: a SQLite file of their master's."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
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
"""Seconds without a write after which another container's file counts as left behind."""

_numbers: Iterator[int] = itertools.count()


def default_coordination() -> Coordination | None:
    """The store of a middleware that is being made while gunicorn loads its application.

    All workers of one master make their middlewares in the same order, so those with the same number belong
    together. A master that replaces another one (USR2) has a file of its own: it may have another
    configuration.

    :return: ``None`` in any other case, with one worker, or if there can be no file.
    """
    gunicorn = loading_gunicorn()
    if gunicorn is None or gunicorn.workers < 2:
        return None
    master = _Master.of(str(gunicorn.master))
    if master is None:
        return None  # not Linux: nothing would tell the file from one of another gunicorn
    directory = Path(tempfile.gettempdir()) / f"scalezero-{gunicorn.uid}"
    try:
        from .sqlite import SQLiteCoordination

        store = SQLiteCoordination(
            directory / f"gunicorn-{'-'.join(master)}-{next(_numbers)}.db", owner=gunicorn.uid
        )
        _sweep(directory, master.namespace)
    except (ImportError, OSError, SettingError) as error:
        _warn(str(error))
        return None
    return store


@functools.cache  # once, however many middlewares there are
def _warn(why: str) -> None:
    logger.warning("the workers do not meet, each is on its own: %s", why)


class _Master(NamedTuple):
    """A process that was seen to live.

    :ivar namespace: of process ids: containers may share the directory.
    :ivar started: since boot, in clock ticks: process ids come again.
    """

    namespace: str
    pid: str
    started: str

    @classmethod
    def of(cls, pid: str) -> _Master | None:
        """The process that has this id here and now."""
        try:
            namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
            # The 22nd field; the second may have spaces and parentheses in it (proc(5)).
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        except OSError:
            return None
        return cls(namespace, pid, stat.rpartition(")")[2].split()[19])


def _sweep(directory: Path, here: str) -> None:
    """Remove what masters have left that are gone."""
    for path in directory.glob("gunicorn-*"):
        match = re.match(r"gunicorn-(\d+)-(\d+)-(\d+)-", path.name)
        if match is None:
            continue
        if match[1] == here:
            gone = _Master.of(match[2]) != match.groups()
        else:  # of another container: nothing tells of its processes but that they write
            gone = _last_write(directory, match[0]) < time.time() - ABANDONED
        if gone:
            path.unlink(missing_ok=True)


def _last_write(directory: Path, prefix: str) -> float:
    times = [0.0]
    for path in directory.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)
