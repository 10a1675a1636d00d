"""A gunicorn.conf.py with a hook of its own, which calls the package's."""

from typing import Any

from scalezero_wsgi.integrations import gunicorn as scalezero


def post_worker_init(worker: Any) -> None:
    scalezero.post_worker_init(worker)
    worker.log.info("and the site's own")
