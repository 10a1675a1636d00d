"""Keeps starts within the budget: each claims its room in the fleet's ledger, waits its turn, and has others
go that nobody uses. See "Budgets" in ``ARCHITECTURE.md``."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Mapping
from functools import partial

from ..._lib.bounded import Bounded
from ..._lib.per_process import PerProcess
from ...coordination.base import CoordinationError, DrainingCoordination
from ...events import BudgetOff, FunctionEvicted, ProviderFailed, StopRefused
from ...model import Function, FunctionFailed, NoRoom, ProviderError, ReplicaStatus, TooManyWaiting
from ..idling.busy import Busy
from ..idling.drain import Outcome, Result
from ..idling.fleet_uses import FleetUses
from ..idling.gate import Gate
from ..refresh import Context
from ..single_flight import SingleFlight
from ..state import NEVER, median
from .eviction import Candidate, Eviction, choose
from .ledger import LEDGER, Book, Held, Ledger, Ticket
from .limits import Limit, Limits, Need
from .survey import JUST_CLAIMED, Survey

logger = logging.getLogger("scalezero_wsgi")

LOOK_EVERY = 15.0
"""Seconds after which it is found out anew what is up; the first time a start waits for that."""

LOOK_FIRST = 1.0
"""Seconds for which a start waits at a time for that."""

LOOK_PAUSE = 0.05
"""The same for each function that has to be asked for, if that is longer: with 10,000 of them 500 s."""

LOOK_TIMEOUT, EVICT_TIMEOUT = 600.0, 90.0
"""Seconds after which a look, or a stop, counts as hanging."""

CHECK_EVERY = 0.5
"""Seconds between two looks of a worker whether those that hold room are still up."""

SEEN_EVERY = 1.0
"""Seconds after which a leader says again that its function waits."""

UNSEEN = 3.0
"""Seconds after which a place in the queue keeps nobody back any more whose leader says nothing."""

KEEP_PLACE = 60.0
"""Seconds after which it is given up."""

KNOWN_FOR = 3.0
"""Seconds for which the ledger must exist before anything is stopped: if the store has forgotten the workers,
each has reported again by then."""

AT_ONCE = 16
"""Functions that may be stopped at once."""

PUT_OFF = {
    Outcome.BUSY: 0.2,
    Outcome.NOT_IDLE: 1.0,
    Outcome.VETOED: 2.0,
    Outcome.CANCELLED: 0.2,
    Outcome.CHANGED: 1.0,
    Outcome.UNANSWERED: 1.0,
    Outcome.REFUSED: 60.0,
    Outcome.FAILED: 2.0,
    Outcome.LOST: 1.0,
}
"""Seconds after which a function is tried again that could not be stopped."""

RETRY_AFTER = 5.0
"""Seconds that a client is told if nothing says when there will be room."""


class _Notes:
    """What one process has noted."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.uses = FleetUses()
        self.checked_at = NEVER
        self.look_every = LOOK_EVERY
        self.is_blind = False
        self.statuses: dict[Function, ReplicaStatus] = {}


class Budget:
    """A :class:`..room.Room` with limits. Safe for threads and after a fork.

    :param store: where the workers meet.
    :param gate: this worker's part in stopping functions.
    :param may_go: whether a function with that status may be stopped for another.
    :param min_uptime: seconds for which a function is up at least.
    :param shared: whether several processes can use the store.
    :param off: why no budget is kept; empty: it is.
    """

    def __init__(
        self,
        context: Context,
        store: DrainingCoordination,
        gate: Gate,
        limits: Limits,
        survey: Survey,
        ledger: Ledger,
        *,
        may_go: Callable[[Function, ReplicaStatus], bool],
        busy: Busy,
        min_uptime: float,
        shared: bool,
        off: str = "",
    ) -> None:
        self._context = context
        self._clock = context.clock
        self._store = store
        self._gate = gate
        self._limits = limits
        self._survey = survey
        self._ledger = ledger
        self._may_go = may_go
        self._busy = busy
        self._min_uptime = min_uptime
        self._shared = shared
        self._notes = PerProcess(_Notes)
        self._not_before: Bounded[Function, float] = Bounded(1_000)
        self._background: SingleFlight[Function, None] = SingleFlight(
            "scalezero-budget", AT_ONCE, context.clock
        )
        self._off = bool(off)
        if off:
            context.report(BudgetOff(off))

    # What an activation asks

    def enter(self, multiprocess: bool) -> None:
        """See :class:`..room.Room`, as for all of these."""
        if multiprocess and not self._shared and not self._off:
            self._off = True
            self._context.report(BudgetOff("the server's processes do not meet; set coordination"))

    def claim(
        self, function: Function, status: ReplicaStatus, again: bool, wanted: Callable[[], bool]
    ) -> bool:
        """Claim the room for a start."""
        if self._off:
            return True
        need = self._limits.need(function, status, status.first_replicas)
        beyond = self._limits.beyond(need)
        if beyond is not None:
            raise FunctionFailed(function, f"it needs more than there is at all ({beyond})")
        try:
            if not self._has_looked():
                return False
            is_wanted = wanted()
            if self._is_to_wait(function, need, is_wanted):
                short = True
            else:
                take = partial(self._take, function, need, again or status.paused, is_wanted)
                short = self._ledger.change(take)
            if short and is_wanted:
                self._make_room(function, need)
        except CoordinationError:  # without the ledger nobody knows what is up: nothing is started
            return False
        return not short

    def refusal(self, function: Function, waited: float, shortened: bool = False) -> NoRoom | None:
        """Return the error for a request that has waited in vain."""
        if self._off:
            return None
        try:
            book = self._ledger.read()
        except CoordinationError:
            return NoRoom(function, waited, RETRY_AFTER, shortened)
        if book is None or function not in book.waiting:
            return None
        left = min((self._min_uptime - held.age for held in book.held.values()), default=0.0)
        return NoRoom(function, waited, left if left > 0 else RETRY_AFTER, shortened)

    # The ledger

    def _is_to_wait(self, function: Function, need: Need, wanted: bool) -> bool:
        """Return whether it is known without a change that the function waits on: most looks end here."""
        book = self._ledger.read()
        ticket = None if book is None else book.waiting.get(function)
        if book is None or ticket is None or ticket.seen > SEEN_EVERY or ticket.wanted != wanted:
            return False
        return bool(self._missing(book, function, need))

    def _missing(self, book: Book, function: Function, need: Need) -> dict[Limit, int]:
        """Return what is missing for a function beside what others hold, and those want who keep it back."""
        needs = {each: held.need for each, held in book.held.items() if each != function}
        return self._limits.shortage([*(needs | self._first_ones(book, function, need)).values()], need)

    def _first_ones(self, book: Book, function: Function, need: Need) -> dict[Function, Need]:
        """Return what those want who are before a function in the queue, and keep it back.

        So a small one does not slip in again and again before a large one. Not those that nobody waits for,
        or whose leader has died; nor those that wait for what this one does not need, a GPU for one: it would
        be their turn all the same once they got that.
        """
        first: dict[Function, Need] = {}
        taken = self._limits.taken(held.need for held in book.held.values())  # once: many may wait for many
        for other, ticket in book.waiting.items():
            if other == function:
                break
            if ticket.wanted and ticket.seen <= UNSEEN:
                own = book.held.get(other)
                missing = self._limits.missing(taken, ticket.need, None if own is None else own.need)
                if all(limit.amount(need) for limit in missing):
                    first[other] = ticket.need
        return first

    def _take(self, function: Function, need: Need, has_room: bool, wanted: bool, book: Book) -> bool:
        """Take the room, or a place in the queue; return whether the function has to wait.

        :param has_room: whether its room was claimed before, and has not been given back.
        """
        book.changed = True
        for other, ticket in list(book.waiting.items()):
            if ticket.seen > KEEP_PLACE:
                del book.waiting[other]
        held = book.held.get(function)
        if held is not None and (has_room or held.age < JUST_CLAIMED):
            book.waiting.pop(function, None)
            return False
        # What it may still hold is of an earlier start: it is at zero, and its lease is ours.
        book.held.pop(function, None)
        if self._missing(book, function, need):
            book.waiting[function] = Ticket(need, wanted=wanted)  # where it was, or at the end
            return True
        book.held[function] = Held(need)
        book.waiting.pop(function, None)
        return False

    # What is up

    def _has_looked(self) -> bool:
        """Return whether it is known what is up; find it out, behind the start or before it."""
        book = self._ledger.read()
        looked_for = math.inf if book is None else book.looked_for
        every = self._notes.get().look_every
        if looked_for > every:
            # Nobody has started anything for a while: others may have, and would be found only too late.
            long_ago = looked_for > 2 * every
            self._run(LEDGER, self._look, LOOK_TIMEOUT, LOOK_FIRST if long_ago else 0.0)
            book = self._ledger.read()
        return book is not None and book.looked_for < math.inf

    def _look(self, _: object = None) -> None:
        notes = self._notes.get()
        try:
            asked = self._survey.look()
        except (ProviderError, FunctionFailed) as error:
            self._context.report(ProviderFailed(LEDGER, error))
            book = self._ledger.read()
            if not notes.is_blind and (book is None or book.looked_for == math.inf):
                notes.is_blind = True
                reason = " | ".join(str(error).splitlines())
                logger.warning("nothing is started, for the provider does not say what is up: %s", reason)
        else:
            notes.is_blind = False
            notes.look_every = max(LOOK_EVERY, asked * LOOK_PAUSE)

    def _run(self, key: Function, call: Callable[[object], None], timeout: float, wait: float = 0.0) -> None:
        """Make a call in a thread of its own.

        :param timeout: seconds after which it counts as hanging.
        :param wait: seconds for which to wait for its end.
        """
        with contextlib.suppress(TooManyWaiting):  # later then
            flight = self._background.join(key, call, self._clock() + timeout)
            if wait:
                flight.wait(wait)

    def _is_going(self, function: Function) -> bool:
        return self._background.under_way(function)

    # Room for another

    def _make_room(self, function: Function, need: Need) -> None:
        """Have those go that cost least, if it is this function's turn and they are enough."""
        notes = self._notes.get()
        if not notes.lock.acquire(blocking=False):
            return  # another start of this process looks at the moment
        try:
            book = self._ledger.read()
            if book is None or book.age < KNOWN_FOR or not self._is_first(book, function, need):
                return
            others, going, short = self._beside(book, function, need)
            if not short:
                return  # but for those that are on their way
            now = self._clock()
            if now >= notes.checked_at + CHECK_EVERY:
                notes.statuses = self._survey.check(others)
                notes.checked_at = self._clock()
                book = self._ledger.read()  # it has given back the room of those that are at zero
                if book is None:
                    return
                others, going, short = self._beside(book, function, need)
                if not short:
                    return
            statuses = notes.statuses  # another start may replace them from here on
            candidates = self._candidates(notes, others, going, short)
        finally:
            notes.lock.release()
        for each in choose(candidates, short):
            self._run(each, partial(self._evict, each, statuses[each], function, book.name), EVICT_TIMEOUT)

    def _beside(
        self, book: Book, function: Function, need: Need
    ) -> tuple[dict[Function, Held], set[Function], dict[Limit, int]]:
        """Return who else holds room, which of these are being stopped, and what will be missing then."""
        others = {each: held for each, held in book.held.items() if each != function}
        going = {each for each in others if self._is_going(each)}
        left = [held.need for each, held in others.items() if each not in going]
        return others, going, self._limits.shortage(left, need)

    def _is_first(self, book: Book, function: Function, need: Need) -> bool:
        """Return whether nobody is before it who needs of the same."""
        return not any(
            limit.amount(other) and limit.amount(need)
            for other in self._first_ones(book, function, need).values()
            for limit in self._limits.limits
        )

    def _candidates(
        self,
        notes: _Notes,
        others: Mapping[Function, Held],
        going: set[Function],
        short: Mapping[Limit, int],
    ) -> list[Candidate]:
        now = self._clock()
        in_use = notes.uses.note(self._context.peers.use(self._store.workers), now)
        notes.uses.forget_others(others)
        found = []
        for function, held in others.items():
            status = notes.statuses.get(function)
            if status is None or function in in_use or function in going:
                continue
            if not any(limit.amount(held.need) for limit in short):
                continue
            not_before = self._not_before.get(function)
            if (not_before is not None and now < not_before) or not self._may_go(function, status):
                continue
            shared = self._context.peers.shared_status(function)
            start = None if shared is None else shared.start
            up_for = held.age if start is None or start.up_for is None else start.up_for
            if up_for < self._min_uptime:
                continue
            used_at = notes.uses.used_at.get(function)
            unused_for = up_for if used_at is None else min(up_for, now - used_at)
            durations = () if shared is None else shared.durations
            usual = median(durations) or self._context.cache.usual_start() or 0.0
            found.append(Candidate(function, held.need, unused_for, usual))
        return found

    def _evict(
        self, function: Function, status: ReplicaStatus, room_for: Function, ledger: str, _: object = None
    ) -> None:
        """Stop a function, if it can be. Nothing is raised.

        :param status: by which this was decided.
        :param ledger: the name of the ledger by which this was decided.
        """

        def still_known() -> bool:
            book = self._ledger.read()
            return book is not None and book.name == ledger

        result = Result(Outcome.VETOED)
        if not status.replicas or not self._busy(function, status):
            eviction = Eviction(
                self._context,
                function,
                self._store,
                self._gate,
                self._may_go,
                still_known,
                self._survey.forget,
            )
            result = eviction.stop()
        put_off = PUT_OFF.get(result.outcome, 0.0)
        if result.outcome is Outcome.STOPPED:
            self._context.report(FunctionEvicted(function, room_for))
        elif result.outcome is Outcome.REFUSED:
            self._context.report(StopRefused(function, result.reason, put_off))
        self._not_before.set(function, self._clock() + put_off)
