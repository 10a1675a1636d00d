"""What this process knows of each function: its last status, when that was asked, and its use.

After OpenFaaS's ``gateway/handlers/function_cache.go``. Entries are immutable and replaced whole, so
readers need no lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .._lib.bounded import Bounded
from ..model import AT_ZERO, Function, ReplicaStatus

MAXSIZE = 10_000
NOBODY = Function("")


class Usage:
    """A function's use in this process; it outlives the entries that carry it.

    Written by whole-value assignment, ``set.add`` and ``set.discard`` alone, which are atomic with the
    GIL and without. Times are the cache's clock.

    :ivar in_flight: one token for each request that the application is serving.
    :ivar last_used: when a request was last passed down.
    :ivar woken_at: when the function was last seen to come up, by this worker or another: an entry from
        before that moment is about a replica that is gone.
    :ivar refuted_at: when the answer was asked for that the application found wrong last.
    :ivar vouched_at: when the provider last stood by "available" although it had been doubted.
    """

    __slots__ = ("in_flight", "last_used", "refuted_at", "vouched_at", "woken_at")

    def __init__(self) -> None:
        self.in_flight: set[object] = set()
        self.last_used = float("-inf")
        self.woken_at = float("-inf")
        self.refuted_at = float("-inf")
        self.vouched_at = float("-inf")


@dataclass(frozen=True, slots=True)
class FunctionMeta:
    """A status and when it was true.

    :param last_refresh: monotonic seconds at which the provider was asked.
    :param doubted: the application could not reach the function since; the status is not to be used.
    """

    last_refresh: float
    status: ReplicaStatus
    function: Function = NOBODY
    usage: Usage = field(default_factory=Usage, compare=False, repr=False)
    doubted: bool = False
    available: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "available", self.status.available_replicas > 0 and not self.doubted)

    def expired(self, expiry: float, now: float | None = None) -> bool:
        """Whether ``now`` (monotonic seconds, by default the present) is *later than*
        ``last_refresh + expiry``."""
        return (time.monotonic() if now is None else now) > self.last_refresh + expiry


class FunctionCache:
    """A bounded cache of replica counts. Safe for threads and after a fork; readers take no lock.

    :param expiry: seconds that a status counts as fresh.
    :param maxsize: how many functions are remembered; the least recently set goes first.
    :param missing_expiry: seconds that an unknown function is remembered as unknown.
    :param stale_if_error: seconds after which an entry is not to be used even while the provider fails.
    :param clock: where monotonic seconds come from.
    """

    __slots__ = (
        *("_entries", "_missing", "_usages", "clock"),
        *("expiry", "find", "missing_expiry", "stale_if_error"),
    )

    find: Callable[[Function], FunctionMeta | None]

    def __init__(
        self,
        expiry: float,
        *,
        maxsize: int = MAXSIZE,
        missing_expiry: float = 1.0,
        stale_if_error: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expiry = expiry
        self.stale_if_error = stale_if_error
        self.clock = clock
        self.missing_expiry = missing_expiry
        self._entries: Bounded[Function, FunctionMeta] = Bounded(maxsize)
        self._usages: Bounded[Function, Usage] = Bounded(maxsize)
        self._missing: Bounded[Function, float] = Bounded(maxsize)  # when each was found missing
        self.find = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str, namespace: str = "") -> tuple[ReplicaStatus, bool]:
        """The last status, and whether it is fresh. An unknown function has zero replicas."""
        meta = self.find(Function(name, namespace))
        if meta is None:
            return AT_ZERO, False
        return meta.status, not (meta.doubted or meta.expired(self.expiry, self.clock()))

    def last_seen_up(self, function: Function) -> FunctionMeta | None:
        """The entry of a function that may be served while the provider fails."""
        meta = self.find(function)
        if meta is None or not meta.available or meta.expired(self.stale_if_error, self.clock()):
            return None
        return meta

    def set(
        self, name: str, status: ReplicaStatus, namespace: str = "", *, asked_at: float | None = None
    ) -> FunctionMeta:
        """Remember a status.

        :param asked_at: when the provider was asked (monotonic seconds; by default now). An answer
            older than what is known already is not taken.
        :return: the entry made of ``status``.
        """
        asked_at = self.clock() if asked_at is None else asked_at
        function = Function(name, namespace)
        meta = FunctionMeta(asked_at, status, function, self._usage(function))
        missing_since = self._missing.get(function)
        if missing_since is not None and missing_since > asked_at:
            return meta
        self._entries.change(
            function, lambda known: known if known and known.last_refresh > asked_at else meta
        )
        self._missing.pop(function)
        return meta

    def uses(self) -> list[tuple[Function, Usage]]:
        """Every function's use in this process."""
        return self._usages.items()

    def doubt(self, function: Function) -> None:
        """Use the entry no more, nor any answer to a question asked before now."""
        known = self.find(function)
        if known is not None:
            if not known.doubted:
                known.usage.refuted_at = known.last_refresh
            self._entries.set(function, replace(known, last_refresh=self.clock(), doubted=True))

    def set_missing(self, function: Function, found_at: float | None = None) -> None:
        """Remember that the provider does not know the function.

        :param found_at: when that was found (monotonic seconds; by default now). It does not stand against
            an answer that is newer.
        """
        found_at = self.clock() if found_at is None else found_at
        known = self.find(function)
        if known is None or known.last_refresh <= found_at:
            self._entries.pop(function)
            self._missing.set(function, found_at)

    def is_missing(self, function: Function) -> bool:
        """Whether the provider was found, a moment ago, not to know the function."""
        found_at = self._missing.get(function)
        return found_at is not None and self.clock() <= found_at + self.missing_expiry

    def _usage(self, function: Function) -> Usage:
        entry = self.find(function)
        return self._usages.change(function, lambda known: entry.usage if entry else known or Usage())
