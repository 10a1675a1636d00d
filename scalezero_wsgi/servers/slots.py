"""Whether a request that waits gives its slot back, and how many may wait."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .cheroot import cheroot_slots
from .server import capacity_of, room_to_wait
from .thread_pool import PoolThread
from .waitress import waitress_slots

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .line import Slots


class Waiting(NamedTuple):
    """How a request may wait under its server.

    :ivar room: returns how many requests may wait in this process, if ``max_waiting`` is not set.
    :ivar without_slot: for the block in which it waits, see :func:`without_slot`.
    """

    room: Callable[[], int]
    without_slot: Callable[[], contextlib.AbstractContextManager[None]]


def waiting_in(environ: WSGIEnvironment, in_app: bool = False) -> Waiting:
    """Return how a request may wait, by the thread that serves it: this one.

    :param in_app: whether the application has been called for it, and may go on with it when the wait fails.
    """
    thread = threading.current_thread()
    slots: Slots | None = None
    if isinstance(thread, PoolThread):
        slots = thread.pool
    elif "waitress.client_disconnected" in environ:
        slots = waitress_slots(environ)
    elif "cheroot" in sys.modules:
        slots = cheroot_slots()
    if slots is None:
        return Waiting(lambda: room_to_wait(capacity_of(environ)), contextlib.nullcontext)
    # An HTTP/2 connection keeps its thread: the next of its requests runs in it.
    in_order = in_app or environ.get("SERVER_PROTOCOL", "").startswith("HTTP/2")
    return Waiting(lambda: slots.room, partial(without_slot, slots, in_order))


@contextlib.contextmanager
def without_slot(slots: Slots, in_order: bool = False) -> Iterator[None]:
    """Give the slot back for the length of the block; at its end wait until there is one again.

    If the block raises, the request is answered with an error at once, without the application: that must
    not wait for those who are in it.

    :param in_order: whether to wait for a slot also when the block raises.
    """
    slots.give_back()
    try:
        yield
    except BaseException:
        if in_order:
            slots.take()
        else:
            slots.take_at_once()
        raise
    slots.take()
