"""What is known of functions: asked of the provider, kept in the cache, shared with the fleet."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..coordination.base import ProviderFault, SharedStatus
from ..coordination.peers import Leadership
from ..events import Reporter
from ..model import Function, FunctionFailed, FunctionNotFound, ProviderError, ReplicaStatus
from ..providers.base import LearningProvider, Provider, WatchingProvider
from .function_cache import FunctionCache, FunctionMeta
from .outages import Outages
from .starts import Starts

WATCH = 5.0
"""Seconds for which a provider is asked to watch for a change at a time."""


class Knowledge:
    """The way of every answer. Safe for threads.

    :param provider: the one who knows replicas. Calls block within the provider's own time-outs.
    :param cache: where every answer goes.
    :param report: is told what happens.
    :param clock: monotonic seconds.
    :param jitter: a number from 0 to 1 for each pause.
    :ivar watches: whether the provider can wait for a change by itself.
    """

    def __init__(
        self,
        provider: Provider,
        cache: FunctionCache,
        report: Reporter,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._provider = provider
        self._watching = provider if isinstance(provider, WatchingProvider) else None
        self.watches = self._watching is not None
        self._learning = provider if isinstance(provider, LearningProvider) else None
        self.cache = cache
        self.report = report
        self.clock = clock
        self.starts = Starts(clock, report)
        self.outages = Outages(clock, report, jitter)

    def query(
        self,
        function: Function,
        lead: Leadership,
        seen: ReplicaStatus | None = None,
        trouble: ProviderError | None = None,
        started_at: float | None = None,
    ) -> FunctionMeta:
        """Ask the provider, or let it watch for a change from ``seen``; remember the answer, and tell the
        fleet.

        A provider that raises :class:`FunctionFailed` has answered: the function does not come up.

        :param trouble: what the leader has met otherwise and not got over.
        :param started_at: monotonic seconds at which the start that is waited for was asked for: if it has
            ended, it is remembered how long it took. ``None``: none is waited for.
        :raises FunctionNotFound: the provider does not know the function.
        :raises ProviderError: the call failed, whatever was raised.
        """
        asked_at = self.clock()
        try:
            if seen is None or self._watching is None:
                status = self._provider.get_replicas(*function)
            else:
                status = self._watching.wait_for_change(*function, seen, WATCH)
                asked_at = self.clock() if status != seen else asked_at
        except FunctionNotFound:
            self.outages.answered(function, asked_at)
            self._tell_missing(lead, function)
            raise FunctionNotFound(*function) from None  # whatever the provider put into its own
        except FunctionFailed as error:
            # One replica, not zero: a failure at zero is one from before, and does not stand against a start.
            status = ReplicaStatus(1, 0, failure=str(error.reason))
        except ProviderError:
            raise
        except BaseException as error:  # a leader's thread ends with its flight: nobody else is meant
            raise ProviderError(f"{type(error).__name__}: {error}") from error
        if not isinstance(status, ReplicaStatus):
            raise ProviderError(f"get_replicas returned {status!r}, not a ReplicaStatus")
        self.outages.answered(function, asked_at)
        meta = self._see(function, status, asked_at)
        if started_at is not None and meta.available:  # before it is told, so that it is told along
            self.starts.took(function, self.clock() - started_at)
        troubled = None if trouble is None or meta.available else ProviderFault()
        self.tell(function, lead, meta, trouble=troubled, is_update=status != seen)
        return meta

    def set_replicas(self, function: Function, lead: Leadership, replicas: int) -> None:
        """Ask the provider for so many replicas.

        :raises FunctionNotFound: the provider does not know the function.
        :raises FunctionFailed: the function was tried and did not start.
        :raises ProviderError: the call failed, whatever was raised.
        """
        try:
            self._provider.set_replicas(*function, replicas)
        except FunctionNotFound:
            self._tell_missing(lead, function)
            raise FunctionNotFound(*function) from None  # whatever the provider put into its own
        except (FunctionFailed, ProviderError):
            raise
        except BaseException as error:
            raise ProviderError(f"{type(error).__name__}: {error}") from error

    def tell(
        self,
        function: Function,
        lead: Leadership,
        meta: FunctionMeta | None,
        *,
        trouble: ProviderFault | None = None,
        is_update: bool = True,
    ) -> None:
        """Tell the fleet a status, and what is remembered of the function's starts."""
        known = SharedStatus(None, trouble=trouble)
        if meta is not None and not meta.doubted:
            known = SharedStatus(meta.status, max(0.0, self.clock() - meta.last_refresh), trouble=trouble)
        lead.publish(self.starts.tell(function, known), is_update=is_update)

    def take(
        self, function: Function, told: SharedStatus, is_update: bool, since: float = -math.inf
    ) -> FunctionMeta | None:
        """Learn what another worker was told.

        :param news: whether it was told while one waited for it.
        :param since: take no answer to a question asked before that moment.
        :return: the entry made of it, if it counts as an answer: it is fresh, or news.
        :raises FunctionNotFound: the provider does not know the function.
        """
        self.starts.learn(function, told)
        known = self.cache.find(function)
        if known is not None:
            known.usage.woken_at = self.starts.up_at(function)
        if told.status is not None and self._learning is not None:
            started = None if told.start is None else told.start.age
            self._learning.learn(*function, told.status, told.age, started)
        asked_at = self.clock() - told.age
        if asked_at < since:
            return None
        is_update = is_update and told.trouble is None  # a trouble is told along with an answer from before
        if told.trouble is None:
            self.outages.answered(function, asked_at)
        if told.status is not None:
            meta = self._see(function, told.status, asked_at)
            return meta if is_update or told.age <= self.cache.expiry else None
        if told.trouble is None and (is_update or told.age <= self.cache.missing_expiry):
            self.cache.set_missing(function, asked_at)
            raise FunctionNotFound(*function)
        return None

    def _see(self, function: Function, status: ReplicaStatus, asked_at: float) -> FunctionMeta:
        known = self.cache.find(function)
        down = known is not None and known.status.available_replicas == 0
        self.starts.see(function, status, asked_at, known.last_refresh if known and down else None)
        meta = self.cache.set(function.name, status, function.namespace, asked_at=asked_at)
        meta.usage.woken_at = self.starts.up_at(function)
        return meta

    def _tell_missing(self, lead: Leadership, function: Function) -> None:
        self.cache.set_missing(function)
        lead.publish(SharedStatus(None))
