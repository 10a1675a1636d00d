"""What is known about the server: its capacity, its heartbeat, and whether the worker was told to stop.

WSGI does not define this. ``integrations.gunicorn`` fills it in for gunicorn; the capacity of uWSGI, waitress
and cheroot is read from their own objects.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._lib.per_process import PerProcess
from .gunicorn import gunicorn_on_stack

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

UNKNOWN_CAPACITY = 100
"""Requests that a threaded server is assumed to serve at once when nothing says how many."""

HOOK = "scalezero_wsgi.integrations.gunicorn"

_log = logging.getLogger("scalezero_wsgi")


@dataclass(slots=True)
class Server:
    """What is known about the server in one worker process.

    :ivar told: whether an integration filled this in.
    :ivar capacity: how many requests it can serve at once; ``None`` if it has not said.
    :ivar keep_alive: tells the server's master that this worker is alive although it waits.
    :ivar stopping: whether the worker was told to stop.
    """

    told: bool = False
    capacity: int | None = None
    keep_alive: Callable[[], object] = lambda: None
    stopping: Callable[[], bool] = lambda: False


this_server = PerProcess(Server).get
"""Return the server of this process; an integration fills it in."""


_when_serving: list[weakref.WeakMethod[Callable[[bool], object]]] = []


def when_serving(start: Callable[[bool], object]) -> None:
    """Have a bound method called in each worker that is about to serve, where the server can tell. Its object
    may end before that.

    :param start: it is given whether the server has other workers, which serve the same application.
    """
    _when_serving.append(weakref.WeakMethod(start))


def serving(multiprocess: bool) -> None:
    """Tell those who want to know that this worker is about to serve; called by an integration."""
    for reference in _when_serving:
        start = reference()
        if start is not None:
            start(multiprocess)


_when_ending: list[weakref.WeakMethod[Callable[[float, Collection[int]], object]]] = []


def when_ending(stop: Callable[[float, Collection[int]], object]) -> None:
    """Have a bound method called once all workers have ended, where that is asked for. Its object may end
    before that.

    :param stop: it is given for how many seconds it may take, and the ids of worker processes that were
        killed.
    """
    _when_ending.append(weakref.WeakMethod(stop))


def ending(within: float, killed: Collection[int] = ()) -> None:
    """Tell those who want to know that all workers have ended; called by an integration.

    :param within: seconds that they may take together.
    """
    deadline = time.monotonic() + within
    for reference in _when_ending:
        stop = reference()
        if stop is not None:
            stop(max(0.0, deadline - time.monotonic()), killed)


def capacity_of(environ: WSGIEnvironment) -> int:
    """Return how many requests the server can serve at once, as far as that can be found out.

    :param environ: of any request; call this in the thread that serves that request.
    """
    # uWSGI's greenlets come before wsgi.multithread, which is false with them.
    known = this_server().capacity or _uwsgi() or _waitress(environ) or _cheroot()
    if known is not None:
        return known
    return UNKNOWN_CAPACITY if environ.get("wsgi.multithread", True) else 1


def room_to_wait(capacity: int) -> int:
    """Return how many requests may wait.

    Keep a quarter of the capacity, and at least one place, free for warm requests and health checks.
    If there is only one place, one request may wait in it.

    :param capacity: how many requests the server can serve at once.
    """
    return max(1, capacity - max(1, -(-capacity // 4)))


ROOM = 1000
"""Requests that may wait in one process, if ``max_waiting`` is not set, where they take no slot."""


def room_for(connections: int | None = None, files: int | None = None) -> int:
    """Return how many requests may wait where they take no slot of the server.

    Each has a connection, and so a file. A quarter of both stays free.

    :param connections: how many the server takes at once.
    :param files: how many it can have open, if that is less than the system lets it.
    """
    limits = [limit for limit in (connections, files, open_files()) if limit is not None]
    return min([ROOM, *map(room_to_wait, limits)])


def open_files() -> int | None:
    """Return how many files this process may have open; ``None`` if the system does not say."""
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _uwsgi() -> int | None:
    uwsgi: Any = sys.modules.get("uwsgi")  # exists only inside uWSGI
    cores = getattr(uwsgi, "cores", None)  # of one process: its threads or its greenlets
    return cores if isinstance(cores, int) else None


def _waitress(environ: WSGIEnvironment) -> int | None:
    # This is a method of the channel, which has the server's adjustments.
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    threads = getattr(getattr(channel, "adj", None), "threads", None)
    return threads if isinstance(threads, int) else None


def _cheroot() -> int | None:
    thread = cheroot_thread()
    threads = getattr(getattr(getattr(thread, "server", None), "requests", None), "min", None)
    return threads if isinstance(threads, int) and threads > 0 else None


def cheroot_thread() -> Any:
    """Return the current thread if it is cheroot's, with its ``server`` and ``conn``; else ``None``."""
    thread = threading.current_thread()
    return thread if type(thread).__module__ == "cheroot.workers.threadpool" else None


# gunicorn's workers without the integration: a request that waits looks like one that hangs

_longest_wait = 0.0
_most_waiting = 0
_warned = False


def longest_wait() -> float:
    """Return the longest ``max_wait``, in seconds, of the middlewares that were made in this process or
    before it was forked."""
    return _longest_wait


def most_waiting() -> int:
    """Return the largest ``max_waiting`` that was set for these middlewares; 0 if none was."""
    return _most_waiting


def middleware_made(max_wait: float, max_waiting: int | None = None) -> None:
    """Note how many seconds a new middleware may hold a request, and how many of them; warn if that hurts
    gunicorn's workers."""
    global _longest_wait, _most_waiting
    _longest_wait = max(_longest_wait, max_wait)
    _most_waiting = max(_most_waiting, max_waiting or 0)
    if HOOK not in sys.modules:
        warn_if_waiting_hurts()


def warn_if_waiting_hurts() -> None:
    """Log, once, if gunicorn will kill a worker whose request waits, or that takes all its threads.

    Cheap if there is nothing to log.
    """
    global _warned
    if _warned or this_server().told:
        return
    gunicorn = gunicorn_on_stack()
    if gunicorn is None:
        return
    cfg = gunicorn.config
    if cfg.worker_class_str == "gthread":
        _warned = True
        _log.warning(
            "a request that waits for its function takes one of its %d threads from a gthread worker, so that"
            " %d of them stop it, health checks included; with `from %s import *` in gunicorn.conf.py"
            " it takes none, and %s may wait in each worker",
            cfg.threads,
            cfg.threads,
            HOOK,
            f"{ROOM:,}",
        )
    elif cfg.worker_class_str in ("sync", "tornado") and 0 < cfg.timeout <= _longest_wait:
        _warned = True
        _log.warning(
            "a request may wait for %g s here (max_wait), but gunicorn kills a %s worker that is silent for"
            " %g s: put `from %s import *` into gunicorn.conf.py, or set max_wait below gunicorn's timeout,"
            " or take gthread workers",
            _longest_wait,
            cfg.worker_class_str,
            cfg.timeout,
            HOOK,
        )
