"""How an exchange with a function can end early, and what the client is told of it."""

from __future__ import annotations

import errno


class Refused(Exception):
    """The request is answered by the proxy itself.

    :ivar status: the status line's code and reason.
    :ivar text: what the client is told.
    :ivar headers: those beside the body's own.
    """

    def __init__(self, status: str, text: str, headers: list[tuple[str, str]] | None = None) -> None:
        self.status = status
        self.text = text
        self.headers = headers or []
        super().__init__(text)


class ClientBodyError(Refused):
    """The client's body broke off or is not as it must be."""

    def __init__(self, reason: str, status: str = "400 BAD REQUEST") -> None:
        super().__init__(status, "The request's body broke off.")
        self.reason = reason


class FunctionError(Exception):
    """The function cannot be reached, or does not speak HTTP; the message goes to the log only."""

    status = "502 BAD GATEWAY"
    text = "The function cannot be reached."


class FunctionTimeout(FunctionError):
    """The function did not answer, or did not take the request, in time."""

    status = "504 GATEWAY TIMEOUT"
    text = "The function did not answer in time."


class ConnectionUnusable(FunctionError):
    """A connection was closed before the first byte of an answer.

    :ivar nothing_sent: whether no byte of the request had gone out.
    """

    def __init__(self, reason: str, nothing_sent: bool) -> None:
        super().__init__(reason)
        self.nothing_sent = nothing_sent


class BadResponse(FunctionError):
    """What the function sent is not a response that RFC 9112 allows."""


class BrokenOff(ConnectionResetError):
    """The answer ends in the midst of its body, so that the server must close the connection.

    A reset of the connection is what it looks like: gunicorn, cheroot and werkzeug's server close after a
    ``ConnectionResetError`` without a final chunk, and without a traceback.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ECONNRESET, reason)
