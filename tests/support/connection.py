"""A client's connection, as a server hands it to the application."""

from __future__ import annotations

import socket
from typing import Any


class Connection:
    """A client's connection to a server, over TCP."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._client = socket.create_connection(listener.getsockname())
            self._accepted, _ = listener.accept()
        self.environ: dict[str, Any] = {"gunicorn.socket": self._accepted}

    def leave(self) -> None:
        self._client.close()

    def close(self) -> None:
        self._client.close()
        self._accepted.close()
