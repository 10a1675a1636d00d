"""A gunicorn.conf.py without the hook, but with the worker class."""

worker_class = "scalezero_wsgi.integrations.gunicorn.ThreadWorker"
