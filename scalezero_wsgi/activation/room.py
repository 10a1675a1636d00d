"""The room that a start needs, as an activation sees it: it claims it before it scales a function up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..model import Function, NoRoom, NotAvailable, ReplicaStatus


class Room(Protocol):
    """Keeps starts within a budget (:mod:`.budget`). Safe for threads and after a fork."""

    def claim(
        self, function: Function, status: ReplicaStatus, again: bool, wanted: Callable[[], bool]
    ) -> bool:
        """Claim the room for a start; return ``False`` if the start has to wait its turn. Ask again then.

        Called by the leader of the function's flight, who holds its lease.

        :param status: the function's, at zero.
        :param again: whether the room was claimed before, by this activation.
        :param wanted: returns whether anybody waits for the start.
        :raises FunctionFailed: it needs more than there is.
        """

    def refusal(self, function: Function, waited: float, shortened: bool = False) -> NoRoom | None:
        """Return the error for a request that has waited in vain, if its function waits its turn.

        :param waited: seconds.
        :param shortened: whether the client has set the deadline.
        """

    def enter(self, multiprocess: bool) -> None:
        """Note what kind of server a request came through.

        :param multiprocess: whether other processes serve the same application.
        """


def not_available(room: Room | None, function: Function, waited: float, left: float = 1.0) -> NotAvailable:
    """Return the error for a request that has got no replica before its deadline.

    :param room: what the start had to claim; ``None``: nothing.
    :param waited: seconds.
    :param left: seconds that the start will probably still take.
    """
    refusal = None if room is None else room.refusal(function, waited)
    return refusal or NotAvailable(function, waited, left)
