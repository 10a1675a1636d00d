"""The leadership of a function's flight, which one worker at a time holds by a lease in the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ParamSpec, Protocol, TypeVar

from ..model import Function
from .base import Coordination, Lease, SharedStatus

LEASE = 2.0
"""Seconds after which a leader that does not renew its lease is replaced."""

ACTION_TIMEOUT = 120.0
"""Seconds after which a call that changes something counts as hanging: its lease is no longer kept."""

REPUBLISH = 1.0
"""Seconds after which a leader publishes again although nothing has changed."""


P = ParamSpec("P")
T = TypeVar("T")


class Store(Protocol):
    """What a leadership needs of :class:`.peers.Peers`."""

    clock: Callable[[], float]

    @property
    def joined(self) -> bool:
        """Whether there is a store, and it works as far as is known."""

    def attempt(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a method of the store and return its answer; ``None`` if the store cannot be used."""

    def others_wait(self, function: Function) -> bool:
        """See :meth:`Leadership.others_wait`."""


class LeadershipLost(Exception):
    """Another worker leads, or may do so: join the flight again."""


class Leadership:
    """The leadership of one flight, to be used in a ``with`` statement, which ends it.

    This class holds no lease, because there is no store, or none that can be used.

    :param peers: the peers whose store is lost; ``None`` if there is no store.
    :ivar alone: whether nothing can be published, because there is no store that can be used.
    :ivar replaced: whether another worker is known to lead: the store refused a renewal or publication.
    """

    alone = True
    replaced = False

    def __init__(self, peers: Store | None = None) -> None:
        self._lost_peers = peers

    def __enter__(self) -> Leadership:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def publish(self, shared: SharedStatus, *, is_update: bool = True) -> None:
        """Publish a status to the other workers. The store refuses it from a deposed leader.

        :param is_update: whether anything has changed since the last publication; if not, it is repeated
            only about once a second.
        """

    def check(self) -> None:
        """Check that this worker still leads, as far as is known here.

        :raises LeadershipLost: it was replaced, or the store works again and another worker may lead.
        """
        if self._lost_peers is not None and self._lost_peers.joined:
            raise LeadershipLost

    def confirm(self) -> None:
        """Check that this worker still leads, by renewing the lease.

        :raises LeadershipLost: another worker leads, or may do so.
        """
        self.check()

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Confirm that this worker leads, and hold this during a call that only the leader may make.

        During the call the lease is kept even if the deadline has passed: otherwise another worker might make
        the same call at the same time. A process that is suspended after the confirmation for longer than its
        lease still acts, late. Only the provider itself could prevent that.

        :raises LeadershipLost: the call must not be made.
        """
        self.check()
        return contextlib.nullcontext()

    def others_wait(self, function: Function) -> bool:  # noqa: ARG002
        """Return whether other workers last reported that requests wait for the function.

        ``False`` if the store cannot be used.
        """
        return False

    def keep(self) -> None:
        """Renew the lease unless its holder hangs; called by the heartbeat."""

    def end(self) -> None:
        """Give the leadership up."""


class LeasedLeadership(Leadership):
    """A leadership with a lease.

    :param deadline: returns the monotonic seconds up to which the lease is kept. A leader that takes longer
        counts as hanging.
    :param held: the leaderships of this process; it is one of them until it ends.
    """

    alone = False

    def __init__(
        self,
        peers: Store,
        store: Coordination,
        lease: Lease,
        deadline: Callable[[], float],
        held: set[LeasedLeadership],
    ) -> None:
        self._peers = peers
        self._store = store
        self._lease = lease
        self._deadline = deadline
        self._held = held
        self._acting_until = float("-inf")
        self._published = 0
        self._published_at = float("-inf")
        held.add(self)

    def publish(self, shared: SharedStatus, *, is_update: bool = True) -> None:  # noqa: D102
        now = self._peers.clock()
        if not (is_update or now >= self._published_at + REPUBLISH):
            return
        self._published += 1
        self._published_at = now
        named = replace(shared, name=f"{self._lease.token}.{self._published}")
        if self._peers.attempt(self._store.publish, self._lease, named) is False:
            self.replaced = True

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
        self.confirm()
        self._acting_until = self._peers.clock() + ACTION_TIMEOUT
        try:
            yield
        finally:
            self._acting_until = float("-inf")

    def renew(self) -> None:
        """Extend the lease to its full length from now."""
        # None: the store cannot be used, so no other worker leads through it.
        if self._peers.attempt(self._store.renew, self._lease, LEASE) is False:
            self.replaced = True

    @property
    def token(self) -> int:
        """The lease's fencing token."""
        return self._lease.token

    def holds(self) -> bool:
        """Renew the lease, and return whether the store has agreed; ``False`` also if it cannot be used."""
        return self._peers.attempt(self._store.renew, self._lease, LEASE) is True

    def others_wait(self, function: Function) -> bool:  # noqa: D102
        return self._peers.others_wait(function)

    def end(self) -> None:  # noqa: D102
        self._held.discard(self)
        self._peers.attempt(self._store.release, self._lease)
