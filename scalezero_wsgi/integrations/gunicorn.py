"""gunicorn's hooks, by one line in ``gunicorn.conf.py``::

    from scalezero_wsgi.integrations.gunicorn import *

The middleware then knows how many requests its worker can serve at once, and leaves a quarter of them
free. A request that waits keeps the heartbeat of a sync worker, so that a start may take longer than
``--timeout``. When the worker is told to stop (TERM, a reload with HUP), those who wait get 503 and
``Retry-After`` at once. And the log says at start which settings will hurt.

If ``gunicorn.conf.py`` has a hook of that name already, call this one from it::

    from scalezero_wsgi.integrations import gunicorn as scalezero

    def post_worker_init(worker):
        scalezero.post_worker_init(worker)
        ...

It stands on the worker's ``alive``, ``notify()``, ``nr``, ``max_requests`` and ``cfg``, which gunicorn's own
workers share; a request's thread is never interrupted.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.gthread import ThreadWorker

from ..servers.server import longest_wait, this_server

__all__ = ["post_worker_init"]

HEARTBEAT = 0.5
"""Seconds between two heartbeats of a worker that waits; gunicorn's shortest time-out is 1."""

LONG_WAIT = 5.0
"""Seconds of ``max_wait`` from which on a worker's restart by ``max_requests`` is worth a warning."""

_log = logging.getLogger("scalezero_wsgi")


def post_worker_init(worker: Any) -> None:
    """Tell the middleware about its worker; called in each worker once the application is loaded."""
    server = this_server()
    server.told = True
    server.capacity = _capacity(worker)
    server.stopping = _Stopping(worker)
    if not isinstance(worker, (ThreadWorker, AsyncWorker)):
        # The others give their sign of life from a loop of its own, which must be seen to hang.
        server.keep_alive = _Heartbeat(worker)
    if worker.age == 1:  # the first of them speaks for all
        for warning in _warnings(worker, server.capacity):
            _log.warning(warning)


def _capacity(worker: Any) -> int:
    if isinstance(worker, AsyncWorker):
        return int(worker.cfg.worker_connections)
    if isinstance(worker, ThreadWorker):
        return int(worker.cfg.threads)
    return 1


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
