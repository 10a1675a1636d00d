"""What this process knows about each function's replicas, and when it asked the provider.

After OpenFaaS's ``gateway/handlers/function_cache.go``. Entries are immutable and replaced whole, so readers
need no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from .._lib.bounded import Bounded
from .._lib.durations import label_seconds
from .._lib.per_process import PerProcess
from ..model import AT_ZERO, Function, ReplicaStatus
from .state import REMEMBERED, FunctionMeta, FunctionState, median

MAXSIZE = 10_000

OTHERS = 50
"""How many functions' last starts are kept, to estimate how long another function's first start takes."""


class Freshness(Enum):
    """How far an entry may be relied on."""

    FRESH = "use it"
    STALE = "use it, and refresh it behind the request"
    EXPIRED = "refresh it first"
    SUSPECT = "refresh it first: the application could not reach the function since"


class FunctionCache:
    """A bounded cache of replica counts. Safe for threads and after a fork; readers take no lock.

    Names that the provider has not confirmed have a bound of their own, so that a client that invents names
    evicts no real function.

    :param expiry: seconds for which an entry is fresh.
    :param stale_for: seconds for which it may be used after that, while it is refreshed.
    :param maxsize: how many functions are remembered; the one that was set longest ago is evicted first.
    :param missing_expiry: seconds for which an unknown function is remembered as unknown.
    :param stale_if_error: seconds for which an entry may be used while the provider fails.
    :param clock: returns monotonic seconds.
    """

    __slots__ = (
        *("_dropped", "_known", "_lock", "_recent_starts", "_unconfirmed", "clock", "expiry", "find_state"),
        *("missing_expiry", "stale_if_error", "usable"),
    )

    find_state: Callable[[Function], FunctionState | None]

    def __init__(
        self,
        expiry: float,
        *,
        stale_for: float = 0.0,
        maxsize: int = MAXSIZE,
        missing_expiry: float = 1.0,
        stale_if_error: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expiry = expiry
        self.usable = expiry + stale_for
        self.stale_if_error = stale_if_error
        self.missing_expiry = missing_expiry
        self.clock = clock
        self._known: Bounded[Function, FunctionState] = Bounded(maxsize, dropped=self._drop)
        self._dropped: set[FunctionState] = set()
        self._unconfirmed: Bounded[Function, FunctionState] = Bounded(maxsize)
        self._recent_starts: Bounded[Function, float] = Bounded(OTHERS)
        # Looked up late: gevent may replace threading.Lock after this line has run.
        self._lock = PerProcess(lambda: threading.Lock())
        self.find_state = self._known.get

    def __len__(self) -> int:
        return len(self._known)

    def find(self, function: Function) -> FunctionMeta | None:
        """Return the function's entry, whatever its age; ``None`` if there is none."""
        state = self.find_state(function)
        return None if state is None else state.meta

    def peek(self, function: Function) -> FunctionState | None:
        """Return the function's state; ``None`` if there is none."""
        # Look into _known twice: another thread may move the state there after the first look.
        return self.find_state(function) or self._unconfirmed.get(function) or self.find_state(function)

    def state(self, function: Function) -> FunctionState:
        """Return the function's state; make one if there is none."""
        state = self.peek(function)
        if state is None:
            with self._lock.get():
                state = self.peek(function)
                if state is None:
                    state = FunctionState(function)
                    self._unconfirmed.set(function, state)
        return state

    def states(self) -> list[FunctionState]:
        """Return the states of all functions, and of those that were forgotten and still serve a request."""
        states = self._known.values() + self._unconfirmed.values()
        if self._dropped:
            for state in list(self._dropped):
                if not state.in_flight:
                    self._dropped.discard(state)
            states.extend(self._dropped)
        return states

    def _drop(self, state: FunctionState) -> None:
        state.forget()  # first: a request that joins from now on sees that it has to leave
        if state.in_flight:
            self._dropped.add(state)

    def get(self, name: str, namespace: str = "") -> tuple[ReplicaStatus, bool]:
        """Return the last status, and whether it is fresh. An unknown function has zero replicas."""
        meta = self.find(Function(name, namespace))
        if meta is None:
            return AT_ZERO, False
        return meta.status, self.freshness(meta) is Freshness.FRESH

    def freshness(self, meta: FunctionMeta | None) -> Freshness:
        """Return how far an entry may be relied on now."""
        if meta is None:
            return Freshness.EXPIRED
        if meta.suspect:
            return Freshness.SUSPECT
        age = self.clock() - meta.last_refresh
        if age <= self.expiry:
            return Freshness.FRESH
        return Freshness.STALE if age <= self.usable else Freshness.EXPIRED

    def last_seen_up(self, function: Function) -> FunctionMeta | None:
        """Return the entry if it may be served while the provider fails; else ``None``."""
        meta = self.find(function)
        if meta is None or not meta.available or meta.expired(self.stale_if_error, self.clock()):
            return None
        return meta

    def set(
        self,
        name: str,
        status: ReplicaStatus,
        namespace: str = "",
        *,
        asked_at: float | None = None,
        state: FunctionState | None = None,
    ) -> FunctionMeta:
        """Remember a status.

        :param state: the state to use if the function was evicted while the provider was asked.
        :param asked_at: when the provider was asked (monotonic seconds; by default now). An answer
            that is older than the entry is ignored.
        :return: the entry made of ``status``.
        """
        asked_at = self.clock() if asked_at is None else asked_at
        function = Function(name, namespace)
        with self._lock.get():
            state = self.peek(function) or state or FunctionState(function)
            meta = FunctionMeta(asked_at, status, state)
            if asked_at < state.missing_at:
                return meta
            if state.meta is None or state.meta.last_refresh <= asked_at:
                state.meta = meta
            state.missing_at = float("-inf")
            self._known.set(function, state)
            self._unconfirmed.pop(function)
        return meta

    def labelled_seconds(self, function: Function, label: str, default: float) -> float:
        """Return the duration in a function's label, in seconds; ``default`` if it holds none."""
        state = self.find_state(function)
        meta = None if state is None else state.meta
        if meta is None or label not in meta.status.labels:
            return default
        told = label_seconds(meta.status.labels, label)
        return default if told is None else told

    def mark_suspect(self, function: Function) -> None:
        """Stop using the entry, and ignore answers to queries made before now."""
        with self._lock.get():
            meta = self.find(function)
            if meta is not None:
                if not meta.suspect:
                    meta.state.refuted_at = meta.last_refresh
                meta.state.meta = replace(meta, last_refresh=self.clock(), suspect=True)
                self._known.set(function, meta.state)

    def set_missing(self, function: Function, found_at: float | None = None) -> None:
        """Remember that the provider does not know the function.

        :param found_at: when that was found (monotonic seconds; by default now). A newer entry is kept.
        """
        found_at = self.clock() if found_at is None else found_at
        with self._lock.get():
            state = self.peek(function) or FunctionState(function)
            if state.meta is None or state.meta.last_refresh <= found_at:
                state.meta, state.missing_at = None, found_at
                self._unconfirmed.set(function, state)
                self._known.pop(function)

    def is_missing(self, function: Function) -> bool:
        """Return whether the provider said, within ``missing_expiry``, that it does not know the function."""
        state = self._unconfirmed.get(function)
        return state is not None and self.clock() <= state.missing_at + self.missing_expiry

    def set_durations(self, state: FunctionState, durations: tuple[float, ...]) -> None:
        """Remember how long a function's last starts took, in seconds, the latest last."""
        state.durations = durations[-REMEMBERED:]
        self._recent_starts.set(state.function, durations[-1])

    def usual_start(self) -> float | None:
        """Return the median of all functions' last starts, in seconds, as an estimate for a function that has
        not started yet; ``None`` if there were none."""
        return median([duration for _, duration in self._recent_starts.items()])
