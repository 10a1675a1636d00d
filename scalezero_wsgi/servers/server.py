"""The server around us: how many requests it can hold, its heartbeat, and whether it is told to stop.

WSGI tells nothing of this. ``integrations.gunicorn`` does; uWSGI, waitress and cheroot can be looked at.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .._lib.per_process import PerProcess

if TYPE_CHECKING:
    from types import FrameType

    from _typeshed.wsgi import WSGIEnvironment

UNKNOWN_CAPACITY = 100
"""Requests that a threaded server is taken to serve at once when nothing tells how many."""

HOOK = "scalezero_wsgi.integrations.gunicorn"

_log = logging.getLogger("scalezero_wsgi")


@dataclass(slots=True)
class Server:
    """What one worker process has told of itself.

    :ivar told: whether an integration filled this in.
    :ivar capacity: how many requests it can serve at once; ``None`` if it has not said.
    :ivar keep_alive: tells the server's master that a worker which waits is alive.
    :ivar stopping: whether the worker was told to stop.
    """

    told: bool = False
    capacity: int | None = None
    keep_alive: Callable[[], object] = lambda: None
    stopping: Callable[[], bool] = lambda: False


_servers: PerProcess[Server] = PerProcess(Server)


def this_server() -> Server:
    """The server of this process; an integration fills it in."""
    return _servers.get()


def capacity_of(environ: WSGIEnvironment) -> int:
    """How many requests the server can serve at once, as well as it can be told.

    :param environ: of any of its requests; to be asked in the thread that serves it.
    """
    # uWSGI's greenlets come before wsgi.multithread, which is false with them.
    known = this_server().capacity or _uwsgi() or _waitress(environ) or _cheroot()
    if known is not None:
        return known
    return UNKNOWN_CAPACITY if environ.get("wsgi.multithread", True) else 1


def room_to_wait(capacity: int) -> int:
    """How many requests may wait: a quarter of the places, and never fewer than one, stays free for warm
    requests and health checks. Where there is one place only, one request may wait in it."""
    return max(1, capacity - max(1, -(-capacity // 4)))


def _uwsgi() -> int | None:
    uwsgi: Any = sys.modules.get("uwsgi")  # there only inside uWSGI
    cores = getattr(uwsgi, "cores", None)  # of one process: its threads or its greenlets
    return cores if isinstance(cores, int) else None


def _waitress(environ: WSGIEnvironment) -> int | None:
    # A method of the channel, which knows the server's adjustments.
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    threads = getattr(getattr(channel, "adj", None), "threads", None)
    return threads if isinstance(threads, int) else None


def _cheroot() -> int | None:
    thread = cheroot_thread()
    threads = getattr(getattr(getattr(thread, "server", None), "requests", None), "min", None)
    return threads if isinstance(threads, int) and threads > 0 else None


def cheroot_thread() -> Any:
    """The current thread if it is one of cheroot's, which know their ``server`` and their ``conn``."""
    thread = threading.current_thread()
    return thread if type(thread).__module__ == "cheroot.workers.threadpool" else None


# gunicorn's sync workers, when nobody told them that waiting is not hanging

_longest_wait = 0.0
_warned = False


def longest_wait() -> float:
    """The longest ``max_wait`` of the middlewares that were made in this process or before it was forked,
    in seconds."""
    return _longest_wait


def middleware_made(max_wait: float) -> None:
    """Note for how many seconds a new middleware may hold a request; warn if its server will not bear it."""
    global _longest_wait
    _longest_wait = max(_longest_wait, max_wait)
    if HOOK not in sys.modules:
        warn_if_waiting_kills()


def warn_if_waiting_kills() -> None:
    """Say, once, that gunicorn will kill a worker whose request waits. Cheap when there is nothing to say.

    Only gunicorn's own objects know its time-out, whatever file, option or variable it came from. They are
    on the call stack of an application being loaded, and of a request: the worker, the arbiter and the
    application object, each a ``self`` that has the configuration as ``cfg``.
    """
    global _warned
    if _warned or "gunicorn.arbiter" not in sys.modules or this_server().told:
        return
    cfg = _gunicorn_config()
    if cfg is None or cfg.worker_class_str not in ("sync", "tornado") or not 0 < cfg.timeout <= _longest_wait:
        return
    _warned = True
    _log.warning(
        "a request may wait for %g s here (max_wait), but gunicorn kills a %s worker that is silent for %g s:"
        " put `from %s import *` into gunicorn.conf.py, or set max_wait below gunicorn's timeout,"
        " or take gthread workers",
        _longest_wait,
        cfg.worker_class_str,
        cfg.timeout,
        HOOK,
    )


def _gunicorn_config() -> Any:
    for _, caller in _gunicorns_callers():
        cfg = getattr(caller, "cfg", None)
        if hasattr(cfg, "worker_class_str"):
            return cfg
    return None


class Gunicorn(NamedTuple):
    """A gunicorn that loads its application.

    :ivar workers: how many it starts with.
    :ivar uid: of its workers, which may differ from that of the master.
    :ivar master: the master's process id.
    """

    workers: int
    uid: int
    master: int


def loading_gunicorn() -> Gunicorn | None:
    """The gunicorn on the call stack, if it is about to load its application: in a worker, or in the master
    with ``--preload``."""
    if "gunicorn.arbiter" not in sys.modules:
        return None
    callers = list(_gunicorns_callers())
    loading = [caller for doing, caller in callers if doing == "gunicorn.app.base.wsgi"]
    if not loading or not hasattr(getattr(loading[0], "cfg", None), "worker_class_str"):
        return None
    masters = [caller.ppid for _, caller in callers if hasattr(caller, "ppid")]
    cfg: Any = loading[0].cfg
    return Gunicorn(cfg.workers, cfg.uid, masters[0] if masters else os.getpid())


def _gunicorns_callers() -> Iterator[tuple[str, Any]]:
    """gunicorn's methods on the call stack, each with its ``self``."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("gunicorn."):
            yield f"{module}.{frame.f_code.co_name}", frame.f_locals.get("self")
        frame = frame.f_back
