"""Functions as containers of a Docker Engine.

A function is a container by its name, or by the labels ``scalezero.function`` and ``scalezero.namespace``, or
a Compose service with all its containers, whose namespace is the project. Containers are started and stopped,
never made or removed. More labels, all of them optional:

``scalezero.mode``
    ``stop`` (the default) or ``pause``: what is done when it is scaled to zero, by whomever. A paused
    container keeps its memory and wakes in milliseconds. The middleware's ``idle_action`` can do that, too.
``scalezero.ready``
    What must answer before it counts as available: a path, with 2xx or 3xx to a GET, or ``tcp``: the port
    takes a connection. The default is ``tcp``, or nothing where there is a healthcheck. It is asked once per
    start, and again when the application could not reach the function. A path is surer: where this host
    cannot reach the containers' own addresses, ``tcp`` has only Docker's proxy to ask, which takes
    connections that it may not be able to pass on, and 0.25 s more to find out.
``scalezero.port``
    The container's port; the default is the only published or exposed one.
``scalezero.after``
    Functions that must be available before it starts, separated by commas: ``db`` in the same namespace, or
    ``db.<namespace>``.
``scalezero.group``
    Functions of one namespace with the same group wake together. They go to zero one by one.

The desired count is the number of containers that run; minimum and maximum are the number there is. An
unhealthy container is not available, but no failure either: the engine goes on checking it, so it may
recover.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Self

from ..._lib.bounded import Bounded
from ...model import Function, FunctionNotFound, ReplicaStatus
from ..checks import positive_duration
from .client import DockerClients, engine_url
from .container import Container, Reach
from .engine import CannotStart, DockerEngine
from .probe import Address

__all__ = ["DockerProvider"]

_log = logging.getLogger("scalezero_wsgi")

_KEYWORDS = ("timeout", "after_timeout", "host", "network", "cert_path")
_PROBE_EVERY = 0.005
_REFRESH_EVERY = 1.0  # seconds; what makes no event of these containers, such as a new one, is found so
_PROBE_WAIT = 1.0
_SHORT_WAIT = 0.05
_EVENTS = ("start", "die", "oom", "pause", "unpause", "health_status", "rename", "destroy")


class DockerProvider:
    """Starts and stops containers. Safe for threads and after a fork.

    :param url: ``unix:///path``, ``tcp://host:port``, ``http://…`` or ``https://…``. ``None``: what the
        variables ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH`` say, else the usual socket.
    :param timeout: seconds (or a string such as ``"5s"``) within which the engine must answer.
    :param after_timeout: seconds within which what ``scalezero.after`` names must be available.
    :param host: the host on which published ports are reached; by default the engine's.
    :param network: reach containers by their addresses in this Docker network, not by published ports: for
        an application that is a container itself.
    :param cert_path: the directory of ``ca.pem``, ``cert.pem`` and ``key.pem``; makes ``tcp`` use TLS.
    :raises SettingError: a value is not allowed.
    :raises MissingExtra: the library ``docker`` is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float | str = 5.0,
        after_timeout: float | str = 30.0,
        host: str | None = None,
        network: str | None = None,
        cert_path: str | None = None,
    ) -> None:
        self._clients = DockerClients(url, timeout=timeout, cert_path=cert_path)
        self._after_timeout = positive_duration("after_timeout", after_timeout)
        self._engine = DockerEngine(self._clients, Reach(host, self._clients.host, network))
        self._blocked: Bounded[Function, str] = Bounded(10_000)
        self._answered: Bounded[Function, Mapping[str, str]] = Bounded(10_000)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make one from ``docker://``, ``docker+unix:///path`` or ``docker+tcp://host:port``.

        :param url: the constructor's keywords are its query parameters.
        :raises SettingError: it is not such a URL, or a keyword is unknown or its value not allowed.
        :raises MissingExtra: the library ``docker`` is not installed.
        """
        engine, keywords = engine_url(url, "docker", _KEYWORDS)
        return cls(engine, **keywords)

    def list_functions(self) -> list[Function]:
        """Name every function of the engine, in order.

        :raises ProviderError: the engine cannot be asked.
        """
        return self._engine.functions()

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Return the present status; probes a container that has not answered since it started, once.

        :raises FunctionNotFound: the engine has no such container.
        :raises ProviderError: the engine cannot be asked, or a label's value is not allowed.
        """
        function = Function(name, namespace)
        deadline = self._deadline()
        return self._status(function, self._engine.find(function), _PROBE_WAIT, deadline)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Start or unpause containers, or stop or pause them, until so many run.

        :param replicas: 1 or more: start the function and its group, those first that others come after,
            which are waited for; not waited for is that the function itself is ready. 0: stop, paused ones
            too, and return when it has ended: killed after the container's own grace if need be.
        :raises FunctionNotFound: the engine has no such container.
        :raises ProviderError: the engine refused, or a label's value is not allowed. That the start cannot
            succeed is no error here; it is the status's ``failure``.
        """
        function = Function(name, namespace)
        containers = self._engine.find(function)
        running = [each for each in containers if self._engine.runs(each)]
        if replicas < 1:
            self._engine.stop(running + [each for each in containers if each.paused])
            return
        self._engine.stop(running[replicas:])
        self._blocked.pop(function)
        try:
            self._wake(function, containers, replicas)
        except CannotStart as blocked:
            _log.warning("function %s cannot start: %s", function, blocked)
            self._blocked.set(function, str(blocked))

    def pause(self, name: str, namespace: str) -> None:
        """Pause all containers that run: they keep memory and connections, and take no time of the processor.

        :raises FunctionNotFound: the engine has no such container.
        :raises ProviderError: the engine refused, or a label's value is not allowed.
        """
        containers = self._engine.find(Function(name, namespace))
        self._engine.pause([each for each in containers if self._engine.runs(each)])

    def wait_for_change(
        self, name: str, namespace: str, seen: ReplicaStatus, timeout: float
    ) -> ReplicaStatus:
        """Return the status as soon as it differs from ``seen``.

        The engine's events tell; while a container starts it is also probed, every 5 ms.

        :param timeout: seconds after which it returns in any case; the engine's time-outs come on top.
        :raises FunctionNotFound: the engine has no such container.
        :raises ProviderError: the engine cannot be asked, or a label's value is not allowed.
        """
        function = Function(name, namespace)
        started_at = time.monotonic()
        containers = self._engine.find(function)
        status = self._status(function, containers, _SHORT_WAIT, self._deadline())
        if status != seen or timeout <= 0:
            return status
        filters = {"type": ["container"], "event": _EVENTS, "container": [each.id for each in containers]}
        with self._clients.events(filters) as events:
            refresh_at = started_at
            while True:
                if time.monotonic() >= refresh_at:
                    containers = self._engine.find(function)
                    refresh_at = time.monotonic() + _REFRESH_EVERY
                # Short at first: an answer that got lost while the network came up is not waited for. Then
                # longer, for one that takes its time to answer.
                probe_timeout = max(_SHORT_WAIT, (time.monotonic() - started_at) / 2)
                status = self._status(function, containers, probe_timeout, started_at + timeout)
                now = time.monotonic()
                left = started_at + timeout - now
                if status != seen or left <= 0:
                    return status
                is_polling = any(self._probe_address(function, each) for each in containers)
                if events.wait(min(left, _PROBE_EVERY if is_polling else refresh_at - now)):
                    refresh_at = now

    def doubt(self, name: str, namespace: str) -> None:
        """Probe the containers again before they count as available: the application could not reach them."""
        self._answered.pop(Function(name, namespace))

    def close(self) -> None:
        """Close this process's idle connections. Those that are needed later are made anew."""
        self._clients.close()

    def _deadline(self) -> float:
        return time.monotonic() + self._clients.timeout

    # -- the status

    def _probe_address(self, function: Function, container: Container) -> Address | None:
        """Return where to probe a container that is available once it answers; else ``None``."""
        answered = (self._answered.get(function) or {}).get(container.id) == container.run
        may_serve = container.may_serve and self._engine.runs(container)
        return container.address if may_serve and container.asks_for_probe and not answered else None

    def _serves(
        self, function: Function, container: Container, probe_timeout: float, deadline: float
    ) -> bool:
        address = self._probe_address(function, container)
        if address is None:
            return container.may_serve and self._engine.runs(container)
        probe_timeout = min(probe_timeout, _PROBE_WAIT, max(deadline - time.monotonic(), 0.01))
        if not address.answers(container.ready_path, probe_timeout):
            return False
        self._answered.change(function, lambda known: {**(known or {}), container.id: container.run})
        return True

    def _status(
        self, function: Function, containers: Sequence[Container], probe_timeout: float, deadline: float
    ) -> ReplicaStatus:
        running = [each for each in containers if self._engine.runs(each)]
        serving = [each for each in running if self._serves(function, each, probe_timeout, deadline)]
        failure = None
        if not any(each.failure is None for each in running):
            failures = [each.failure for each in containers if each.failure is not None]
            failure = failures[0] if failures else None
            if not running:
                failure = self._blocked.get(function) or failure
        # Always the first: a changing one would look like a change of the function.
        address = serving[0].address if serving else None
        return ReplicaStatus(
            replicas=len(running),
            available_replicas=len(serving),
            min_replicas=len(containers),
            max_replicas=len(containers),
            labels=containers[0].labels,
            endpoint=address.url if address is not None else None,
            failure=failure,
            paused=not running and any(each.paused for each in containers),
        )

    # -- the start

    def _wake(self, function: Function, containers: list[Container], replicas: int) -> None:
        """Start the function with its group and all that they come after, in turns."""
        members = {function: containers}
        after: dict[Function, list[Function]] = {}
        while new := [each for each in members if each not in after]:
            for each in new:
                after[each] = [name for one in members[each] for name in one.after(each.namespace)]
                for other in (*after[each], *self._engine.group(each, members[each])):
                    if other not in members:
                        members[other] = self._needed(other)
        needed = {other for others in after.values() for other in others}
        for turn in _turns(after):
            missing: list[Container] = []
            for each in turn:
                idle = [one for one in members[each] if not self._engine.runs(one)]
                wanted = replicas if each == function else len(members[each])
                missing += idle[: max(0, wanted - len(members[each]) + len(idle))]
            self._engine.start(missing)
            for each in needed.intersection(turn):
                self._await_available(each)

    def _needed(self, function: Function) -> list[Container]:
        try:
            return self._engine.find(function)
        except FunctionNotFound:
            raise CannotStart(f"{function}, which must be ready first, is not there") from None

    def _await_available(self, function: Function) -> None:
        deadline = time.monotonic() + self._after_timeout
        status = self.get_replicas(*function)
        while not status.available_replicas:
            if status.failure is not None:
                raise CannotStart(f"{function}, which must be ready first, failed: {status.failure}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise CannotStart(
                    f"{function}, which must be ready first, was not within {self._after_timeout:g} s"
                )
            status = self.wait_for_change(*function, status, left)


def _turns(after: Mapping[Function, list[Function]]) -> Iterator[tuple[Function, ...]]:
    """Yield the functions in the order in which they start: each after those that it names."""
    sorter = TopologicalSorter(after)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " after ".join(map(str, reversed(error.args[1])))
        raise CannotStart(f"it would start after itself: {circle}") from None
    while sorter.is_active():
        turn = sorter.get_ready()
        yield turn
        sorter.done(*turn)
