"""A gthread worker with a thread pool of the site's own."""

from concurrent.futures import ThreadPoolExecutor

from gunicorn.workers.gthread import ThreadWorker


class OwnPool(ThreadWorker):
    def get_thread_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.cfg.threads, thread_name_prefix="own")
