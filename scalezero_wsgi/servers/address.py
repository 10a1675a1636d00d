"""Where a server is to listen, as gunicorn takes it: addresses with commas between."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

from ..model import SettingError


def only_this_host(bind: str) -> bool:
    """Return whether nobody but this host can reach a server.

    :param bind: where it listens.
    """

    def is_here(address: str) -> bool:
        if address.startswith("unix:"):
            return True
        host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]").lower()
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    return all(is_here(address.strip()) for address in bind.split(","))


def check_bind(bind: str) -> None:
    """Try whether a server can listen there: gunicorn tries for five seconds, and says it in ten lines.

    :param bind: where it is to listen.
    :raises SettingError: it cannot; the message says why.
    :raises ImportError: gunicorn is not installed.
    """
    for address in bind.split(","):
        if why := _why_not(address.strip()):
            raise SettingError(f"--bind {address.strip()}: {why}")


def _why_not(address: str) -> str | None:
    from gunicorn.util import parse_address

    if address.isdecimal():  # gunicorn would take it for a host
        return f"it must be HOST:PORT, such as 127.0.0.1:{address}"
    if not address.startswith(("unix:", "fd://")) and _has_no_port(address):
        return f"it must be HOST:PORT, such as {address}:8080"
    try:
        parsed = parse_address(address)
    except RuntimeError as error:
        return str(error)
    if isinstance(parsed, int):  # of a socket that listens already
        return None
    try:
        if isinstance(parsed, str):
            _try_path(parsed)
        else:
            _try_port(*parsed)
    except OSError as error:  # gaierror, too
        return f"{error.strerror or error}; choose another address or port with --bind"
    except OverflowError:
        return "the port must be 0 to 65535"
    return None


def _has_no_port(address: str) -> bool:
    """Return whether gunicorn would choose the port, and who reads the address would not know it."""
    host = address.removeprefix("tcp://")
    return ":" not in host.rpartition("]")[2]


def _try_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))


def _try_path(path: str) -> None:
    """Raise an ``OSError`` if the path is no place, or another server's, of which gunicorn would take it."""
    place = Path(path)
    if place.exists() and not place.is_socket():
        raise FileExistsError(errno.EEXIST, "There is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as sock:
        if sock.connect_ex(path) == 0:
            raise FileExistsError(errno.EEXIST, "Another server listens there")
    if not os.access(place.parent, os.W_OK):
        raise OSError(errno.EACCES, f"{place.parent} is not there, or not to be written to")
