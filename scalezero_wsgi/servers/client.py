"""Notice that a client disconnects while its request waits.

``recv(MSG_PEEK)`` does not work here: it misses a reset behind an unread body, and blocks on gevent's
sockets. A client that has sent more data, such as the next request, is still connected.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..model import ClientGone, WorkerStopping
from .server import cheroot_thread, this_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_TCP_ESTABLISHED = 1  # net/tcp_states.h; struct tcp_info of linux/tcp.h begins with the state


def client_disconnected(environ: WSGIEnvironment) -> Callable[[], bool] | None:
    """Return a check of whether the client has disconnected; ``None`` where the server offers none.

    The check never blocks, and may be called from any thread; this function must be called in the thread
    that serves the request. A client that has shut down its sending side counts as disconnected.
    """
    if not sys.platform.startswith("linux"):
        return environ.get("waitress.client_disconnected")
    uwsgi: Any = sys.modules.get("uwsgi")  # exists only inside uWSGI
    if uwsgi is not None:
        descriptor: int = uwsgi.connection_fd()
        return lambda: _hung_up(descriptor)
    sock: Any = None
    for key in ("gunicorn.socket", "gunicorn.sock", "werkzeug.socket"):
        sock = sock or environ.get(key)
    if sock is None:
        # waitress.client_disconnected notices nothing unless channel_request_lookahead is set, which is not
        # the default. But it is a method of the channel, which has the socket.
        channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
        sock = getattr(channel, "socket", None)
    if sock is None and "cheroot" in sys.modules:
        sock = getattr(getattr(cheroot_thread(), "conn", None), "socket", None)
    if sock is None:
        return None
    if sock.family == socket.AF_UNIX:
        return lambda: _hung_up(sock.fileno())
    return lambda: _not_established(sock)


def _not_established(sock: Any) -> bool:
    try:
        state: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:  # closed already
        return True
    return state[0] != _TCP_ESTABLISHED


def _hung_up(descriptor: int) -> bool:
    try:
        poll = _original_poll()()
        poll.register(descriptor, select.POLLRDHUP)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # closed already
        return True


def _original_poll() -> Any:
    """Return the original ``select.poll``: gevent's switches to other greenlets even with time-out 0."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original("select", "poll") if monkey is not None else select.poll


def wait_check(environ: WSGIEnvironment) -> Callable[[], None]:
    """Return a check that raises if a waiting request must stop waiting.

    The check also keeps the worker's heartbeat, never blocks, and may be called from any thread. Call this
    function in the thread that serves the request.
    """
    disconnected = client_disconnected(environ)
    server = this_server()

    def check() -> None:
        """:raises WorkerStopping: the worker was told to stop.
        :raises ClientGone: the client has disconnected."""
        server.keep_alive()
        if server.stopping():
            raise WorkerStopping
        if disconnected is not None and disconnected():
            raise ClientGone

    return check
