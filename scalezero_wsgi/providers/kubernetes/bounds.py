"""Bounds of what a call reads from its connection: until when, and how many bytes.

httpx2's time-out is for one read, so a server that sends a byte of a header, or a 103, each second holds its
caller for hours; and the body of a 401 that lightkube answers with another token is read by httpx2 itself,
whatever its length. So the bounds are where all bytes pass, in the network backend of httpcore2, and a coded
body is refused before anybody decodes it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...model import ProviderError
from .. import answer

if TYPE_CHECKING:
    import httpx2


@dataclass(slots=True)
class _Bounds:
    deadline: float = math.inf
    size: float = math.inf


_bounds: ContextVar[_Bounds] = ContextVar("bounds")


@contextlib.contextmanager
def until(deadline: float) -> Iterator[None]:
    """Have what this thread reads and writes in the block end by then, and be no more than an answer may be.

    :param deadline: monotonic seconds.
    """
    token = _bounds.set(_Bounds(deadline, answer.MAX_ANSWER))
    try:
        yield
    finally:
        _bounds.reset(token)


def bind(client: httpx2.Client) -> None:
    """Have the connections that the client will open keep to :func:`until`, and its answers come uncoded."""
    client.headers["Accept-Encoding"] = "identity"
    client.event_hooks = {"response": [_refuse_coding]}
    # httpx2 has no argument for the backend, and a transport of our own would switch the proxies of the
    # environment off.
    for transport in (client._transport, *client._mounts.values()):
        if transport is not None:
            pool: Any = transport._pool  # type: ignore[attr-defined]
            pool._network_backend = _Backend(pool._network_backend)


def _refuse_coding(response: httpx2.Response) -> None:
    coding = response.headers.get("Content-Encoding", "identity")
    if coding != "identity":
        raise ProviderError(f"Kubernetes answered in the coding {coding!r:.40}, which nobody asked for")


def _left(timeout: float | None) -> float | None:
    left = _bounds.get(_Bounds()).deadline - time.monotonic()
    left = min(left, math.inf if timeout is None else timeout)
    return None if left == math.inf else max(left, 0.001)  # 0 would mean not to wait at all


class _Backend:
    """A network backend whose connections keep the bounds; the rest is the other's."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def connect_tcp(self, *address: Any, timeout: float | None = None, **options: Any) -> _Stream:
        return _Stream(self._backend.connect_tcp(*address, timeout=_left(timeout), **options))


class _Stream:
    """A connection that keeps the bounds; the rest is the other's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        bounds = _bounds.get(_Bounds())
        if time.monotonic() > bounds.deadline:
            raise ProviderError("Kubernetes did not end its answer in time")
        data: bytes = self._stream.read(max_bytes, _left(timeout))
        bounds.size -= len(data)
        if bounds.size < 0:
            raise ProviderError(f"Kubernetes' answer is longer than {answer.MAX_ANSWER} bytes")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout))

    def start_tls(self, *names: Any, timeout: float | None = None, **options: Any) -> _Stream:
        return _Stream(self._stream.start_tls(*names, timeout=_left(timeout), **options))
