"""Where processes meet: one flight for many workers and hosts.

A store keeps four things: for each function a *lease*, held by the one worker that leads its flight; what is
*known* of it; for each worker a *row* that says what it does; and it wakes those who wait for a change.

A lease expires, so a leader that died is replaced, and carries a fencing token, so what a replaced leader
writes late is refused (M. Kleppmann, "How to do distributed locking"). Ages and times left are durations
by the store's own clock, for the clocks of hosts differ.

Whoever writes a store runs ``scalezero_wsgi.testing.CoordinationContract`` against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..model import Function, ReplicaStatus, ScaleZeroError

KEEP = 3600.0
"""Seconds for which a store keeps what is known of a function."""

KEEP_MISSING = 10.0
"""The same where it is not known to the provider: the names that clients invent must not fill the store."""


class CoordinationError(ScaleZeroError):
    """The store cannot be reached, or not used. The worker goes on alone."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to lead a function's flight.

    :param worker: who asked for it, for those who read logs; the token alone tells leases apart.
    :param token: never given twice.
    """

    function: Function
    worker: str
    token: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A function's failed starts.

    :param count: how many in a row.
    :param start: names the start that failed last.
    :param reason: why; it may hold the function's own output.
    :param left: seconds for which the function still rests; below 0, the rest ended so long ago.
    """

    count: int
    start: str
    reason: str
    left: float


@dataclass(frozen=True, slots=True)
class Start:
    """The last time that the function was started from zero, by a worker or by somebody else.

    :param name: tells one start from another.
    :param age: seconds since then.
    :param shown: whether the provider has told since of a count above zero.
    :param up_for: seconds since a replica was first seen available after it; ``None`` before that.
    """

    name: str
    age: float = 0.0
    shown: bool = False
    up_for: float | None = None

    def after(self, passed: float) -> Start:
        """The same, ``passed`` seconds later."""
        up_for = None if self.up_for is None else self.up_for + passed
        return replace(self, age=self.age + passed, up_for=up_for)


@dataclass(frozen=True, slots=True)
class ProviderFault:
    """The provider fails the leader. Why is in the leader's log; it is not fit for a store.

    :param age: seconds since it did.
    :param final: whether the leader has given up.
    """

    age: float = 0.0
    final: bool = False


@dataclass(frozen=True, slots=True)
class SharedStatus:
    """What the fleet knows of a function.

    :param status: the last one; ``None`` if the provider does not know the function, or has not said
        because of a trouble.
    :param age: seconds since the provider was asked.
    :param name: tells one publication from another.
    :param durations: seconds that the last starts took, the latest last.
    """

    status: ReplicaStatus | None
    age: float = 0.0
    failure: Failure | None = None
    start: Start | None = None
    trouble: ProviderFault | None = None
    name: str = ""
    durations: tuple[float, ...] = ()

    @property
    def keep(self) -> float:
        """Seconds for which a store keeps it."""
        return KEEP_MISSING if self.status is None and self.failure is None else KEEP

    def after(self, passed: float) -> SharedStatus:
        """The same, ``passed`` seconds later."""
        failure, start, trouble = self.failure, self.start, self.trouble
        return replace(
            self,
            age=self.age + passed,
            failure=failure and replace(failure, left=failure.left - passed),
            start=start and start.after(passed),
            trouble=trouble and replace(trouble, age=trouble.age + passed),
        )


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker does, by function; all of it as it was when the worker reported.

    :param in_flight: requests that the application is serving.
    :param waiting: requests that are held.
    :param unused_for: seconds since the last use; without those of long ago.
    """

    worker: str
    in_flight: Mapping[Function, int] = field(default_factory=dict)
    waiting: Mapping[Function, int] = field(default_factory=dict)
    unused_for: Mapping[Function, float] = field(default_factory=dict)


class Changes(Protocol):
    """A subscription. Subscribe first, then look, then wait, and look again: so nothing is missed."""

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds; whether anything may have changed since the last call.

        It may say so without a change.
        """


class Coordination(Protocol):
    """The store. Safe for threads and after a fork; every call is short.

    :raises CoordinationError: every method, if the store cannot be used.
    """

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        """Take the lease for ``ttl`` seconds; ``None`` while it is held.

        A worker that holds it is refused like any other: its wake and its refresh may ask at once, and
        the second must not take the lead from under the first.
        """

    def renew(self, lease: Lease, ttl: float) -> bool:
        """Keep it for ``ttl`` seconds from now; ``False`` if it has lapsed or gone to another."""

    def release(self, lease: Lease) -> None:
        """Give it back. What another one holds is not touched."""

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        """Replace what is known; ``False`` if the lease has lapsed or gone to another.

        The store forgets it after a time; after seconds if there is no status.
        """

    def known(self, function: Function) -> SharedStatus | None:
        """What the fleet knows; ``None``: nothing."""

    def changes(self, function: Function) -> AbstractContextManager[Changes]:
        """Subscribe to what is published of a function, and to the end of its lease; but a lease that
        lapses makes no change."""

    def report(self, row: WorkerReport, ttl: float) -> None:
        """Say what a worker does; it counts as gone ``ttl`` seconds after its last report."""

    def leave(self, worker: str) -> None:
        """Take the worker's row away."""

    def workers(self) -> Sequence[WorkerReport]:
        """The rows of those who live."""


# The names of 0.1's first release, for stores that were written against it.
Known, Trouble, Row = SharedStatus, ProviderFault, WorkerReport
