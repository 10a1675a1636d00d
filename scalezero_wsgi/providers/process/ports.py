"""Which port a function gets."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from .state import HOST

APART: tuple[int, ...] = (*range(20_000, 30_000), *range(61_000, 65_536))
"""Ports that functions get: not those of well-known servers below, nor 30000 to 32767, which Kubernetes may
lead elsewhere on its nodes."""

GIVEN_BY_THE_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""From which port to which the kernel chooses one for a connection, or for a server that asks for any."""

_TRIES = 100


def free_port(number: int = 0, count: int = 1) -> int:
    """Find a port that nothing listens on, and that the kernel gives to nobody else.

    It takes a while until the function listens there. If another process got the port meanwhile, it would be
    taken for the function, until that fails to start. So the port is not one of those that the kernel hands
    out, as long as these leave some over; and of those each function has its own, for many may start at the
    same moment, by different workers.

    :param number: of the function, from 0 on, among ``count``.
    """
    handed_out = _handed_out()
    ports = [port for port in APART if port not in handed_out][number::count]
    for port in random.sample(ports, min(_TRIES, len(ports))):
        if _binds(port):
            return port
    return _any_port()


def _handed_out() -> range:
    try:
        first, last = map(int, GIVEN_BY_THE_KERNEL.read_text().split())
    except (OSError, ValueError):  # there is no /proc: what RFC 6335 says
        first, last = 49_152, 65_535
    return range(first, last + 1)


def _binds(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
