"""A gunicorn.conf.py whose own hook takes the place of the package's."""

from typing import Any

from scalezero_wsgi.integrations.gunicorn import *  # noqa: F403


def post_worker_init(worker: Any) -> None: ...  # type: ignore[no-redef]
