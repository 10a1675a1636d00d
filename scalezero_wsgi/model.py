"""The shared types: a function, the status of its replicas, and the package's exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Function(NamedTuple):
    """A function's identity. The same name in two namespaces is two functions."""

    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.name}.{self.namespace}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A function's replicas at one moment, as the provider reports them.

    :param replicas: the desired count. Zero means scaled to zero.
    :param available_replicas: how many can serve a request right now.
    :param min_replicas: the count to scale up to from zero.
    :param max_replicas: never scale above this; ``None`` means no limit.
    :param endpoint: the function's base URL, if the provider knows it.
    :param failure: why the function cannot start; ``None`` while it still may. It is logged, and sent to
        clients only with the setting ``expose_failures``.
    :param paused: whether it is at zero by being paused: it keeps its memory, goes on when it is scaled up,
        and is stopped when it is scaled to zero.

    :raises ValueError: if a count is negative or not an integer.
    """

    replicas: int
    available_replicas: int
    min_replicas: int = 1
    max_replicas: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    endpoint: str | None = None
    failure: str | None = None
    paused: bool = False

    def __post_init__(self) -> None:
        for name in ("replicas", "available_replicas", "min_replicas", "max_replicas"):
            count = getattr(self, name)
            if count is None and name == "max_replicas":
                continue
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"{name} must be an integer of 0 or more, not {count!r}")

    @property
    def first_replicas(self) -> int:
        """How many replicas to ask for when the function is at zero."""
        wanted = max(1, self.min_replicas)
        return wanted if self.max_replicas is None else max(1, min(wanted, self.max_replicas))


AT_ZERO = ReplicaStatus(replicas=0, available_replicas=0)


class ScaleZeroError(Exception):
    """The base of all the package's exceptions."""


class SettingError(ScaleZeroError, ValueError):
    """A setting has a value that is not allowed; the message names both, and what is allowed."""


class MissingExtra(ScaleZeroError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed; it comes with the extra {extra!r}:"
            f" pip install 'scalezero_wsgi[{extra}]'"
        )


class OldLibrary(ScaleZeroError, ImportError):
    """An installed library is too old; the message names the extra that installs a newer one."""

    def __init__(self, library: str, version: str, needed: str, extra: str) -> None:
        super().__init__(
            f"{library} {version} is too old, it must be {needed} or later; the extra {extra!r} brings it:"
            f" pip install 'scalezero_wsgi[{extra}]'"
        )


class InvalidFunctionName(ScaleZeroError, ValueError):
    """The name in the request is not a valid function name. The provider was not asked."""


class FunctionNotFound(ScaleZeroError, LookupError):
    """The provider answered that it does not know the function."""

    def __init__(self, name: str, namespace: str = "") -> None:
        self.function = Function(name, namespace)
        super().__init__(f"function {self.function} is not known to the provider")


class ProviderError(ScaleZeroError):
    """The provider failed, refused the call, hung or gave an invalid answer. The message is only logged."""


class NotAvailable(ScaleZeroError):
    """No replica became available before the deadline.

    :ivar waited: seconds the request was held.
    :ivar retry_after: seconds that the start will probably still take.
    :ivar shortened: whether the client set the deadline (``Prefer: wait=N``).
    """

    def __init__(
        self, function: Function, waited: float, retry_after: float = 1.0, shortened: bool = False
    ) -> None:
        self.function = function
        self.waited = waited
        self.retry_after = retry_after
        self.shortened = shortened
        super().__init__(f"function {function} was not available after {waited:.1f} s")


class StillStarting(NotAvailable):
    """The client prefers an answer now to a longer wait; the activation goes on.

    :ivar wish: ``"page"``, for a browser that gets the waking page, or ``"respond-async"`` (RFC 7240).
    """

    def __init__(
        self, function: Function, waited: float, retry_after: float, wish: str, shortened: bool = False
    ) -> None:
        self.wish = wish
        super().__init__(function, waited, retry_after, shortened)


class NoRoom(NotAvailable):
    """The function waited for others to go, so that it fits into the budget, and none could before the
    deadline."""

    def __init__(
        self, function: Function, waited: float, retry_after: float = 1.0, shortened: bool = False
    ) -> None:
        super().__init__(function, waited, retry_after, shortened)
        self.args = (f"there was no room for function {function} within {waited:.1f} s",)


class ProviderSilent(ProviderError):
    """The provider has not answered yet; it may still do so."""


class TooManyWaiting(ScaleZeroError):
    """The request cannot be held: there is no free place, or no free thread.

    :ivar retry_after: seconds after which another try makes sense.
    :ivar reason: the cause, in words that name no function.
    """

    def __init__(self, message: str, retry_after: float = 1.0, reason: str = "no place to wait") -> None:
        self.retry_after = retry_after
        self.reason = reason
        super().__init__(message)


class ClientGone(ScaleZeroError):
    """The client disconnected while its request waited; nobody will read an answer."""


class WorkerStopping(ScaleZeroError):
    """The worker was told to stop while the request waited; another worker can serve a retry."""

    retry_after = 1.0
    reason = "the worker stops"


class MayNotWake(ScaleZeroError):
    """The function is at zero, and a rule forbids this request to wake it.

    :ivar status: the HTTP status of the answer, from the settings.
    """

    def __init__(self, function: Function, status: int) -> None:
        self.function = function
        self.status = status
        super().__init__(f"function {function} is at zero, and this request does not wake it")


class FunctionFailed(ScaleZeroError):
    """The function cannot start, or rests after failed starts.

    A provider may raise it: ``raise FunctionFailed(name, "its licence has expired")`` reports a failed start.

    :param function: the function, or its name alone.
    :param retry_after: seconds left of the back-off. A provider's value is ignored: the middleware sets the
        pauses after failed starts.
    :ivar reason: why it failed. It may contain the function's own output, so clients get it only with the
        setting ``expose_failures``.
    :ivar retry_after: seconds left of the back-off.
    """

    def __init__(self, function: Function | str, reason: str, retry_after: float = 1.0) -> None:
        if isinstance(function, str):
            function = Function(function)
        self.function = function
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(f"function {function} failed to start: {reason}")
