"""Functions as services of a Docker Swarm. It asks a manager node, with the library ``docker``.

A service is the function that its label ``scalezero.function`` names, else the one of its own name, in the
namespace of its label ``scalezero.namespace``, else of its stack (whose prefix is then no part of the name),
else in none. More labels, all of them optional, and all of them the service's own: in a stack's file they
stand under ``deploy``.

``scalezero.min``, ``scalezero.max``
    The count to wake to, and the one never to exceed. The defaults are 1 and no limit.
``scalezero.ready``
    What must answer before a task counts as available, where there is a way to it: a path, with 2xx or 3xx to
    a GET, or ``tcp``: the port takes a connection. By default it counts as soon as it runs. It is asked once
    per task, and again when the application could not reach the function. Through a published port, a path
    is told a quarter of a second sooner than ``tcp``, as Docker's proxy takes connections for a container
    that does not.
``scalezero.port``
    The task's port; the default is the lowest one that is published.

**Available** is a task that is to run and does: the manager says so, or its container runs, healthy, on the
node that is asked. The latter is known some 100 ms sooner, as nodes report to the manager in batches.

**A failure** is told when no task runs and each slot is beyond hope: its last two starts failed; or its task
ended and the restart policy allows no other; or it has had no node, or has waited for its restart, for longer
than ``pending_timeout``. So one crash before a good start is no failure, and a crash loop is one when the
restart delay has passed once. Only what was created since the service was last updated counts: a start is
not blamed for the one before. Where the restart policy has given up, only an update starts a task again.

**To wait for a change** it listens to the asked node's events, by which a start there is known at once, and
also asks every 10 ms (2 % of the time waited, up to 250 ms): no event tells what the other nodes do, and the
queries cost a manager about 2 ms.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

from ..._lib.bounded import Bounded
from ...model import Function, FunctionNotFound, ProviderError, ReplicaStatus
from ..checks import not_allowed, positive_duration
from ..docker.client import DockerClients, engine_errors, engine_url
from ..docker.probe import Address
from .service import FUNCTION, Port, Service, Task, culprit, task_of

__all__ = ["SwarmProvider"]

T = TypeVar("T")

_log = logging.getLogger("scalezero_wsgi")

_KEYWORDS = ("timeout", "pending_timeout", "host", "network", "cert_path")
_REMEMBERED = 10_000
_PROBE_WAIT = 1.0
_UPDATES = 20  # tries to update a service that others update at the same time
_POLL_FIRST = 0.01  # seconds between the first two queries for a task that starts
_ASK_AT_LEAST = 0.25  # seconds between two queries at most
_EVENTS = {
    "type": ["service", "container"],
    "event": ["update", "remove", "start", "die", "health_status"],
}


class SwarmProvider:
    """Scales the services of a swarm. Safe for threads and after a fork.

    :param url: a manager's engine: ``unix:///path``, ``tcp://host:port``, ``http://…`` or ``https://…``.
        ``None``: what the variables ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH`` say, else
        the usual socket.
    :param timeout: seconds (or a string such as ``"5s"``) within which the engine must answer.
    :param pending_timeout: seconds (or a string) for which a task that waits counts as hope, from when this
        process first saw it; or, if a former task was still being stopped then, from the end of that.
    :param host: the host on which published ports are reached; by default that of the engine, or of the node
        that the task runs on.
    :param network: reach tasks by their addresses in this network, not by published ports: for an application
        that is in it, as one that is a service itself. By default an address is of use only if no port is
        published and the network is attachable.
    :param cert_path: the directory of ``ca.pem``, ``cert.pem`` and ``key.pem``; makes ``tcp`` use TLS.
    :raises SettingError: a value is not allowed.
    :raises MissingExtra: the library ``docker`` is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float | str = 5.0,
        pending_timeout: float | str = 10.0,
        host: str | None = None,
        network: str | None = None,
        cert_path: str | None = None,
    ) -> None:
        self._pending_timeout = positive_duration("pending_timeout", pending_timeout)
        self._own_host = _text("host", host, "the name or address of a host")
        self._network = _text("network", network, "the name of a network")
        self._clients = DockerClients(url, timeout=timeout, cert_path=cert_path, extra="swarm")
        self._ids: Bounded[Function, str] = Bounded(_REMEMBERED)
        self._answered: Bounded[Function, frozenset[str]] = Bounded(_REMEMBERED)
        self._waiting: Bounded[str, tuple[float, float]] = Bounded(_REMEMBERED)
        self._logged: Bounded[str, bool] = Bounded(_REMEMBERED)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make one from ``swarm://``, ``swarm+unix:///path`` or ``swarm+tcp://host:port``.

        :param url: the constructor's keywords are its query parameters.
        :raises SettingError: it is not such a URL, or a keyword is unknown or its value not allowed.
        :raises MissingExtra: the library ``docker`` is not installed.
        """
        engine, keywords = engine_url(url, "swarm", _KEYWORDS)
        return cls(engine, **keywords)

    def list_functions(self) -> list[Function]:
        """Name every service that is no job, in order.

        :raises ProviderError: the engine cannot be asked.
        """
        with engine_errors():
            services = self._services(self._deadline())
            return sorted({service.function for service in services if service.is_function})

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Return the present status; probes each task that has not answered yet, once.

        :raises FunctionNotFound: the swarm has no such service.
        :raises ProviderError: the engine cannot be asked; or the service is a job.
        """
        return self._query(Function(name, namespace))

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Set the desired count, and leave the rest of the service as it is.

        :raises FunctionNotFound: the swarm has no such service.
        :raises ProviderError: the engine did not take it; or the service is not a replicated one.
        """
        function = Function(name, namespace)
        deadline = self._deadline()
        with engine_errors():
            for _ in range(_UPDATES):
                service = self._service(function, deadline)
                if service.replicas is None:
                    kind = service.kind
                    raise ProviderError(
                        f"function {function} is a {kind} service; only a replicated one can be scaled"
                    )
                if service.replicas == replicas or self._scale(service, replicas, deadline):
                    return
                time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - two that met shall not meet again
        raise ProviderError(
            f"function {function}: the service was updated by others {_UPDATES} times in a row"
        )

    def wait_for_change(
        self, name: str, namespace: str, seen: ReplicaStatus, timeout: float
    ) -> ReplicaStatus:
        """Return the status as soon as it differs from ``seen``.

        :param timeout: seconds after which it returns in any case, but for a query that is under way.
        :raises FunctionNotFound: the swarm has no such service.
        :raises ProviderError: the engine cannot be asked; or the service is a job.
        """
        function = Function(name, namespace)
        started_at = time.monotonic()
        with self._clients.events(_EVENTS) as events:
            while True:
                status = self._query(function)
                waited = time.monotonic() - started_at
                if status != seen or waited >= timeout:
                    return status
                is_starting = status.replicas > 0 and status.available_replicas == 0
                pause = max(_POLL_FIRST, 0.02 * waited) if is_starting else _ASK_AT_LEAST
                events.wait(min(pause, _ASK_AT_LEAST, timeout - waited))

    def doubt(self, name: str, namespace: str) -> None:
        """Probe the tasks again before they count as available."""
        self._answered.pop(Function(name, namespace))

    # -- the engine

    def _deadline(self) -> float:
        return time.monotonic() + self._clients.timeout

    def _ask(self, deadline: float, query: Callable[[Any], T]) -> T:
        with self._clients.use(deadline - time.monotonic()) as client:
            return query(client.api)

    def _services(self, deadline: float, **filters: object) -> list[Service]:
        return [
            Service.of(answer) for answer in self._ask(deadline, lambda api: api.services(filters=filters))
        ]

    def _service(self, function: Function, deadline: float) -> Service:
        """Return the function's service. Found once, it is asked for by its id, which is one query."""
        known = self._ids.get(function)
        if known is not None:
            service = self._ask(deadline, lambda api: _inspected(api, known))
            if service is not None and service.function == function:
                return service
        service = self._find(function, deadline)
        self._ids.set(function, service.id)
        return service

    def _find(self, function: Function, deadline: float) -> Service:
        name, namespace = function
        if not name:
            raise FunctionNotFound(name, namespace)
        labelled = self._services(deadline, label=f"{FUNCTION}={name}")
        named = self._services(deadline, name=[name, f"{namespace}_{name}"])  # all whose names begin so
        found = {service.id: service for service in labelled + named if service.function == function}
        if not found:
            raise FunctionNotFound(name, namespace)
        if len(found) > 1:
            raise ProviderError(f"function {function} is ambiguous: {len(found)} services are called so")
        return next(iter(found.values()))

    def _scale(self, service: Service, replicas: int, deadline: float) -> bool:
        """Update the service; return ``False`` if another update came first: then try again."""
        # Not by the library: it writes the defaults into the spec as well, and for that difference the swarm
        # replaces the tasks that run. Without credentials for a registry, the service keeps those it has.
        with self._clients.use(deadline - time.monotonic()) as client:
            response = client.api.post(
                _url(client.api, f"services/{service.id}/update"),
                params={"version": service.version},
                json=service.scaled(replicas),
                timeout=client.api.timeout,
            )
        if response.ok:
            return True
        if response.status_code == 404 or "out of sequence" in response.text:
            return False
        raise ProviderError(f"Docker engine: {response.status_code}: {response.text.strip()}")

    # -- the status

    def _query(self, function: Function) -> ReplicaStatus:
        deadline = self._deadline()
        with engine_errors():
            service = self._service(function, deadline)
            if not service.is_function:
                raise ProviderError(f"function {function} is a {service.kind}, which ends by itself")
            tasks = self._tasks(service, deadline) if service.replicas != 0 else []
            wanted = [task for task in tasks if task.desired == "running"]
            here = self._containers(service, deadline) if wanted else {}
            running = [task for task in wanted if task.state == "running" or task.id in here]
            addresses = {
                task.id: self._address_of(service, task, here.get(task.id), deadline) for task in running
            }
            available = self._available(service, addresses, deadline)
            minimum, maximum = service.bounds
            return ReplicaStatus(
                replicas=len(wanted) if service.replicas is None else service.replicas,
                available_replicas=len(available),
                min_replicas=minimum,
                max_replicas=maximum,
                labels=service.labels,
                endpoint=next((address.url for address in available.values() if address), None),
                failure=None if running else self._failure(service, tasks),
            )

    def _tasks(self, service: Service, deadline: float) -> list[Task]:
        answer = self._ask(deadline, lambda api: api.tasks(filters={"service": service.id}))
        return sorted(map(Task.of, answer), key=lambda task: (task.order, task.id))

    def _containers(self, service: Service, deadline: float) -> dict[str, Mapping[str, Any]]:
        """Return the containers that run on the asked node, by their tasks."""
        filters = {
            "label": f"com.docker.swarm.service.id={service.id}",
            "status": "running",
            "health": ["healthy", "none"],
        }
        answer = self._ask(deadline, lambda api: api.containers(filters=filters))
        return {task_of(container): container for container in answer}

    def _available(
        self, service: Service, addresses: Mapping[str, Address | None], deadline: float
    ) -> Mapping[str, Address | None]:
        """Return the tasks that answer, each with its address."""
        probe = service.probe
        if probe is None:
            return addresses
        known = self._answered.get(service.function) or frozenset()
        available = {}
        for task, address in addresses.items():
            probe_timeout = min(_PROBE_WAIT, deadline - time.monotonic())
            # Once is enough: who is busy must not be taken for one that is not there.
            if (
                address is None
                or task in known
                or (probe_timeout > 0 and address.answers(probe[0], probe_timeout))
            ):
                available[task] = address
        if known != available.keys():
            self._answered.set(service.function, frozenset(available))
        return available

    def _address_of(
        self, service: Service, task: Task, container: Mapping[str, Any] | None, deadline: float
    ) -> Address | None:
        """Return where a task is reached, if that is known."""
        if self._network is None:
            published = task.ports if container is None else Port.bound_by(container)
            port = service.choice(port for port in published if port.mode == "host" and port.published)
            if port is not None:
                host = self._host_of(task, port, container is not None, deadline)
                return Address(host, port.published, proxied=True)
            port = service.choice(port for port in service.ports if port.mode == "ingress")
            if port is not None:
                return Address(self._host(), port.published, proxied=True)
        address = task.address(self._network)
        return Address(address, service.target) if address and service.target else None

    def _host(self) -> str:
        return self._own_host or self._clients.host or "127.0.0.1"

    def _host_of(self, task: Task, port: Port, here: bool, deadline: float) -> str:
        if self._own_host is None and not here:
            address: str = self._ask(deadline, lambda api: api.inspect_node(task.node))["Status"]["Addr"]
            return address
        if self._own_host or self._clients.host or port.bound in ("", "0.0.0.0", "::"):  # noqa: S104
            return self._host()
        return port.bound

    def _failure(self, service: Service, tasks: list[Task]) -> str | None:
        task = culprit(tasks, service.updated, self._may_still_start)
        if task is None:
            return None
        if not self._logged.get(task.id):
            self._logged.set(task.id, True)
            _log.warning("function %s: task %s is %s: %s", service.function, task.id, task.state, task.error)
        return task.failure

    def _may_still_start(self, task: Task, stopping: float) -> bool:
        """Return whether a task that waits may still start: by our own clock, as the engine's may differ."""
        now = time.monotonic()

        def renewed(known: tuple[float, float] | None) -> tuple[float, float]:
            first, until = known or (now, now)
            return first, max(until, min(now, first + stopping) + self._pending_timeout)

        return now < self._waiting.change(task.id, renewed)[1]


def _text(key: str, value: object, allowed: str) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise not_allowed(key, value, allowed)


def _url(api: Any, path: str) -> str:
    return f"{api.base_url}/v{api.api_version}/{path}"


def _inspected(api: Any, service: str) -> Service | None:
    from docker.errors import NotFound

    try:
        return Service.of(api.inspect_service(service))
    except NotFound:
        return None
