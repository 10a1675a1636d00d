"""A scripted provider, for what no real engine does on demand: to fail, lag or hang at a chosen call.

Real processes and engines are under ``tests/servers`` and ``tests/engines``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from scalezero_wsgi import Function, FunctionNotFound, ReplicaStatus

Step = ReplicaStatus | Exception | Callable[[], ReplicaStatus]

HELLO = Function("hello")
UP = ReplicaStatus(replicas=1, available_replicas=1)
STARTING = ReplicaStatus(replicas=1, available_replicas=0)
ZERO = ReplicaStatus(replicas=0, available_replicas=0)


class ScriptedProvider:
    """Answers queries by a script whose last step repeats, and writes down what it was asked."""

    def __init__(self, *script: Step, on_set: Exception | None = None) -> None:
        self.script = list(script)
        self.queries: list[Function] = []
        self.sets: list[tuple[Function, int]] = []
        self.set_errors: list[Exception] = [] if on_set is None else [on_set]
        self._lock = threading.Lock()

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        with self._lock:
            self.queries.append(Function(name, namespace))
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        with self._lock:
            self.sets.append((Function(name, namespace), replicas))
            if self.set_errors:
                raise self.set_errors.pop(0)


class FakeEngine:
    """Functions that start when they are told to, ``delay`` seconds later by the given clock."""

    def __init__(self, clock: Callable[[], float], delay: float = 0.0, known: set[str] | None = None) -> None:
        self._clock = clock
        self.delay = delay
        self._known = known
        self._lock = threading.Lock()
        self._ready_at: dict[Function, float] = {}
        self.queries: list[Function] = []
        self.sets: list[tuple[Function, int]] = []

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        function = Function(name, namespace)
        with self._lock:
            self.queries.append(function)
            if self._known is not None and name not in self._known:
                raise FunctionNotFound(name, namespace)
            ready_at = self._ready_at.get(function)
        if ready_at is None:
            return ZERO
        return UP if self._clock() >= ready_at else STARTING

    def put_up(self, name: str) -> None:
        """Have a function ready, though nobody has asked for it."""
        with self._lock:
            self._ready_at[Function(name)] = self._clock()

    def put_down(self) -> None:
        """Have all at zero, though nobody has asked for it."""
        with self._lock:
            self._ready_at.clear()

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        function = Function(name, namespace)
        with self._lock:
            self.sets.append((function, replicas))
            if replicas:
                self._ready_at[function] = self._clock() + self.delay
            else:
                self._ready_at.pop(function, None)


class Gate:
    """A provider whose functions start when the test opens it, with ``labels`` from the beginning."""

    def __init__(self, **labels: str) -> None:
        self.opened = threading.Event()
        self.status = replace(STARTING, labels={key.replace("_", "."): text for key, text in labels.items()})
        self.queries: list[Function] = []

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        self.queries.append(Function(name, namespace))
        return replace(self.status, available_replicas=1) if self.opened.is_set() else self.status

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        raise NotImplementedError
