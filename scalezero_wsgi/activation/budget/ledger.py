"""The ledger of the fleet: which functions hold room, and which wait for it.

It is one shared status in the store, of a function that does not exist, so every store can keep it. It is
changed under a lease of its own, which is held for no longer than that takes, and what a worker writes whose
lease has lapsed is refused by the store: so of two workers that start two functions at once one sees what the
other has claimed.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...coordination.base import Coordination, CoordinationError, SharedStatus
from ...coordination.leadership import LEASE
from ...coordination.peers import Peers
from ...model import Function, ReplicaStatus
from .limits import Need

T = TypeVar("T")

LEDGER = Function(".budget")
"""Under which name it is kept; no function's name begins with a dot."""

PATIENCE = 2 * LEASE
"""Seconds for which a worker tries to get at it: one that has died holds it for ``LEASE``."""

RETRY = 0.005
"""Seconds between two tries."""

_ANNOTATION = "scalezero.ledger"


@dataclass(slots=True)
class Held:
    """The room that a function holds.

    :ivar age: seconds since it was claimed; infinite: it was found to be up.
    """

    need: Need
    age: float = 0.0


@dataclass(slots=True)
class Ticket:
    """A function's place among those that wait.

    :ivar seen: seconds since its leader has last looked.
    :ivar wanted: whether anybody waited then.
    """

    need: Need
    seen: float = 0.0
    wanted: bool = True


@dataclass(slots=True)
class Book:
    """What stands in the ledger, as of one moment.

    :ivar name: unique to this ledger: a store that has forgotten everything gets another.
    :ivar age: seconds since it was begun.
    :ivar looked_for: seconds since it was found out what is up; infinite: that was never.
    :ivar waiting: in the order in which they came.
    :ivar changed: whether it is to be written.
    """

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    age: float = 0.0
    looked_for: float = math.inf
    held: dict[Function, Held] = field(default_factory=dict)
    waiting: dict[Function, Ticket] = field(default_factory=dict)
    changed: bool = False

    def pack(self) -> str:
        """Return it as JSON."""
        return json.dumps(
            {
                "name": self.name,
                "age": self.age,
                "looked_for": self.looked_for,
                "held": [[*function, *held.need, held.age] for function, held in self.held.items()],
                "waiting": [
                    [*function, *ticket.need, ticket.seen, ticket.wanted]
                    for function, ticket in self.waiting.items()
                ],
            }
        )

    @classmethod
    def unpack(cls, text: str, passed: float) -> Book | None:
        """Return what JSON holds, as it is by now; ``None`` if it cannot be read.

        :param passed: seconds since it was written.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            return cls(
                str(values["name"]),
                values["age"] + passed,
                values["looked_for"] + passed,
                {
                    Function(name, namespace): Held(Need(group, memory), age + passed)
                    for name, namespace, group, memory, age in values["held"]
                },
                {
                    Function(name, namespace): Ticket(Need(group, memory), seen + passed, wanted)
                    for name, namespace, group, memory, seen, wanted in values["waiting"]
                },
            )
        except (ValueError, LookupError, TypeError):
            return None


class Ledger:
    """Reads and changes it. Safe for threads and after a fork.

    :param clock: monotonic seconds.
    :param sleep: pauses a thread between two tries.
    """

    def __init__(
        self,
        store: Coordination,
        peers: Peers,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._peers = peers
        self._clock = clock
        self._sleep = sleep

    def read(self) -> Book | None:
        """Return what stands in it; ``None``: there is none yet, or it cannot be read.

        :raises CoordinationError: the store cannot be used.
        """
        self._check()
        shared = self._peers.use(self._store.known, LEDGER)
        if shared is None or shared.status is None:
            return None
        return Book.unpack(shared.status.annotations.get(_ANNOTATION, ""), max(0.0, shared.age))

    def change(self, change: Callable[[Book], T]) -> T:
        """Change what stands in it, in one step, and return what ``change`` returns.

        :param change: is given what stands there, and sets :attr:`Book.changed` if that is to be written.
        :raises CoordinationError: the store cannot be used, or is too slow. Nothing was changed then.
        """
        self._check()
        begun = self._clock()
        while (lease := self._peers.use(self._store.acquire, LEDGER, self._peers.worker, LEASE)) is None:
            if self._clock() > begun + PATIENCE:
                raise CoordinationError("the ledger of budgets is held by another worker")
            self._sleep(RETRY)
        try:
            book = self.read() or Book()
            result = change(book)
            if book.changed and not self._peers.use(self._store.publish, lease, _shared(book)):
                raise CoordinationError("the ledger of budgets was taken by another worker")
            return result
        finally:
            with contextlib.suppress(CoordinationError):
                self._peers.use(self._store.release, lease)

    def _check(self) -> None:
        if not self._peers.joined:  # it is tried by the heartbeat
            raise CoordinationError("the workers' store cannot be used")


def _shared(book: Book) -> SharedStatus:
    return SharedStatus(ReplicaStatus(0, 0, annotations={_ANNOTATION: book.pack()}), name=book.name)
