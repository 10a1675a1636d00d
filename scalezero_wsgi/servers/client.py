"""The client of a request: notice that it disconnects, find its socket, and see what it has sent.

``recv(MSG_PEEK)`` does not work here: it misses a reset behind an unread body, and blocks on gevent's
sockets. A client that has sent more data, such as the next request, is still connected.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..model import ClientGone, WorkerStopping
from .server import cheroot_thread, this_server

if sys.platform != "win32":
    import fcntl
    import termios

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
    sock = client_socket(environ)
    if sock is None:
        return None
    if sock.family == socket.AF_UNIX:
        return lambda: _hung_up(sock.fileno())
    return lambda: _not_established(sock)


def client_socket(environ: WSGIEnvironment) -> Any:
    """Return the socket to the client; ``None`` where the server does not tell it.

    To be called in the thread that serves the request.
    """
    for key in ("gunicorn.socket", "gunicorn.sock", "werkzeug.socket"):
        if environ.get(key) is not None:
            return environ[key]
    # waitress.client_disconnected notices nothing unless channel_request_lookahead is set, which is not
    # the default. But it is a method of the channel, which has the socket.
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    sock = getattr(channel, "socket", None)
    if sock is None and "cheroot" in sys.modules:
        sock = getattr(getattr(cheroot_thread(), "conn", None), "socket", None)
    return sock


def client_descriptor(environ: WSGIEnvironment) -> int | None:
    """Return the descriptor of the connection to the client; ``None`` where the server does not tell it.

    To be called in the thread that serves the request.
    """
    uwsgi: Any = sys.modules.get("uwsgi")  # there only inside uWSGI
    if uwsgi is not None:
        return int(uwsgi.connection_fd())
    sock = client_socket(environ)
    return None if sock is None else int(sock.fileno())


def bytes_at_hand(environ: WSGIEnvironment) -> int:
    """Return how many bytes of the request's body gunicorn can hand out without waiting for the client.

    Zero under other servers, and where a future gunicorn is built otherwise: nobody is to rely on more.
    """
    sock = environ.get("gunicorn.socket")
    reader = getattr(environ["wsgi.input"], "reader", None)
    held = getattr(getattr(reader, "unreader", None), "buf", None)  # what was read along with the head
    if sock is None or held is None or isinstance(sock, ssl.SSLSocket):
        return 0
    try:
        (in_kernel,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
        return len(held.getvalue()) + int(in_kernel)
    except (OSError, ValueError, AttributeError):
        return 0


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


def reset_client(environ: WSGIEnvironment) -> None:
    """Break the connection to the client off with a reset, where the server tells its socket.

    For an answer that an orderly end would make look complete. The server still closes the socket: so its
    descriptor is given another one, which is not connected.
    """
    client = client_socket(environ)
    if client is None:
        return
    with contextlib.suppress(OSError, ValueError), socket.socket() as spare:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.dup2(spare.fileno(), client.fileno(), inheritable=False)
