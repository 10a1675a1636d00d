"""Does a container answer yet?

A published port alone cannot tell: Docker's proxy takes connections before the container does, and only
then tries to pass them on.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from ..probe import answers

_STAYS_OPEN_FOR = 0.25
"""Seconds for which a connection to the proxy must stay open. It ends one that it cannot pass on in a
millisecond or two, or later when the container's network has just come up."""


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """A container's own address in a network, and that network's gateway."""

    host: str
    port: int
    gateway: str

    @property
    def is_here(self) -> bool:
        """Whether this host is the gateway: then nobody else can have the address.

        Elsewhere, behind a virtual machine or in a container, a packet to it may go anywhere.
        """
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            try:
                route.connect((self.host, self.port))  # asks the kernel for the way; sends nothing
            except OSError:
                return False
            return bool(route.getsockname()[0] == self.gateway)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a container is reached.

    :param proxied: whether the engine's proxy stands between.
    :param own: what lies behind the proxy, where that is known.
    """

    host: str
    port: int
    proxied: bool = False
    own: OwnAddress | None = None

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def answers(self, path: str | None, timeout: float) -> bool:
        """Return whether the container can serve now.

        :param path: the path that must answer a GET with 2xx or 3xx; ``None``: the port takes a connection.
        :param timeout: seconds, for the connection and for each read.
        """
        if path is not None or not self.proxied:
            return answers(self.host, self.port, path, timeout)
        if self.own is not None and self.own.is_here:
            return answers(self.own.host, self.own.port, None, timeout)
        return _stays_open(self.host, self.port, timeout)


def _stays_open(host: str, port: int, timeout: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout) as probe:
            probe.settimeout(_STAYS_OPEN_FOR)
            try:
                return bool(probe.recv(1))
            except TimeoutError:
                return True
    except OSError:
        return False
