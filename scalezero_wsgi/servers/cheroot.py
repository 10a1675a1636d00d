"""The slots of a cheroot: its pool's threads, of which there is one more for each request that waits.

It stands on the pool's ``get()``, ``_queue``, ``_threads`` and ``_spawn_worker()`` (cheroot 10 and 11). Its
``grow()`` and ``shrink()`` would not do: the one may sleep for 0.1 s, and keeps within ``max``; by the
other a thread that is to end may take up a request before that.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from typing import Any, final

from ..model import TooManyWaiting
from .line import Line, Ticket
from .server import cheroot_thread, room_for
from .thread_pool import stated_stack_size


@final
class _Ticket(Ticket):
    """In the pool's queue it is a connection: the thread that takes it up gives its own slot away."""

    __slots__ = ("_slots",)

    requests_seen = bytes_read = bytes_written = 0  # for the server's statistics

    def __init__(self, slots: CherootSlots) -> None:
        super().__init__()
        self._slots = slots

    @property
    def rfile(self) -> _Ticket:
        return self

    wfile = rfile

    def communicate(self) -> bool:
        self._slots.take_at_once()
        self.serve()
        return False

    def close(self) -> None: ...


@final
class CherootSlots:
    """See :class:`~.line.Slots`."""

    def __init__(self, pool: Any) -> None:
        self.room = room_for()
        self._pool = pool
        self._end = sys.modules["cheroot.workers.threadpool"]._SHUTDOWNREQUEST
        self._lock = threading.Lock()
        self._too_many = 0

    def next(self) -> Any:
        """Return what the calling thread is to do next; block until there is something."""
        with self._lock:
            ends = self._too_many > 0
            if ends:
                self._too_many -= 1
                with contextlib.suppress(ValueError):  # the server has stopped
                    self._pool._threads.remove(threading.current_thread())
        return self._end if ends else self._pool._queue.get()

    def give_back(self) -> None:
        """Give the slot back; another thread is started.

        :raises TooManyWaiting: it could not be.
        """
        with self._lock:
            if self._too_many:
                self._too_many -= 1
                return
            try:
                with stated_stack_size():
                    self._pool._threads.append(self._pool._spawn_worker())
            except RuntimeError:  # can't start new thread
                raise TooManyWaiting("no thread could be started") from None

    def take(self) -> None:
        """Take a slot again; block until there is one."""
        ticket = _Ticket(self)
        queue = self._pool._queue
        with queue.mutex:  # without put(), which may find the queue full
            queue.queue.append(ticket)
            queue.not_empty.notify()
        while not ticket.wait(1.0) and self._pool.server.ready:  # a server that stops serves no ticket
            pass

    def take_at_once(self) -> None:
        """Take a slot that there may not be; the next thread that comes free ends for it."""
        with self._lock:
            self._too_many += 1


def cheroot_slots() -> CherootSlots | None:
    """Return the slots of the cheroot whose thread this is; ``None`` if it is none that we know."""
    pool: Any = getattr(getattr(cheroot_thread(), "server", None), "requests", None)
    if pool is None or not all(
        hasattr(pool, name) for name in ("get", "_queue", "_threads", "_spawn_worker")
    ):
        return None
    queue = pool._queue
    with queue.mutex:
        found = getattr(pool, "scalezero_slots", None)
        if found is None and isinstance(queue.queue, deque):
            found = pool.scalezero_slots = CherootSlots(pool)
            queue.queue = Line(queue.queue)
            pool.get = found.next
    return found if isinstance(found, CherootSlots) else None
