"""The events as counters and timings for statsd, over UDP.

::

    ScaleZeroMiddleware(app, provider, hooks=[Statsd("127.0.0.1")])

Each event counts as ``scalezero.<kind>``, such as ``scalezero.scale_requested``; one that lasted is a timing
of that name in milliseconds instead, such as ``scalezero.function_ready``, which is only told by the worker
that led the start. With ``tags`` the function is a tag, in the form of Datadog's agent and Telegraf;
otherwise nothing names it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from .._lib.per_process import PerProcess
from ..events import Event, FunctionEvent, FunctionReady, ProviderFailed, RequestRefused, as_dict, kind_of
from ..model import SettingError

TIMED = ("after", "waited")
"""Fields in seconds that make an event a timing."""


class Statsd:
    """A hook that sends each event in a datagram of its own. A lost one is not noticed, and nothing waits.

    Safe for threads and after a fork: a socket is opened on first use, in each process.

    :param host: name or address of the server.
    :param port: its UDP port.
    :param prefix: what each metric's name begins with.
    :param tags: whether the function is told.
    :raises SettingError: the host is not known, or a value is not allowed.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 8125, *, prefix: str = "scalezero", tags: bool = False
    ) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            raise SettingError(f"statsd: {host!r}, port {port!r} is not an address: {error}") from None
        family = found[0][0]
        self._address: tuple[Any, ...] = found[0][4]
        self._prefix = f"{prefix}." if prefix else ""
        self._tags = tags
        self._socket = PerProcess(lambda: socket.socket(family, socket.SOCK_DGRAM))

    def __call__(self, event: Event) -> None:
        """Send the event."""
        if isinstance(event, FunctionReady) and not event.led:
            return  # its leader says the same: one start counts once, however many workers waited for it
        told = as_dict(event)
        seconds = next((told[field] for field in TIMED if field in told), None)
        value = "1|c" if not isinstance(seconds, float | int) else f"{seconds * 1000:.3f}|ms"
        line = f"{self._prefix}{kind_of(event)}:{value}"
        # Of these nobody knows whether there is such a function: a client may have invented it.
        invented = isinstance(event, ProviderFailed | RequestRefused)
        if self._tags and isinstance(event, FunctionEvent) and not invented:
            line += f"|#function:{event.function}"
        with contextlib.suppress(OSError):
            self._socket.get().sendto(line.encode(), self._address)
