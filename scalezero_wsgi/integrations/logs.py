"""The events as lines of JSON, for a collector of logs.

::

    ScaleZeroMiddleware(app, provider, hooks=[JsonLog(sys.stderr)])

A line holds ``time`` (seconds since the epoch), ``pid``, ``event`` and what belongs to it, see
:func:`scalezero_wsgi.events.as_dict`: of an event of one request its ``call_id``, which the response's
``X-Call-Id`` and the log's lines ``call <id>: ...`` have as well.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Protocol

from ..events import Event, as_dict


class Stream(Protocol):
    """What the lines are written to."""

    def write(self, text: str, /) -> object:
        """Take a line."""

    def flush(self) -> object:
        """Pass it on."""


class JsonLog:
    """A hook that writes each event as one line of JSON.

    Safe for threads and after a fork as far as the stream is: a line is written by one call.

    :param stream: a text stream.
    :param clock: seconds since the epoch.
    """

    def __init__(self, stream: Stream, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock

    def __call__(self, event: Event) -> None:
        """Write the event."""
        told = {"time": round(self._clock(), 6), "pid": os.getpid(), **as_dict(event)}
        # In ASCII: a text may hold what the stream's encoding has no bytes for, such as a file's name.
        self._stream.write(json.dumps(told) + "\n")
        self._stream.flush()
