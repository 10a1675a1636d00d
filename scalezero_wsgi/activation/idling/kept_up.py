"""What an operator keeps up for a while: it is not idle meanwhile, and goes for no other function.

It is one shared status in the store, of a function that does not exist, so every store can keep it and the
whole fleet sees it. It is changed under a lease of its own.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping

from ...coordination.base import KEEP, Coordination, CoordinationError, SharedStatus
from ...coordination.leadership import LEASE
from ...coordination.peers import Peers
from ...model import Function, ReplicaStatus
from .ladder import IdleAfter

KEPT_UP = Function(".kept-up")
"""Under which name it is kept; no function's name begins with a dot."""

LONGEST = KEEP
"""Seconds for which a function may be kept up: so long a store keeps a shared status."""

LOOK_EVERY = 0.25
"""Seconds between two looks into the store."""

PATIENCE = 2 * LEASE
"""Seconds for which a worker tries to change it: one that has died holds its lease for ``LEASE``."""

RETRY = 0.01

_ANNOTATION = "scalezero.kept-up"


class KeptUp:
    """Says what idle means, with what is kept up apart. Safe for threads and after a fork.

    :param idle_after: says what idle means otherwise.
    :param clock: monotonic seconds.
    :param sleep: pauses a thread.
    """

    def __init__(
        self,
        store: Coordination,
        peers: Peers,
        idle_after: IdleAfter,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._peers = peers
        self._idle_after = idle_after
        self._clock = clock
        self._sleep = sleep
        self._seen: tuple[float, Mapping[Function, float]] | None = None

    def __call__(self, function: Function, status: ReplicaStatus) -> float | None:
        """Return after how many seconds without use the function is idle; ``None``: never, or not now."""
        return None if self.holds(function) else self._idle_after(function, status)

    def holds(self, function: Function) -> bool:
        """Return whether the function is kept up now, as of the last look."""
        return self.left().get(function, 0.0) > 0

    def left(self) -> dict[Function, float]:
        """Return what is kept up, and for how many more seconds, as of the last look."""
        now, seen = self._clock(), self._seen
        if seen is None or now > seen[0] + LOOK_EVERY:
            # Without the store what is known stands: nothing is stopped then.
            known = {} if seen is None else seen[1]
            with contextlib.suppress(CoordinationError):
                known = {function: now + left for function, left in self._read().items()}
            self._seen = seen = now, known
        return {function: until - now for function, until in seen[1].items() if until > now}

    def keep(self, function: Function, seconds: float) -> None:
        """Keep a function up from now on.

        :param seconds: for so long, ``LONGEST`` at most; 0: no more.
        :raises ValueError: they are more, or negative.
        :raises CoordinationError: the store cannot be used, or is too slow. Nothing was changed then.
        """
        if not 0 <= seconds <= LONGEST:
            raise ValueError(f"seconds must be from 0 to {LONGEST:g}, not {seconds!r}")
        if not self._peers.joined:  # it is tried by the heartbeat
            raise CoordinationError("the workers' store cannot be used")
        begun = self._clock()
        while (lease := self._peers.use(self._store.acquire, KEPT_UP, self._peers.worker, LEASE)) is None:
            if self._clock() > begun + PATIENCE:
                raise CoordinationError("another worker holds what is kept up")
            self._sleep(RETRY)
        try:
            kept = self._read()
            kept.pop(function, None)
            if seconds:
                kept[function] = seconds
            if not self._peers.use(self._store.publish, lease, _shared(kept)):
                raise CoordinationError("another worker has changed what is kept up")
        finally:
            with contextlib.suppress(CoordinationError):
                self._peers.use(self._store.release, lease)
        self._seen = None

    def _read(self) -> dict[Function, float]:
        """Return what is kept up, and for how many more seconds."""
        if not self._peers.joined:
            raise CoordinationError("the workers' store cannot be used")
        shared = self._peers.use(self._store.known, KEPT_UP)
        if shared is None or shared.status is None:
            return {}
        try:
            told = json.loads(shared.status.annotations.get(_ANNOTATION, ""))
            left = {Function(name, namespace): seconds - shared.age for name, namespace, seconds in told}
        except (ValueError, TypeError):  # of a later release
            return {}
        return {function: seconds for function, seconds in left.items() if seconds > 0}


def _shared(kept: Mapping[Function, float]) -> SharedStatus:
    text = json.dumps([[*function, seconds] for function, seconds in kept.items()])
    return SharedStatus(ReplicaStatus(0, 0, annotations={_ANNOTATION: text}))
