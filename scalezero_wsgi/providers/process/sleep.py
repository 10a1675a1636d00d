"""Ask a function to sleep, and to wake up: as model servers do, to free the accelerator's memory."""

from __future__ import annotations

import contextlib
import http.client

from ...model import ProviderError
from .state import HOST


def ask(port: int, path: str, timeout: float) -> None:
    """Send a POST without a body, and wait for the answer.

    :param timeout: seconds, for the connection and for each read.
    :raises ProviderError: it was not answered with 2xx.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        with contextlib.closing(connection):
            connection.request("POST", path, headers={"Connection": "close"})
            with connection.getresponse() as response:
                status = response.status
    except (OSError, http.client.HTTPException) as error:
        raise ProviderError(f"POST {path} was not answered: {error!r}") from error
    if not 200 <= status < 300:
        raise ProviderError(f"POST {path} was answered with {status}")
