"""The provider callback: a provider made of callables of your own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from .._lib.bounded import Bounded
from ..model import (
    AT_ZERO,
    Function,
    FunctionFailed,
    FunctionNotFound,
    ProviderError,
    ReplicaStatus,
    SettingError,
)
from .base import check_callable

logger = logging.getLogger("scalezero_wsgi")

_DOUBT_EVERY = 5.0
"""Seconds for which a scale-up counts, whatever the application meets. It limits the calls that a function
causes which answers 500 or 503 of its own accord."""

_LONGEST_REASON = 300
"""Characters of an exception's text that are kept: some hold a command's whole output."""

_ONE = ReplicaStatus(replicas=1, available_replicas=1)


class _Memory(NamedTuple):
    """What any worker last did to a function.

    :ivar since: when it was scaled up, or to zero.
    :ivar doubted_at: when the application could not reach it.
    """

    scaled_up: bool
    since: float
    doubted_at: float = -math.inf

    @property
    def is_up(self) -> bool:
        return self.scaled_up and self.doubted_at < self.since + _DOUBT_EVERY


class CallbackProvider:
    """A provider from callbacks. Give either ``get_replicas`` and ``set_replicas``, or ``scale_up``.

    Callbacks get ``(name, namespace)``, ``set_replicas`` the wanted count as well; they are called from
    several threads. They may raise:

    - :class:`~scalezero_wsgi.FunctionNotFound`: there is no such function: 404.
    - :class:`~scalezero_wsgi.FunctionFailed`: the function cannot start, as in
      ``raise FunctionFailed(name, "its licence has expired")``. Requests get 503 at once, and it is tried
      again after 1 s, 2 s, 4 s and so on up to 60 s, once by all workers together. Raised by
      ``get_replicas``, it keeps ``set_replicas`` from being called; a status with 0 replicas and a
      ``failure`` does not.
    - :class:`~scalezero_wsgi.ProviderError`: whoever starts functions cannot be used. It is tried again at
      once, for some seconds, and then requests get 502.

    Whatever else ``scale_up`` raises counts as ``FunctionFailed``, and its traceback goes to the log; from
    the other callbacks it counts as ``ProviderError``.

    :param get_replicas: tells a :class:`~scalezero_wsgi.ReplicaStatus`.
    :param set_replicas: asks for a count, and may return before it is reached.
    :param scale_up: blocks until the function is ready. The function then counts as available until the
        application cannot reach it (500, 502, 503, 504 or a connection error); then it is called again, but
        not within 5 s of the last time.
    :param scale_down: called when the function is to go to zero; with ``scale_up`` only.
    :param namespace: where a function is that is named without one: ``name`` and ``name.<namespace>`` are
        then one function, and callbacks are always told the namespace. ``""``: they are two.
    :param clock: where monotonic seconds come from.
    :ivar doubts_500: whether the application's 500 counts as a function that it could not reach, as with
        ``scale_up``: frameworks make one of a connection error.
    :raises SettingError: any other combination, or a callback that cannot be called so.
    """

    def __init__(
        self,
        *,
        get_replicas: Callable[[str, str], ReplicaStatus] | None = None,
        set_replicas: Callable[[str, str, int], object] | None = None,
        scale_up: Callable[[str, str], object] | None = None,
        scale_down: Callable[[str, str], object] | None = None,
        namespace: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        has_get_and_set = get_replicas is not None and set_replicas is not None
        has_scale_up = scale_up is not None
        if (
            has_get_and_set == has_scale_up
            or (get_replicas is None) != (set_replicas is None)
            or (scale_down is not None and has_get_and_set)
        ):
            raise SettingError(
                "CallbackProvider takes either get_replicas and set_replicas, or scale_up (and scale_down)"
            )
        self.own_namespace = namespace
        for what, callback in (
            ("get_replicas", get_replicas),
            ("scale_up", scale_up),
            ("scale_down", scale_down),
        ):
            if callback is not None:
                check_callable(what, callback, "name", "namespace")
        if set_replicas is not None:
            check_callable("set_replicas", set_replicas, "name", "namespace", "replicas")
        self.doubts_500 = has_scale_up
        self._get_replicas = get_replicas or self._remembered
        self._set_replicas = set_replicas or self._scale
        self._scale_up = scale_up or (lambda *_: None)
        self._clock = clock
        self._scale_down = scale_down
        self._memories: Bounded[Function, _Memory] = Bounded(10_000)

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Return the status, from the callback or from memory."""
        return self._get_replicas(name, namespace)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Ask for a count; with ``scale_up`` this blocks until the function is ready.

        :raises FunctionFailed: ``scale_up`` raised that, or anything that is not the package's own.
        """
        self._set_replicas(name, namespace, replicas)

    def doubt(self, name: str, namespace: str) -> None:
        """Forget that the function was scaled up, unless that was just now."""
        function, now = Function(name, namespace), self._clock()
        if self._memories.get(function) is not None:
            self._memories.change(
                function, lambda known: known._replace(doubted_at=now) if known else _Memory(False, now)
            )

    def learn(
        self, name: str, namespace: str, status: ReplicaStatus, age: float, started: float | None
    ) -> None:
        """Take over that another worker scaled the function up or down, or found it gone.

        :param age: seconds since the status was found.
        :param started: seconds since any worker last scaled the function up; ``None`` when nobody knows.
        """
        now, up = self._clock(), status.available_replicas > 0
        found_at = now - age
        started_at = found_at if started is None else now - started

        def change(known: _Memory | None) -> _Memory:
            if known is None:
                return _Memory(up, started_at if up else found_at)
            if up and started_at > known.since and (started is not None or not known.scaled_up):
                return _Memory(True, started_at, known.doubted_at)
            if not up and known.is_up and found_at > known.since:
                return _Memory(False, found_at)
            return known

        self._memories.change(Function(name, namespace), change)

    def _remember(self, name: str, namespace: str, up: bool) -> None:
        self._memories.set(Function(name, namespace), _Memory(up, self._clock()))

    def _remembered(self, name: str, namespace: str) -> ReplicaStatus:
        memory = self._memories.get(Function(name, namespace))
        return _ONE if memory is not None and memory.is_up else AT_ZERO

    def _scale(self, name: str, namespace: str, replicas: int) -> None:
        if replicas == 0:
            self._remember(name, namespace, False)
            if self._scale_down is not None:
                self._scale_down(name, namespace)
            return
        try:
            self._scale_up(name, namespace)
        except (FunctionFailed, FunctionNotFound, ProviderError):
            raise
        except BaseException as error:  # gevent's Timeout is no Exception
            function = Function(name, namespace)
            logger.exception("%s: scale_up raised", function)
            raise FunctionFailed(function, f"scale_up raised {_one_line(error)}") from error
        self._remember(name, namespace, True)


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
