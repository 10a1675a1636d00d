"""A gunicorn.conf.py with an access log of JSON that tells times to the microsecond."""

import time

from gunicorn.glogging import Logger


class ExactLogger(Logger):
    """gunicorn itself tells whole seconds."""

    def now(self) -> str:
        return f"{time.time():.6f}"


logger_class = ExactLogger
access_log_format = (
    '{"time": %(t)s, "request": "%(r)s", "status": %(s)s, "duration_us": %(D)s,'
    ' "server_timing": "%({server-timing}o)s"}'
)
