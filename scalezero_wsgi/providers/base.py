"""What a provider is: it tells how many replicas a function has, and changes that number.

A provider knows nothing of WSGI. Its methods may block, each within a time-out of its own, and are
called from several threads at once. It raises :class:`~scalezero_wsgi.FunctionNotFound`,
:class:`~scalezero_wsgi.FunctionFailed` or :class:`~scalezero_wsgi.ProviderError`; any other exception counts
as the last of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from ..model import Function, ReplicaStatus, SettingError


class Provider(Protocol):
    """The two methods that the middleware needs."""

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Return the present status.

        :raises FunctionNotFound: the provider does not know the function.
        :raises FunctionFailed: the function does not start, and is not to be asked to.
        :raises ProviderError: the status cannot be found out.
        """

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Ask for a number of replicas. May return before they run. Idempotent.

        What ``get_replicas`` returns from then on must be about this request: a ``failure`` from before must
        be gone.

        :raises FunctionNotFound: the provider does not know the function.
        :raises FunctionFailed: the function was tried and did not start. It is tried again after a pause.
        :raises ProviderError: the number was not accepted. That is tried again at once.
        """


@runtime_checkable
class NamespacedProvider(Provider, Protocol):
    """A provider that has a namespace of its own, in which it looks for a function that is named without one.

    ``name`` and ``name.<own_namespace>`` are then one function. The middleware calls it by the second, and so
    does ``list_functions``.

    :ivar own_namespace: ``""``: there is none.
    """

    own_namespace: str


@runtime_checkable
class WatchingProvider(Provider, Protocol):
    """A provider that can wait for a change, so that nobody has to poll."""

    def wait_for_change(
        self, name: str, namespace: str, seen: ReplicaStatus, timeout: float
    ) -> ReplicaStatus:
        """Return the status as soon as it differs from ``seen``, at the latest after ``timeout`` seconds."""


@runtime_checkable
class ListingProvider(Provider, Protocol):
    """A provider that can name its functions.

    If it has a true attribute ``lists_only_functions``, all that it lists are functions, and count in a
    budget (``max_running`` and the like) when they are up. Of another one, such as an engine that lists
    databases, too, those count that are used, or labelled for the middleware.
    """

    def list_functions(self) -> Iterable[Function]:
        """Name every function that the provider knows."""


@runtime_checkable
class PausingProvider(Provider, Protocol):
    """A provider that can take a function to zero and keep its memory.

    Of a paused function ``get_replicas`` returns no replicas, none of them available, and ``paused``, for a
    request to it would hang. ``set_replicas`` lets it go on with 1 or more, and ends it with 0.
    """

    def pause(self, name: str, namespace: str) -> None:
        """Pause every replica, and return when none of them runs any more. Idempotent; nothing at zero.

        :raises FunctionNotFound: the provider does not know the function.
        :raises ProviderError: it was not paused.
        """


@runtime_checkable
class LearningProvider(Provider, Protocol):
    """A provider that answers from memory, and needs to know what those of other workers answered."""

    def learn(
        self, name: str, namespace: str, status: ReplicaStatus, age: float, started: float | None
    ) -> None:
        """Take over the ``status`` that another worker's provider returned ``age`` seconds ago.

        :param started: seconds since any worker last had the function scaled up from zero; ``None`` when
            nobody knows.
        """


@runtime_checkable
class DoubtingProvider(Provider, Protocol):
    """A provider that answers from memory, and needs to know when its answer proved wrong.

    If it has a true attribute ``doubts_500``, the application's 500 counts as a function that could not be
    reached, as 502, 503 and 504 do.
    """

    def doubt(self, name: str, namespace: str) -> None:
        """Note that the application could not reach the function although its status said available."""


def check_callable(what: str, value: object, *arguments: str) -> None:
    """Refuse what cannot be called with so many positional arguments, or would have to be awaited.

    :param what: its name, for the error.
    :param arguments: their names, for the error.
    :raises SettingError: it names the thing, its value and what is allowed.
    """
    message = f"{what} must be a callable of ({', '.join(arguments)}), not {value!r}"
    if not callable(value):
        raise SettingError(message)
    for each in (value, type(value).__call__):
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            raise SettingError(f"{message}: it is async, and nothing would await it")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some of those written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise SettingError(f"{message}: {error}") from None
