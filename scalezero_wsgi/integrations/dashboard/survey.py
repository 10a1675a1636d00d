"""What the provider says of all its functions, asked for behind the requests that look.

However many look, it is asked one question at a time, and rests between two rounds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from ...activation.single_flight import Flight, SingleFlight
from ...model import Function, ReplicaStatus, ScaleZeroError, TooManyWaiting
from ...operate import Seen
from ...providers.base import ListingProvider, Provider

PATIENCE = 1.0
"""Seconds for which the first that look wait for the provider."""

LEAST_REST, REST = 1.0, 4.0
"""Seconds between two rounds, and how many times as long as a round has taken."""

SILENT = 5.0
"""Seconds after which it is said that the provider does not answer."""

HANGS = 60.0


class Answer(NamedTuple):
    """:ivar at: monotonic seconds at which it was asked for."""

    at: float
    seen: Seen


class Survey:
    """Safe for threads and after a fork; its thread starts on first use.

    :param is_ours: which functions are asked for.
    :param clock: monotonic seconds.
    :ivar answers: what is known, replaced or filled while a round goes on.
    """

    def __init__(
        self,
        provider: Provider,
        is_ours: Callable[[Function], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.answers: dict[Function, Answer] = {}
        self._provider = provider
        self._is_ours = is_ours
        self._clock = clock
        self._rounds: SingleFlight[None, None] = SingleFlight("scalezero-survey", 1, clock)
        self._not_before = float("-inf")
        self._asking_since: float | None = None
        self._error = ""
        self._is_first = True

    def look(self) -> None:
        """Begin a round if it is time; wait for the first one, ``PATIENCE`` seconds at most."""
        now = self._clock()
        if not isinstance(self._provider, ListingProvider) or now < self._not_before:
            return
        with contextlib.suppress(TooManyWaiting):  # an earlier question has no answer yet
            flight = self._rounds.join(None, self._go_round, now + HANGS)
            if self._is_first:
                flight.wait(flight.started_at + PATIENCE - now)

    @property
    def trouble(self) -> str:
        """Why what is known may be old; empty: it is not."""
        since = self._asking_since
        if since is not None and self._clock() > since + SILENT:
            return f"The provider has not answered for {self._clock() - since:.0f} s."
        return self._error

    def _go_round(self, flight: Flight[None]) -> None:  # noqa: ARG002
        begun = self._clock()
        try:
            functions = self._listed()
            for function in functions:
                self.answers[function] = Answer(self._now(), self._ask(function))
            gone = self.answers.keys() - functions
            for function in gone:
                del self.answers[function]
            self._error = ""
        except Exception as error:  # noqa: BLE001  another's provider may raise anything
            self._error = f"The provider cannot list its functions: {str(error) or repr(error)}"
        finally:
            now = self._clock()
            self._asking_since, self._is_first = None, False
            self._not_before = now + max(LEAST_REST, REST * (now - begun))

    def _now(self) -> float:
        """Note that a question is asked now."""
        self._asking_since = now = self._clock()
        return now

    def _listed(self) -> set[Function]:
        if not isinstance(self._provider, ListingProvider):
            return set()
        self._now()
        return {each for each in map(Function._make, self._provider.list_functions()) if self._is_ours(each)}

    def _ask(self, function: Function) -> Seen:
        try:
            status: object = self._provider.get_replicas(*function)
            if not isinstance(status, ReplicaStatus):
                return Seen(function, None, f"the provider returned {status!r}")
        except ScaleZeroError as error:
            return Seen(function, None, str(error))
        except Exception as error:  # noqa: BLE001  another's provider may raise anything
            return Seen(function, None, f"{type(error).__name__}: {error}")
        return Seen(function, status)
