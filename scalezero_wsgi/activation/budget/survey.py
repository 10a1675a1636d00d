"""What is up, as the provider tells it: functions that the ledger does not know yet, or still holds room for.

A function is only taken out of the ledger under its own lease, once the provider has said that it is at zero:
so nobody is about to start it who has claimed its room before.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from ..._lib.bounded import Bounded
from ...coordination.base import DrainingCoordination
from ...coordination.leadership import LEASE
from ...model import (
    AT_ZERO,
    Function,
    FunctionFailed,
    FunctionNotFound,
    ProviderError,
    ReplicaStatus,
    TooManyWaiting,
)
from ...providers.base import ListingProvider
from ..idling.drain import END
from ..idling.gate import SUFFIX
from ..refresh import Context
from ..single_flight import Flight, SingleFlight
from ..state import SETTLE
from .ledger import Book, Held, Ledger
from .limits import Limits, Need

logger = logging.getLogger("scalezero_wsgi")

JUST_CLAIMED = LEASE + SETTLE
"""Seconds for which room is held in any case: whoever claimed it may have died since, and the provider may
not yet show what was asked of it."""

ANSWER_WITHIN = 10.0
"""Seconds for which the answer about a function is waited for. One that hangs costs that once: until it has
come it is not waited for again."""

HANGS = 600.0
"""Seconds after which such a question is asked again, in another thread."""

AT_ONCE = 100
"""Questions that may be under way at once, those included that hang."""

SILENT = 10.0
"""Seconds without an answer about a function after which it is said that its room is kept."""

PREFIXES = ("scalezero.", "com.openfaas.scale.")
"""A label or annotation that begins with one says that its owner is meant for us."""


class _Silence(NamedTuple):
    """:ivar since: when the provider first did not tell of a function.
    :ivar said: whether that was logged.
    """

    since: float
    said: bool = False


class Survey:
    """Asks. Safe for threads and after a fork.

    :param is_ours: whether a function is served, and requests may wake it; others do not count.
    :param all_listed: whether all functions count that the provider lists: otherwise of those that nobody has
        used only those that are labelled for us. An engine lists databases, too.
    """

    def __init__(
        self,
        context: Context,
        store: DrainingCoordination,
        ledger: Ledger,
        limits: Limits,
        is_ours: Callable[[Function], bool],
        all_listed: bool,
    ) -> None:
        self._context = context
        self._store = store
        self._ledger = ledger
        self._limits = limits
        self._is_ours = is_ours
        self._all_listed = all_listed
        self._questions: SingleFlight[Function, object] = SingleFlight(
            "scalezero-survey", AT_ONCE, context.clock
        )
        self._silent: Bounded[Function, _Silence] = Bounded(1_000)
        self._listing = context.provider if isinstance(context.provider, ListingProvider) else None

    def look(self) -> int:
        """Note in the ledger what is up that it does not know.

        :return: for how many functions the provider was asked.
        :raises ScaleZeroError: the provider or the store cannot be asked.
        """
        book = self._ledger.read() or Book()
        used = self._used()
        listed = () if self._listing is None else self._list(self._listing)
        found: dict[Function, Need] = {}
        unknown = [
            each for each in dict.fromkeys([*used, *listed]) if each not in book.held and self._is_ours(each)
        ]
        for function in unknown:
            status = self.ask(function)
            if status is None or not _holds(status):
                continue
            if function in used or self._all_listed or _is_labelled(status):
                found[function] = self.need(function, status)

        def note(book: Book) -> None:
            for function, need in found.items():
                book.held.setdefault(function, Held(need, math.inf))
            book.looked_for, book.changed = 0.0, True

        self._ledger.change(note)
        return len(unknown)

    def check(self, held: Mapping[Function, Held]) -> dict[Function, ReplicaStatus]:
        """Ask for functions that hold room; give the room back of those that are at zero.

        :return: the statuses of the others.
        :raises CoordinationError: the store cannot be used.
        """
        statuses: dict[Function, ReplicaStatus] = {}
        for function, each in held.items():
            if not self._is_ours(function):  # any more: the settings have changed
                self._give_back(function)
                continue
            try:
                status = self._answer(function)
            except ProviderError as error:  # it may well be up: nobody else gets its room
                self._note_silent(function, error)
                continue
            self._silent.pop(function)
            if not _holds(status):
                if each.age >= JUST_CLAIMED:
                    self._give_back(function)
                continue
            statuses[function] = status
            need = self.need(function, status)
            if need != each.need:
                self._change_need(function, need)
        return statuses

    def _note_silent(self, function: Function, error: ProviderError) -> None:
        """Say once that a function holds its room because the provider does not tell how it is."""
        now = self._context.clock()
        before = self._silent.get(function) or _Silence(now)
        is_due = not before.said and now >= before.since + SILENT
        self._silent.set(function, before._replace(said=before.said or is_due))
        if is_due:
            logger.warning(
                "%s: its room in the budget stays taken, for the provider has not told for %.0f s whether"
                " it is up: %s",
                function,
                now - before.since,
                " | ".join(str(error).splitlines()),
            )

    def ask(self, function: Function) -> ReplicaStatus | None:
        """Ask the provider; ``None``: it does not tell. What it does not know, or says to have failed by an
        error, is at zero."""
        try:
            return self._answer(function)
        except ProviderError:
            return None

    def _answer(self, function: Function) -> ReplicaStatus:
        """:raises ProviderError: it does not tell."""
        learning = self._context.learning
        shared = None if learning is None else self._context.peers.shared_status(function)
        if learning is not None and shared is not None and shared.status is not None:
            started = None if shared.start is None else shared.start.age
            learning.learn(*function, shared.status, shared.age, started)
        asked_at = self._context.clock()
        try:
            flight = self._questions.join(function, partial(self._ask, function), asked_at + HANGS)
        except TooManyWaiting as error:
            raise ProviderError(str(error)) from None
        if flight.started_at < asked_at:  # what it says may be of before whoever asks has taken the lease
            raise ProviderError("an earlier question has no answer yet")
        if not flight.wait(ANSWER_WITHIN):
            raise ProviderError("it does not answer in time")
        try:
            status = flight.result()
        except (FunctionNotFound, FunctionFailed):
            return AT_ZERO
        except ProviderError:
            raise
        except BaseException as error:  # a user's provider may raise anything; no request is to get it
            raise ProviderError(f"{type(error).__name__}: {error}") from error
        if not isinstance(status, ReplicaStatus):
            raise ProviderError(f"get_replicas returned {status!r}, not a ReplicaStatus")
        return status

    def _ask(self, function: Function, flight: Flight[object]) -> object:  # noqa: ARG002
        return self._context.provider.get_replicas(*function)

    def need(self, function: Function, status: ReplicaStatus) -> Need:
        """Return what a function needs that is up or paused."""
        return self._limits.need(function, status, max(status.replicas, status.available_replicas))

    def _give_back(self, function: Function) -> None:
        until = self._context.clock() + END
        lease = self._context.peers.lead(function, lambda: until)
        if lease is None:
            return  # somebody starts or stops it
        with lease:
            status = self.ask(function) if self._is_ours(function) else AT_ZERO
            if status is not None and not _holds(status) and lease.holds():
                self.forget(function)

    def forget(self, function: Function) -> None:
        """Give a function's room back. Call this under its lease.

        :raises CoordinationError: the store cannot be used.
        """

        def give_back(book: Book) -> None:
            book.changed = book.held.pop(function, None) is not None

        self._ledger.change(give_back)

    def _change_need(self, function: Function, need: Need) -> None:
        def change(book: Book) -> None:
            if function in book.held:
                book.held[function].need, book.changed = need, True

        self._ledger.change(change)

    def _used(self) -> set[Function]:
        reports = self._context.peers.use(self._store.workers)
        return {
            function
            for report in reports
            if report.worker.endswith(SUFFIX)
            for function in (*report.in_flight, *report.unused_for)
        }

    @staticmethod
    def _list(provider: ListingProvider) -> Iterable[Function]:
        try:
            return [Function._make(each) for each in provider.list_functions()]
        except (ProviderError, FunctionFailed):
            raise
        except Exception as error:
            raise ProviderError(f"{type(error).__name__}: {error}") from error


def _holds(status: ReplicaStatus) -> bool:
    """Return whether a function is up, or coming up, or paused."""
    return bool(status.replicas or status.available_replicas or status.paused)


def _is_labelled(status: ReplicaStatus) -> bool:
    return any(label.startswith(PREFIXES) for label in (*status.labels, *status.annotations))
