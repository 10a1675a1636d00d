"""A gunicorn.conf.py with the hook, for a gunicorn whose gthread worker has no ``get_thread_pool``."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gunicorn.workers import gthread

from scalezero_wsgi.integrations.gunicorn import *  # noqa: F403

del gthread.ThreadWorker.get_thread_pool


def init_process(self: Any) -> None:
    self.get_thread_pool = lambda: ThreadPoolExecutor(self.cfg.threads)
    _init_process(self)


_init_process = gthread.ThreadWorker.init_process
gthread.ThreadWorker.init_process = init_process  # type: ignore[method-assign]
