"""The right to lead a function's flight, as a lease in the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

from ..model import Function
from .base import Coordination, Lease, SharedStatus

LEASE = 2.0
"""Seconds after which a leader that says nothing is replaced."""

ACT = 120.0
"""Seconds after which a call that changes something counts as hanging."""

RETELL = 1.0
"""Seconds after which a leader publishes again what has not changed."""


T = TypeVar("T")


class Store(Protocol):
    """What a leadership needs of the peers: their store, which may be lost and found."""

    clock: Callable[[], float]

    @property
    def joined(self) -> bool:
        """Whether there is a store that can be used."""

    @property
    def leaderships(self) -> set[LeasedLeadership]:
        """The leaderships that this process holds."""

    def attempt(self, call: Callable[[Coordination], T]) -> T | None:
        """Call the store if it can be used; return ``None`` if not."""

    def others_wait(self, function: Function) -> bool:
        """See :meth:`Leadership.others_wait`."""


class LeadershipLost(Exception):
    """Another worker leads by now, or may: look again."""


class Leadership:
    """The right to lead one flight, until the block of ``with`` ends.

    This one holds no lease: there is no store, or none that can be used.

    :param peers: whose store was lost; ``None``: there is none.
    :ivar replaced: whether another worker leads, as far as was noticed: what was published last was refused.
    """

    replaced = False

    def __init__(self, peers: Store | None = None) -> None:
        self._lost_peers = peers

    def __enter__(self) -> Leadership:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def publish(self, shared: SharedStatus, *, is_update: bool = True) -> None:
        """Tell the other workers; what a deposed leader publishes is refused.

        :param is_update: ``False``: nothing has changed, so it is published again only now and then.
        """

    def check(self) -> None:
        """Check that it makes sense to go on.

        :raises LeadershipLost: it does not.
        """
        if self._lost_peers is not None and self._lost_peers.joined:
            raise LeadershipLost

    def confirm(self) -> None:
        """Renew the lease right before something is done that must be done once.

        A process that is stopped after this, for longer than its lease, does it late all the same: nothing
        but the provider itself could prevent that.

        :raises LeadershipLost: it must not be done.
        """
        self.check()

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Hold this for the length of a call that changes something: the lease is kept, whoever still wants
        its outcome, or another worker would make the same call beside it."""
        return contextlib.nullcontext()

    def others_wait(self, function: Function) -> bool:  # noqa: ARG002
        """Return whether requests of other workers wait for the function, as they last reported; ``False``
        if the store fails."""
        return False

    def keep(self) -> None:
        """Keep the lease, unless its holder hangs."""

    def end(self) -> None:
        """Give the leadership back."""


class LeasedLeadership(Leadership):
    """A leadership that holds a lease.

    :param deadline: returns the monotonic seconds up to which the lease is kept: a leader that takes longer
        hangs.
    """

    def __init__(self, peers: Store, lease: Lease, deadline: Callable[[], float]) -> None:
        super().__init__()
        self._peers = peers
        self._lease = lease
        self._deadline = deadline
        self._acting_until = float("-inf")
        self._published = 0
        self._published_at = float("-inf")
        peers.leaderships.add(self)

    def publish(self, shared: SharedStatus, *, is_update: bool = True) -> None:  # noqa: D102
        now = self._peers.clock()
        if not (is_update or now >= self._published_at + RETELL):
            return
        self._published += 1
        self._published_at = now
        named = replace(shared, name=f"{self._lease.token}.{self._published}")
        self._note(self._peers.attempt(lambda store: store.publish(self._lease, named)))

    def check(self) -> None:  # noqa: D102
        if self.replaced:
            raise LeadershipLost

    def confirm(self) -> None:  # noqa: D102
        self.renew()
        self.check()

    def keep(self) -> None:  # noqa: D102
        if self._peers.clock() <= max(self._deadline(), self._acting_until):
            self.renew()

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:  # noqa: D102
        self._acting_until = self._peers.clock() + ACT
        try:
            yield
        finally:
            self._acting_until = float("-inf")

    def renew(self) -> None:
        """Make the lease last from now on."""
        self._note(self._peers.attempt(lambda store: store.renew(self._lease, LEASE)))

    def others_wait(self, function: Function) -> bool:  # noqa: D102
        return self._peers.others_wait(function)

    def end(self) -> None:  # noqa: D102
        self._peers.leaderships.discard(self)
        self._peers.attempt(lambda store: store.release(self._lease))

    def _note(self, taken: bool | None) -> None:
        if taken is False:  # None: the store cannot be used; then nobody else leads through it
            self.replaced = True
