"""The interface of coordination stores, through which workers and hosts share one flight for each function.

For each function a store keeps a *lease*, held by the one worker that leads its flight, and the *shared
status* that this leader published last. For each worker it keeps a *report* of what it does. It notifies
subscribers of changes.

A lease expires, so that a leader that died is replaced. It carries a fencing token, so that the late write
of a deposed leader is refused (M. Kleppmann, "How to do distributed locking"). Ages and remaining times are
durations by the store's own clock, because the clocks of hosts differ.

Run ``scalezero_wsgi.testing.CoordinationContract`` against a store that you write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol, runtime_checkable

from ..model import Function, ReplicaStatus, ScaleZeroError

KEEP = 3600.0
"""Seconds for which a store keeps a function's shared status."""

KEEP_MISSING = 10.0
"""The same for a function that the provider does not know, because names that clients invent must not fill
the store."""


class CoordinationError(ScaleZeroError):
    """The store cannot be reached or used. The worker goes on without it."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to lead a function's flight.

    :param worker: the worker that acquired it, for logs only; leases are compared by their tokens.
    :param token: the fencing token: it grows with every lease and is never given twice.
    """

    function: Function
    worker: str
    token: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A function's failed starts, and the back-off that follows the last one.

    :param count: failed starts in a row.
    :param start: the name of the start that failed last.
    :param reason: why it failed; may contain output of the function.
    :param left: seconds until the back-off ends; negative once it has ended.
    """

    count: int
    start: str
    reason: str
    left: float


@dataclass(frozen=True, slots=True)
class Start:
    """A function's last start from zero, by a worker or by anything else that scales it.

    :param name: unique to this start.
    :param age: seconds since the start.
    :param shown: whether the provider has reported a count above zero since.
    :param up_for: seconds since a replica was first seen available after the start; ``None`` before that.
    """

    name: str
    age: float = 0.0
    shown: bool = False
    up_for: float | None = None

    def after(self, passed: float) -> Start:
        """Return the start as it is ``passed`` seconds later."""
        up_for = None if self.up_for is None else self.up_for + passed
        return replace(self, age=self.age + passed, up_for=up_for)


@dataclass(frozen=True, slots=True)
class ProviderFault:
    """An error that the provider gave the leader. Its text stays in the leader's log.

    :param age: seconds since the error.
    :param final: whether the leader has given up.
    """

    age: float = 0.0
    final: bool = False


@dataclass(frozen=True, slots=True)
class SharedStatus:
    """A function's status as the leader of its flight published it.

    :param status: the provider's last answer; ``None`` if it does not know the function, or could not answer
        because of ``trouble``.
    :param age: seconds since the provider was queried.
    :param failure: the failed starts, if the last start failed.
    :param start: the last start from zero, if one was seen.
    :param trouble: the provider's error, while it fails.
    :param name: unique to this publication.
    :param durations: seconds that the last starts took, the latest last.
    :param paused_for: seconds since it was first seen to be paused; ``None`` while it is not.
    """

    status: ReplicaStatus | None
    age: float = 0.0
    failure: Failure | None = None
    start: Start | None = None
    trouble: ProviderFault | None = None
    name: str = ""
    durations: tuple[float, ...] = ()
    paused_for: float | None = None

    @property
    def keep(self) -> float:
        """The seconds for which a store keeps it."""
        return KEEP_MISSING if self.status is None and self.failure is None else KEEP

    def after(self, passed: float) -> SharedStatus:
        """Return the status as it is ``passed`` seconds later: older, with less of the back-off left."""
        failure, start, trouble, paused_for = self.failure, self.start, self.trouble, self.paused_for
        return replace(
            self,
            age=self.age + passed,
            paused_for=None if paused_for is None else paused_for + passed,
            failure=failure and replace(failure, left=failure.left - passed),
            start=start and start.after(passed),
            trouble=trouble and replace(trouble, age=trouble.age + passed),
        )


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker does for each function, as of its last report.

    :param worker: the worker's name.
    :param in_flight: requests that the application is serving.
    :param waiting: requests that are held until the function is available.
    :param unused_for: seconds since the last request; functions that were used long ago are left out.
    :param acknowledged: the epochs of the drains for which it passes no request down any more, and has none
        in flight.
    :param kept_for: seconds for which it is to stay up yet for the sake of this worker's clients, who may ask
        for that; 0 or less: it need not. Of a function that is left out ``unused_for`` says it.
    """

    worker: str
    in_flight: Mapping[Function, int] = field(default_factory=dict)
    waiting: Mapping[Function, int] = field(default_factory=dict)
    unused_for: Mapping[Function, float] = field(default_factory=dict)
    acknowledged: Mapping[Function, int] = field(default_factory=dict)
    kept_for: Mapping[Function, float] = field(default_factory=dict)


class DrainPhase(Enum):
    """Where a function's way back to zero stands, or how the last one ended."""

    DRAINING = "draining"
    """Its replicas run; the workers are asked to pass no more requests down, and any request may undo it."""

    STOPPING = "stopping"
    """It is being scaled to zero; requests wait."""

    ZERO = "zero"
    """It was scaled to zero; the next request starts it."""

    READY = "ready"
    """It was not stopped: a request came, or something else spoke against it."""


@dataclass(frozen=True, slots=True)
class Drain:
    """A function's way back to zero.

    :param epoch: unique to it.
    """

    phase: DrainPhase
    epoch: int


class Changes(Protocol):
    """A subscription to a function's changes.

    To miss no change, subscribe, then read, then wait, and read again.
    """

    def wait(self, timeout: float) -> bool:
        """Wait for at most ``timeout`` seconds; return whether anything may have changed since the last call.

        It may return ``True`` without a change.
        """


class Coordination(Protocol):
    """A store. It is safe for threads and after a fork, and every call is short.

    :raises CoordinationError: from every method, if the store cannot be used.
    """

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        """Acquire the function's lease for ``ttl`` seconds; return ``None`` while it is held.

        The worker that holds it is refused like any other: its activation and its refresh may ask at the
        same time, and the second must not depose the first.
        """

    def renew(self, lease: Lease, ttl: float) -> bool:
        """Extend the lease to ``ttl`` seconds from now; return ``False`` if it is no longer held."""

    def release(self, lease: Lease) -> None:
        """Release the lease. Do nothing if it is no longer held."""

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        """Replace the function's shared status; return ``False`` if the lease is no longer held.

        The store forgets the status after ``known.keep`` seconds.
        """

    def known(self, function: Function) -> SharedStatus | None:
        """Return the function's shared status; ``None`` if there is none."""

    def changes(self, function: Function) -> AbstractContextManager[Changes]:
        """Subscribe to what is published of a function and to the release of its lease.

        A lease that expires need not be noticed.
        """

    def report(self, row: WorkerReport, ttl: float) -> None:
        """Replace the worker's report. After ``ttl`` seconds it expires and the worker counts as gone."""

    def leave(self, worker: str) -> None:
        """Remove the worker's report, if there is one."""

    def workers(self) -> Sequence[WorkerReport]:
        """Return the reports that have not expired."""


@runtime_checkable
class DrainingCoordination(Coordination, Protocol):
    """A store through which functions may be scaled back to zero. With another one, none is."""

    def drains(self) -> Mapping[Function, Drain]:
        """Return the drains that are remembered, as of one moment."""

    def change_drain(
        self, function: Function, before: Drain | None, after: Drain | None, keep: float
    ) -> bool:
        """Replace the function's drain by ``after`` if it is ``before``, in one step; return whether it was.

        ``None`` is no drain, or one that is forgotten.

        :param keep: seconds for which ``after`` is remembered.
        """


# The names of 0.1's first release, for stores that were written against it.
Known, Trouble, Row = SharedStatus, ProviderFault, WorkerReport
