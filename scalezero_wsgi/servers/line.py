"""The line in front of a server's slots.

A *slot* is the right to run the application; a server has as many as it has threads. A request that waits for
its function gives its slot back, and afterwards takes one again.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Protocol, final


class Slots(Protocol):
    """The slots of one server in this process. Each method is called by the thread that serves the request.

    :ivar room: how many requests may wait without a slot if ``max_waiting`` is not set.
    """

    room: int

    def give_back(self) -> None:
        """Give the slot back; another request may run at once."""

    def take(self) -> None:
        """Take a slot again; block until there is one, as a new request would."""

    def take_at_once(self) -> None:
        """Take a slot that there may not be, to send an answer of ours.

        Until as many threads have come free, no other request gets one.
        """


class Ticket:
    """The place in line of a request that takes a slot again."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float = -1) -> bool:
        """Block until the request has a slot; return whether it has one.

        :param timeout: seconds; by default as long as it takes.
        """
        return self._lock.acquire(timeout=timeout)

    def serve(self) -> None:
        """Give the request the slot of the calling thread. To be called once."""
        self._lock.release()


@final
class Line:
    """New requests and those that return, in turns, so that neither keeps the other out.

    Each kind is served in its order. It has what servers use of a ``deque``. Not safe for threads: it is
    guarded by the lock of the pool that it belongs to.
    """

    __slots__ = ("_new", "_returning", "_returns_next")

    def __init__(self, new: deque[Any] | None = None) -> None:
        self._new: deque[Any] = deque() if new is None else new
        self._returning: deque[Ticket] = deque()
        self._returns_next = True

    def __len__(self) -> int:
        return len(self._new) + len(self._returning)

    def append(self, item: Any) -> None:
        """Put a request, or the :class:`Ticket` of one that returns, at the end of its kind."""
        (self._returning if isinstance(item, Ticket) else self._new).append(item)

    def appendleft(self, item: Any) -> None:
        """Put a new request back that could not be served after all."""
        self._new.appendleft(item)

    def take_new(self) -> list[Any]:
        """Remove and return all new requests."""
        new = list(self._new)
        self._new.clear()
        return new

    def pop_returning(self) -> Ticket | None:
        """Remove and return the next one that returns, if there is one."""
        return self._returning.popleft() if self._returning else None

    def popleft(self) -> Any:
        """Remove and return who is next.

        :raises IndexError: nobody is.
        """
        returns = self._returning and (self._returns_next or not self._new)
        if returns and self._new:
            self._returns_next = False
        elif not returns:
            self._returns_next = True
        return (self._returning if returns else self._new).popleft()
