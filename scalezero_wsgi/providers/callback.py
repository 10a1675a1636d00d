"""The provider callback: a provider made of functions that you have already."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ..bounded import Bounded
from ..model import AT_ZERO, Function, ReplicaStatus, SettingError

_DOUBT_EVERY = 5.0
"""Seconds for which a scale-up is believed, whatever the application meets: it bounds the calls that a
function causes by answering 503 of its own accord."""

_ONE = ReplicaStatus(replicas=1, available_replicas=1)


class _Memory(NamedTuple):
    """Whether a function is up, and since when that is known."""

    up: bool
    since: float


class CallbackProvider:
    """A provider from callbacks. Give either ``get_replicas`` and ``set_replicas``, or ``scale_up``.

    Callbacks get ``(name, namespace)``, ``set_replicas`` the wanted count as well; they are called from
    several threads. What they raise counts as :class:`~scalezero_wsgi.ProviderError`, but for the
    package's own exceptions.

    :param get_replicas: tells a :class:`~scalezero_wsgi.ReplicaStatus`.
    :param set_replicas: asks for a count, and may return before it is reached.
    :param scale_up: blocks until the function is ready. The function then counts as available until the
        application cannot reach it (502, 503, 504 or a connection error); then it is called again.
    :param scale_down: called when the function is to go to zero; with ``scale_up`` only.
    :param namespace: where a function is that is named without one: ``name`` and ``name.<namespace>`` are
        then one function, and callbacks are always told the namespace. ``""``: they are two.
    :param clock: where monotonic seconds come from.
    :raises SettingError: any other combination.
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
        asking = get_replicas is not None and set_replicas is not None
        pushing = scale_up is not None
        if asking == pushing or (get_replicas is None) != (set_replicas is None) or (scale_down and asking):
            raise SettingError(
                "CallbackProvider takes either get_replicas and set_replicas, or scale_up (and scale_down)"
            )
        self.own_namespace = namespace
        self._get_replicas = get_replicas or self._remembered
        self._set_replicas = set_replicas or self._scale
        self._scale_up = scale_up or (lambda *_: None)
        self._clock = clock
        self._scale_down = scale_down
        self._memories: Bounded[Function, _Memory] = Bounded(10_000)

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Tell the status, from the callback or from memory."""
        return self._get_replicas(name, namespace)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Ask for a count; with ``scale_up`` this blocks until the function is ready."""
        self._set_replicas(name, namespace, replicas)

    def doubt(self, name: str, namespace: str) -> None:
        """Forget that the function was scaled up, unless that was just now."""
        memory, now = self._memories.get(Function(name, namespace)), self._clock()
        if memory is not None and now >= memory.since + _DOUBT_EVERY:
            self._remember(name, namespace, False, now)

    def learn(self, name: str, namespace: str, status: ReplicaStatus, age: float) -> None:
        """Another worker scaled the function up, or down, or found out that it is not there any more."""
        told_at, up = self._clock() - age, status.available_replicas > 0
        memory = self._memories.get(Function(name, namespace))
        if memory is None or (memory.up != up and memory.since < told_at):
            self._remember(name, namespace, up, told_at)

    def _remember(self, name: str, namespace: str, up: bool, since: float) -> None:
        self._memories.set(Function(name, namespace), _Memory(up, since))

    def _remembered(self, name: str, namespace: str) -> ReplicaStatus:
        memory = self._memories.get(Function(name, namespace))
        return _ONE if memory is not None and memory.up else AT_ZERO

    def _scale(self, name: str, namespace: str, replicas: int) -> None:
        if replicas == 0:
            self._remember(name, namespace, False, self._clock())
            if self._scale_down is not None:
                self._scale_down(name, namespace)
        else:
            self._scale_up(name, namespace)
            self._remember(name, namespace, True, self._clock())
