"""A gunicorn.conf.py with the hooks."""

from scalezero_wsgi.integrations.gunicorn import *  # noqa: F403
