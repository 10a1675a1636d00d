"""Does a function answer yet? One probe, without retries."""

from __future__ import annotations

import contextlib
import http.client
import socket


def answers(host: str, port: int, path: str | None, timeout: float) -> bool:
    """Return whether a function can serve now.

    :param path: the path that must answer a GET with 2xx or 3xx; ``None``: the port accepts a connection.
    :param timeout: seconds, for the connection and for each read.
    """
    try:
        if path is None:
            with socket.create_connection((host, port), timeout) as probe:
                # A connection to a free port may by chance be made from that very port, to itself.
                return bool(probe.getsockname() != probe.getpeername())
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=timeout)) as connection:
            connection.request("GET", path, headers={"Connection": "close"})
            with connection.getresponse() as response:
                return 200 <= response.status < 400
    except (OSError, http.client.HTTPException):
        return False
