"""The slots of a waitress: its dispatcher's threads, of which there is one more for each request that waits.

It stands on the dispatcher's ``lock``, ``queue``, ``queue_cv``, ``threads``, ``stop_count`` and
``set_thread_count()`` (waitress 3).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, final

from ..model import TooManyWaiting
from .line import Line, Ticket
from .server import room_for
from .thread_pool import stated_stack_size

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

SELECTABLE = 1024
"""File descriptors that ``select()`` takes (FD_SETSIZE); waitress uses it unless it is told otherwise."""


@final
class _Ticket(Ticket):
    """In the dispatcher's queue it is a task: the thread that takes it up gives its own slot away."""

    __slots__ = ("_slots",)

    def __init__(self, slots: WaitressSlots) -> None:
        super().__init__()
        self._slots = slots

    def service(self) -> None:
        self._slots.change(-1)
        self.serve()

    def cancel(self) -> None:  # the dispatcher is shut down
        self.serve()


@final
class WaitressSlots:
    """See :class:`~.line.Slots`."""

    def __init__(self, dispatcher: Any, room: int) -> None:
        self.room = room
        self._dispatcher = dispatcher
        self._lock = threading.Lock()

    def give_back(self) -> None:
        """Give the slot back; another thread is started.

        :raises TooManyWaiting: it could not be.
        """
        self.change(1)

    def take(self) -> None:
        """Take a slot again; block until there is one."""
        ticket = _Ticket(self)
        dispatcher = self._dispatcher
        with dispatcher.lock:  # without add_task(), which warns of a queue's length
            dispatcher.queue.append(ticket)
            dispatcher.queue_cv.notify()
        ticket.wait()

    def take_at_once(self) -> None:
        """Take a slot that there may not be; the next thread that comes free ends for it."""
        self.change(-1)

    def change(self, by: int) -> None:
        """Have one thread more or less. Whoever is to end does so before it takes up a task."""
        dispatcher = self._dispatcher
        with self._lock:
            with dispatcher.lock:
                before = set(dispatcher.threads)
                running = len(before) - dispatcher.stop_count
            if not running:  # it is shut down
                return
            try:
                with stated_stack_size():
                    dispatcher.set_thread_count(running + by)
            except RuntimeError:  # can't start new thread
                with dispatcher.lock:
                    dispatcher.threads &= before  # in it is one that did not start
                raise TooManyWaiting("no thread could be started") from None


def waitress_slots(environ: WSGIEnvironment) -> WaitressSlots | None:
    """Return the slots of the waitress that serves a request; ``None`` if it is none that we know."""
    # A method of the channel, which knows the server.
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    dispatcher: Any = getattr(getattr(channel, "server", None), "task_dispatcher", None)
    if not _is_known(dispatcher):
        return None
    with dispatcher.lock:
        found = getattr(dispatcher, "scalezero_slots", None)
        if found is None:
            limits = channel.adj  # type: ignore[union-attr]
            files = None if limits.asyncore_use_poll else SELECTABLE
            found = WaitressSlots(dispatcher, room_for(limits.connection_limit, files))
            dispatcher.queue = Line(dispatcher.queue)
            dispatcher.scalezero_slots = found
    return found if isinstance(found, WaitressSlots) else None


def _is_known(dispatcher: Any) -> bool:
    has = all(
        hasattr(dispatcher, name)
        for name in ("lock", "queue_cv", "threads", "stop_count", "set_thread_count")
    )
    return has and isinstance(getattr(dispatcher, "queue", None), (deque, Line))
