"""gunicorn's hooks, by one line in ``gunicorn.conf.py``::

    from scalezero_wsgi.integrations.gunicorn import *

In a gthread worker a request that waits then takes none of the threads: another one is started, and 1,000
may wait, while never more than ``threads`` of them are in the application. Of other workers the middleware
knows how many requests they serve at once, and leaves a quarter of them free. A request that waits keeps
the heartbeat of a sync worker, so that a start may take longer than ``--timeout``. When the worker is told
to stop (TERM, a reload with HUP), those who wait get 503 and ``Retry-After`` at once. Idle functions go back
to zero also where no request comes. And the log says at start which settings will hurt.

If ``gunicorn.conf.py`` has a hook of that name already, call this one from it::

    from scalezero_wsgi.integrations import gunicorn as scalezero

    def post_worker_init(worker):
        scalezero.post_worker_init(worker)
        ...

By default the functions outlive gunicorn. One more line has its master take those to zero in the end that may
go there by themselves (``idle_after``), unless other servers of the fleet go on::

    from scalezero_wsgi.integrations.gunicorn import stop_functions as on_exit

For gthread, a worker class does the same without a hook::

    worker_class = "scalezero_wsgi.integrations.gunicorn.ThreadWorker"

It stands on the worker's ``alive``, ``notify()``, ``nr``, ``max_requests`` and ``cfg``, which gunicorn's own
workers share, and on gthread's ``get_thread_pool()``, ``tpool`` and ``worker_connections``. A request's
thread is never interrupted.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from gunicorn.workers import gthread
from gunicorn.workers.base_async import AsyncWorker

from ..servers.server import (
    ROOM,
    ending,
    longest_wait,
    most_waiting,
    open_files,
    room_for,
    room_to_wait,
    serving,
    this_server,
)
from ..servers.thread_pool import ThreadPool

__all__ = ["post_worker_init"]  # not stop_functions: that is asked for by itself

HEARTBEAT = 0.5
"""Seconds between two heartbeats of a worker that waits; gunicorn's shortest time-out is 1."""

STOP_WITHIN = 15.0
"""Seconds that the master takes at most to stop functions, once its workers have ended. Each function's own
grace counts."""

LONG_WAIT = 5.0
"""Seconds of ``max_wait`` from which on a worker's restart by ``max_requests`` is worth a warning."""

_log = logging.getLogger("scalezero_wsgi")


def post_worker_init(worker: Any) -> None:
    """Tell the middleware about its worker; called in each worker once the application is loaded."""
    server = this_server()
    if server.told:
        return
    server.told = True
    server.capacity = _capacity(worker)
    server.stopping = _Stopping(worker)
    warnings = []
    if isinstance(worker, gthread.ThreadWorker):
        warnings += _install_pool(worker)
    elif not isinstance(worker, AsyncWorker):
        # The others give their sign of life from a loop of its own, which must be seen to hang.
        server.keep_alive = _Heartbeat(worker)
    serving(worker.cfg.workers > 1)
    if worker.age == 1:  # the first of them speaks for all
        for warning in [*warnings, *_warnings(worker, server.capacity)]:
            _log.warning(warning)


def stop_functions(server: Any) -> None:
    """Take the functions to zero that may go there; called in the master, as ``on_exit``.

    Without ``preload_app`` the master has no middleware: it loads the application for that. A master that was
    replaced (USR2), or was to replace another one, leaves the functions to that.
    """
    # A new master notices now and then only that the old one has ended, which was its parent.
    if server.reexec_pid or (server.master_pid and server.master_pid == os.getppid()):
        _log.info("no function is stopped at the end, for another master goes on")
        return
    try:
        server.app.wsgi()
    except Exception:  # noqa: BLE001  an application may raise anything
        _log.exception("no function is stopped at the end, for the application could not be loaded")
        return
    ending(STOP_WITHIN, list(server.WORKERS))  # those that were killed and not waited for yet


class ThreadWorker(gthread.ThreadWorker):  # type: ignore[misc, unused-ignore]
    """A gthread worker that does by itself what the hook does for one."""

    def run(self) -> None:
        """Serve until told to stop."""
        post_worker_init(self)
        super().run()


def _capacity(worker: Any) -> int:
    if isinstance(worker, AsyncWorker):
        return int(worker.cfg.worker_connections)
    if isinstance(worker, gthread.ThreadWorker):
        return int(worker.cfg.threads)
    return 1


def _install_pool(worker: Any) -> list[str]:
    """Give a gthread worker a thread pool in which a thread that waits does not count.

    Nothing was submitted to its own one yet, and so that has no threads.

    :return: what is to be warned of.
    """
    own = getattr(gthread.ThreadWorker, "get_thread_pool", None)
    if own is None or getattr(type(worker), "get_thread_pool", None) is not own or not worker.tpool:
        return [
            f"the thread pool of {type(worker).__module__}.{type(worker).__qualname__} is not gunicorn's own"
            " get_thread_pool(): it stays as it is, and a request that waits for its function takes one of"
            f" its {worker.cfg.threads} threads"
        ]
    default = worker.cfg.settings["worker_connections"].default
    if worker.worker_connections == default:
        # It counts those who wait. Who has set it has set it for that as well.
        worker.worker_connections = default + ROOM
    worker.tpool.shutdown(wait=False)
    worker.tpool = ThreadPool(worker.cfg.threads, room_for(worker.worker_connections))
    wanted = most_waiting() or ROOM
    limits = {
        "worker_connections": worker.worker_connections,
        "the limit of open files (ulimit -n)": open_files(),
    }
    return [
        f"{name} is {limit:,}: a quarter of it stays free, and so {room_to_wait(limit):,} requests may wait"
        f" in a worker; for {wanted:,} (max_waiting) it must be {-(-wanted * 4 // 3):,} at least"
        for name, limit in limits.items()
        if limit is not None and room_to_wait(limit) < wanted
    ]


class _Heartbeat:
    """Notify the arbiter at most every ``HEARTBEAT`` seconds: requests that wait call this more often."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._last = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._last + HEARTBEAT:
            self._last = now
            self._worker.notify()


class _Stopping:
    """Whether those who wait must go.

    A worker that has served ``max_requests`` is not alive either, but lets its requests end: they may wait
    for as long as that allows, short of a second in which they are answered.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._since: float | None = None

    def __call__(self) -> bool:
        worker = self._worker
        if worker.alive:
            return False
        now = time.monotonic()
        if self._since is None:
            self._since = now
        restarts_itself = worker.nr >= worker.max_requests
        return not restarts_itself or bool(now >= self._since + worker.cfg.graceful_timeout - 1.0)


def _warnings(worker: Any, capacity: int) -> list[str]:
    cfg, wait = worker.cfg, longest_wait()
    warnings = []
    if capacity == 1 and cfg.workers == 1:
        warnings.append(
            "gunicorn runs one worker that serves one request at a time: while a request waits for its"
            " function nothing else is answered, health checks included; take `-k gthread --threads 16`"
            " or more workers"
        )
    if cfg.max_requests and capacity > 1 and wait >= LONG_WAIT:
        warnings.append(
            f"max_requests is {cfg.max_requests}: a worker that has served them takes no new connections, and"
            f" is not replaced, while a request waits in it, up to {min(wait, cfg.graceful_timeout):g} s;"
            " take several workers with max_requests_jitter, a shorter max_wait, or no max_requests"
        )
    return warnings
