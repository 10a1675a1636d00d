"""The names of workers in a store. A name says where its process runs, so that others there can find out
whether it still does."""

from __future__ import annotations

import os
import re
import socket
import uuid
import zlib
from collections.abc import Collection
from pathlib import Path


def worker_name() -> str:
    """Return a name that no other worker has, for this process."""
    return f"{socket.gethostname()}:{os.getpid()}:{_process_space()}-{uuid.uuid4().hex[:8]}"


def has_ended(worker: str, killed: Collection[int] = ()) -> bool:
    """Return whether it is certain that a worker's process has ended.

    That can be told of processes that run where this one does: on the same host, since the same boot, in the
    same pid namespace. A container's host may have the name of this one, and its processes the ids of ours.

    :param worker: its name, or one that begins with it.
    :param killed: ids of processes that count as ended: until they are waited for, the system has them still.
    """
    place, _, rest = worker.rpartition(":")
    host, _, pid = place.rpartition(":")
    space = _process_space()
    if host != socket.gethostname() or rest.partition("-")[0] != space or not re.fullmatch("[0-9]{1,9}", pid):
        return False
    return int(pid) in killed or (space != "" and not _exists(int(pid)))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _process_space() -> str:
    """Return what processes have in common that see each other by their ids; nothing without ``/proc``."""
    try:  # as bytes: a worker of another user may not be able to load a codec's module any more
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        namespace = bytes(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
    return f"{zlib.crc32(boot + namespace):08x}"
