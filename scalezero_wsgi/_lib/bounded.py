"""A mapping that does not grow, whatever names a client invents."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .per_process import PerProcess

K = TypeVar("K")
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """At most ``maxsize`` keys; the least recently set goes first.

    Safe for threads and after a fork. Readers take no lock and never see a key vanish while it is being
    set again: the order is kept apart from the values. ``get`` is the dictionary's own.

    :param dropped: is given each value that goes for want of room.
    :raises ValueError: ``maxsize`` is less than 1.
    """

    __slots__ = ("_dropped", "_lock", "_maxsize", "_order", "_values", "get")

    get: Callable[[K], V | None]

    def __init__(self, maxsize: int, dropped: Callable[[V], object] = lambda _: None) -> None:
        if maxsize < 1:
            raise ValueError(f"maxsize must be 1 or more, not {maxsize!r}")
        self._dropped = dropped
        self._maxsize = maxsize
        self._values: dict[K, V] = {}
        self._order: dict[K, None] = {}
        # Looked up late: gevent may replace threading.RLock after this line has run.
        self._lock = PerProcess(lambda: threading.RLock())
        self.get = self._values.get

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> list[tuple[K, V]]:
        """Return what there is at this moment."""
        with self._lock.get():
            return list(self._values.items())

    def set(self, key: K, value: V) -> None:
        """Put ``value``, and drop what is too much."""
        with self._lock.get():
            self._values[key] = value
            self._order.pop(key, None)
            self._order[key] = None
            while len(self._order) > self._maxsize:
                oldest = next(iter(self._order))
                del self._order[oldest]
                self._dropped(self._values.pop(oldest))

    def change(self, key: K, change: Callable[[V | None], V]) -> V:
        """Replace the value by ``change(value)`` in one step that no other writer comes between."""
        with self._lock.get():
            value = change(self._values.get(key))
            self.set(key, value)
        return value

    def pop(self, key: K) -> None:
        """Forget the key, if it is there."""
        with self._lock.get():
            self._order.pop(key, None)
            self._values.pop(key, None)
