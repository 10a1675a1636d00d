"""Query the provider, cache the answer and publish it; or apply what another worker published."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..coordination.base import ProviderFault, SharedStatus
from ..coordination.leadership import Leadership
from ..coordination.peers import Peers
from ..events import ProviderFailed, Reporter
from ..model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    NotAvailable,
    ProviderError,
    ProviderSilent,
    ReplicaStatus,
)
from ..providers.base import LearningProvider, Provider, WatchingProvider
from .function_cache import FunctionCache
from .outages import Outages
from .room import Room
from .single_flight import Flight
from .state import FunctionMeta

T = TypeVar("T")

WATCH = 5.0
"""Seconds for which the provider watches for a change in one call."""

FOLLOW = 5.0
"""Seconds for which a leading refresh keeps its lease, and for which a following one waits."""


class Context(NamedTuple):
    """What every flight works with.

    :ivar provider: its own time-outs bound how long its calls block.
    :ivar watching: the provider, if it can wait for a change by itself.
    :ivar learning: the provider, if it learns from the statuses that other workers publish.
    :ivar report: receives the events.
    :ivar clock: returns monotonic seconds.
    :ivar pause: blocks for about the given number of seconds.
    :ivar room: what a start has to claim; ``None``: nothing.
    """

    provider: Provider
    watching: WatchingProvider | None
    learning: LearningProvider | None
    cache: FunctionCache
    outages: Outages
    peers: Peers
    report: Reporter
    clock: Callable[[], float]
    pause: Callable[[float], None]
    room: Room | None = None


class Refresh:
    """Query one function's status once, here or in another worker. For one flight and its thread."""

    def __init__(self, context: Context, function: Function) -> None:
        self._context = context
        self._clock = context.clock
        self._function = function
        self._state = context.cache.state(function)
        self._leadership: Leadership

    def run(self, flight: Flight[None]) -> None:
        """Lead the refresh, or follow the worker that leads it. Failures are noted and reported."""
        outages = self._context.outages
        try:
            self._context.peers.run_once(
                self._function,
                lambda: flight.started_at + FOLLOW,
                self._follow,
                self._lead,
                is_urgent=lambda: flight.is_waited_for,
            )
        except FunctionNotFound:
            pass
        except NotAvailable:  # the leader got no answer in this time, or it waits for a start
            if outages.error(self._state) is None and self._context.cache.last_seen_up(self._function):
                outages.failed(self._state, ProviderSilent("the provider does not answer another worker"))
        except ProviderError as error:
            outages.failed(self._state, error)
            self._context.report(ProviderFailed(self._function, error))

    def _follow(self, shared: SharedStatus, is_update: bool) -> bool | None:
        if self._apply(shared, is_update) is not None:
            return True
        outages = self._context.outages
        if shared.trouble is not None and shared.trouble.age <= outages.pause(self._state):
            outages.failed(self._state, ProviderError("another worker's query failed: see that worker's log"))
            return True
        return None

    def _lead(self, leadership: Leadership) -> bool:
        self._leadership = leadership
        try:
            self._query()
        except ProviderError:
            self._publish(self._state.meta, ProviderFault())
            raise
        return True

    # As the leader

    def _query(
        self,
        seen: ReplicaStatus | None = None,
        started_at: float | None = None,
        *,
        solved: bool = True,
    ) -> FunctionMeta:
        """Query the provider, or let it watch for a change from ``seen``; cache and publish the answer.

        A provider that raises :class:`FunctionFailed` has answered: the function cannot start.

        :param started_at: when the awaited start was requested, to remember how long it took if it has ended
            now. ``None`` if no start is awaited.
        :param solved: ``False`` while the leader's ``set_replicas`` fails, which is published as well.
        :raises FunctionNotFound: the provider does not know the function.
        :raises ProviderError: the call failed with any other error.
        """
        self._state = self._context.cache.peek(self._function) or self._state
        watching, asked_at = self._context.watching, self._clock()
        try:
            if seen is None or watching is None:
                status = self._call(self._context.provider.get_replicas, *self._function)
                self._state.answered_in = self._clock() - asked_at
            else:
                status = self._call(watching.wait_for_change, *self._function, seen, WATCH)
                asked_at = self._clock() if status != seen else asked_at
        except FunctionFailed as error:
            # One replica, not zero: a failure that is told at zero is an old one, and fails no new start.
            status = ReplicaStatus(1, 0, failure=str(error.reason))
        if not isinstance(status, ReplicaStatus):
            raise ProviderError(f"get_replicas returned {status!r}, not a ReplicaStatus")
        if self._state.outage is not None:
            self._context.outages.answered(self._state, asked_at)
        meta = self._see(status, asked_at)
        if started_at is not None and meta.available:  # before _publish, which shares it
            durations = (*self._state.durations, self._clock() - started_at)
            self._context.cache.set_durations(self._state, durations)
        fault = None if solved or meta.available else ProviderFault()
        self._publish(meta, fault, is_update=status != seen)
        return meta

    def _call(self, method: Callable[..., T], *arguments: object) -> T:
        """Call the provider.

        :raises FunctionNotFound: the provider does not know the function; this is published.
        :raises FunctionFailed: the function cannot start.
        :raises ProviderError: the call failed with any other error.
        """
        asked_at = self._clock()
        try:
            return method(*arguments)
        except FunctionNotFound:
            self._context.outages.answered(self._state, asked_at)
            self._context.cache.set_missing(self._function)
            self._leadership.publish(SharedStatus(None))
            raise FunctionNotFound(*self._function) from None  # without what the provider put into its own
        except (FunctionFailed, ProviderError):
            raise
        except BaseException as error:  # even SystemExit: this thread runs only the flight
            raise ProviderError(f"{type(error).__name__}: {error}") from error

    def _publish(
        self, meta: FunctionMeta | None, fault: ProviderFault | None = None, is_update: bool = True
    ) -> None:
        """Publish a status to the other workers, and what is remembered about the function's starts."""
        if self._leadership.alone:
            return
        now = self._clock()
        shared = SharedStatus(None, trouble=fault)
        if meta is not None and not meta.suspect:
            shared = SharedStatus(meta.status, max(0.0, now - meta.last_refresh), trouble=fault)
        self._leadership.publish(self._state.share(shared, now), is_update=is_update)

    # As a follower

    def _apply(
        self, shared: SharedStatus, is_update: bool, since: float = float("-inf")
    ) -> FunctionMeta | None:
        """Cache what another worker published.

        :param is_update: whether it was published while this worker waited for it.
        :param since: ignore answers to queries made before that moment.
        :return: the new entry, if it counts as an answer because it is fresh or an update; else ``None``.
        :raises FunctionNotFound: the provider does not know the function.
        """
        cache, now = self._context.cache, self._clock()
        self._state = cache.peek(self._function) or self._state
        self._state.apply(shared, now)
        if shared.durations and shared.durations != self._state.durations:
            cache.set_durations(self._state, shared.durations)
        learning = self._context.learning
        if shared.status is not None and learning is not None:
            started = None if shared.start is None else shared.start.age
            learning.learn(*self._function, shared.status, shared.age, started)
        asked_at = now - shared.age
        if asked_at < since:
            return None
        if shared.trouble is None:
            self._context.outages.answered(self._state, asked_at)
        else:
            is_update = False  # a fault is published with an earlier answer
        if shared.status is not None:
            meta = self._see(shared.status, asked_at)
            self._state.followed_at = asked_at
            return meta if is_update or shared.age <= cache.expiry else None
        if shared.trouble is None and (is_update or shared.age <= cache.missing_expiry):
            cache.set_missing(self._function, asked_at)
            raise FunctionNotFound(*self._function)
        return None

    def _see(self, status: ReplicaStatus, asked_at: float) -> FunctionMeta:
        self._state.observe(status, asked_at)
        name, namespace = self._function
        meta = self._context.cache.set(name, status, namespace, asked_at=asked_at, state=self._state)
        self._state = meta.state  # another object, if the old one was evicted meanwhile
        return meta
