from scalezero_wsgi.integrations.gunicorn import *  # noqa: F403
from scalezero_wsgi.integrations.gunicorn import stop_functions as on_exit  # noqa: F401
