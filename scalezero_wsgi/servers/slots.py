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


def slots_of(environ: WSGIEnvironment) -> Slots | None:
    """Return the slots of which a request has one; ``None`` where it cannot give it back.

    To be called in the thread that serves the request, for that is how its server is found.
    """
    thread = threading.current_thread()
    if isinstance(thread, PoolThread):
        return thread.pool
    if "waitress.client_disconnected" in environ:
        return waitress_slots(environ)
    return cheroot_slots() if "cheroot" in sys.modules else None


class Waiting(NamedTuple):
    """How a request may wait under its server.

    :ivar room: returns how many requests may wait in this process, if ``max_waiting`` is not set.
    :ivar without_slot: for the block in which it waits, see :func:`without_slot`.
    """

    room: Callable[[], int]
    without_slot: Callable[[], contextlib.AbstractContextManager[None]]


def waiting_in(environ: WSGIEnvironment, in_app: bool = False) -> Waiting:
    """Return how a request may wait. To be called in the thread that serves it.

    :param in_app: whether the application has been called for it, and may go on with it when the wait fails.
    """
    slots = slots_of(environ)
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


def give_back(environ: WSGIEnvironment) -> contextlib.AbstractContextManager[None]:
    """Return a context for an application that waits, for a slow answer say: within it the request has no
    slot, and at its end it waits for one.

    Where it cannot give its slot back nothing happens. ``max_waiting`` does not bound how many do so.

    :param environ: of the request; to be called in the thread that serves it.
    """
    return waiting_in(environ, in_app=True).without_slot()
