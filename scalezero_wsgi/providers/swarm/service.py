"""What a Swarm manager says of a service and its tasks, read as the state of a function."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from ...model import Function
from ..checks import READY_LABEL_ALLOWED, URL_PATH, label_not_allowed

FUNCTION = "scalezero.function"
NAMESPACE = "scalezero.namespace"
_MIN = "scalezero.min"
_MAX = "scalezero.max"
_READY = "scalezero.ready"
_PORT = "scalezero.port"
_STACK = "com.docker.stack.namespace"
_TASK = "com.docker.swarm.task.id"

# https://docs.docker.com/engine/swarm/how-swarm-mode-works/swarm-task-states/
_UNPLACED = frozenset({"new", "allocated", "pending"})
_CRASHED = frozenset({"complete", "failed", "rejected"})
_ENDED = _CRASHED | {"shutdown", "orphaned", "remove"}

_NUMBER = re.compile(r"0*[1-9]\d{0,8}", re.ASCII)
_NO_NODE = re.compile(r"no suitable node( \([\w ,;-]+\))?", re.ASCII)

FAILED_STARTS = 2
"""Failed starts in a row after which a slot is beyond hope: a first one may only have come too early."""

START_WITHIN = 60.0
"""Seconds after which the end of a task has nothing to do with its start any more."""

_DEFAULT_GRACE = 10.0  # seconds; what the engine itself takes
_STOPPING = 3.0  # seconds that a node needs beside; it waits for its networks before it stops a container


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port of a task, and where it was published.

    :param bound: the address that it was published on, where that is known.
    """

    target: int
    published: int
    mode: str
    bound: str = ""

    @classmethod
    def of(cls, port: Mapping[str, Any]) -> Self:
        """Read a port of a service, or of a task."""
        mode = port.get("PublishMode", "ingress")
        return cls(port["TargetPort"], port.get("PublishedPort", 0), mode)

    @classmethod
    def bound_by(cls, container: Mapping[str, Any]) -> list[Self]:
        """Read the ports that a running container has on its host."""
        return [
            cls(port["PrivatePort"], port["PublicPort"], "host", port.get("IP", ""))
            for port in container["Ports"] or []
            if port["Type"] == "tcp" and port.get("PublicPort")
        ]


@dataclass(frozen=True, slots=True)
class Service:
    """A service at one moment.

    :param kind: ``replicated``, ``global`` or a kind of job.
    :param replicas: the desired count; ``None`` where that cannot be set.
    :param spec: all that was set, as the engine told it.
    """

    id: str
    version: int
    updated: datetime
    function: Function
    kind: str
    replicas: int | None
    labels: Mapping[str, str]
    ports: tuple[Port, ...]
    spec: Mapping[str, Any]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Service:
        """Read the answer of ``GET /services/{id}``, without the defaults inserted."""
        spec = answer["Spec"]
        labels = spec.get("Labels") or {}
        kind, mode = next(iter(spec["Mode"].items()))
        ports = (answer.get("Endpoint") or {}).get("Ports") or []
        return cls(
            id=answer["ID"],
            version=answer["Version"]["Index"],
            updated=_time(answer["UpdatedAt"]),
            function=_function(spec["Name"], labels),
            kind=kind.lower(),
            replicas=mode["Replicas"] if kind == "Replicated" else None,
            labels=labels,
            ports=tuple(Port.of(port) for port in ports if port.get("Protocol") == "tcp"),
            spec=spec,
        )

    @property
    def is_function(self) -> bool:
        """A job ends by itself, so it is none."""
        return self.kind in ("replicated", "global")

    @property
    def bounds(self) -> tuple[int, int | None]:
        """Minimum and maximum; what is no number of 1 or more says nothing."""
        minimum, maximum = self._number(_MIN) or 1, self._number(_MAX)
        return (minimum if maximum is None else min(minimum, maximum)), maximum

    @property
    def probe(self) -> tuple[str | None] | None:
        """What must answer: the path, or ``(None,)`` for the port itself; ``None``: nothing is asked.

        :raises ProviderError: the label says something else.
        """
        value = self.labels.get(_READY)
        if value is None:
            return None
        if value == "tcp":
            return (None,)
        if URL_PATH.fullmatch(value):
            return (value,)
        raise label_not_allowed(f"service {self.spec['Name']}: {_READY}", value, READY_LABEL_ALLOWED)

    @property
    def port(self) -> int | None:
        """The port of its tasks that counts, where the label names one."""
        return self._number(_PORT)

    @property
    def target(self) -> int | None:
        """The port that counts, as far as it is known."""
        published = self.choice(self.ports)
        return self.port or (published.target if published else None)

    def choice(self, ports: Iterable[Port]) -> Port | None:
        """Return the port that counts; the lowest if no label says which."""
        fit = [port for port in ports if self.port in (None, port.target)]
        return min(fit, key=lambda port: port.target, default=None)

    def scaled(self, replicas: int) -> dict[str, Any]:
        """Return the same in everything but the desired count."""
        return {**self.spec, "Mode": {"Replicated": {"Replicas": replicas}}}

    def _number(self, label: str) -> int | None:
        text = self.labels.get(label, "")
        return int(text) if _NUMBER.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class Task:
    """A task at one moment.

    :param desired: the state that the manager wants: ``ready`` until it may start, ``running``, and
        ``shutdown`` or, when its slot is given up, ``remove``.
    :param changed: when it came to its state.
    :param grace: seconds that it has to end by itself.
    :param addresses: by network; and whether one may attach to that by hand.
    """

    id: str
    slot: str
    order: int
    node: str
    state: str
    desired: str
    created: datetime
    changed: datetime
    error: str
    exit_code: int | None
    grace: float
    ports: tuple[Port, ...]
    addresses: tuple[tuple[str, bool, str], ...]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Task:
        """Read one of the answers of ``GET /tasks``."""
        status = answer["Status"]
        node = answer.get("NodeID", "")
        grace = (answer["Spec"].get("ContainerSpec") or {}).get("StopGracePeriod")  # nanoseconds
        ports = (status.get("PortStatus") or {}).get("Ports") or []
        return cls(
            id=answer["ID"],
            slot=str(answer.get("Slot") or node),  # a global service has one task for each node
            order=answer.get("Slot", 0),
            node=node,
            state=status["State"],
            desired=answer["DesiredState"],
            created=_time(answer["CreatedAt"]),
            changed=_time(status["Timestamp"]),
            error=status.get("Err", ""),
            exit_code=(status.get("ContainerStatus") or {}).get("ExitCode"),
            grace=_DEFAULT_GRACE if grace is None else grace / 1e9,
            ports=tuple(Port.of(port) for port in ports if port.get("Protocol") == "tcp"),
            addresses=tuple(_addresses(answer)),
        )

    @property
    def ended(self) -> bool:
        """Whether it will never run again."""
        return self.state in _ENDED

    @property
    def waits(self) -> bool:
        """Whether it is not even on its way: without a node, or held back by the restart delay."""
        return not self.ended and (self.state in _UNPLACED or self.desired == "ready")

    @property
    def is_leaving(self) -> bool:
        """Whether it still runs, but is being stopped."""
        return self.state == "running" and self.desired in ("shutdown", "remove")

    @property
    def failed_to_start(self) -> bool:
        """Whether it ended by itself, soon."""
        return self.state in _CRASHED and (self.changed - self.created).total_seconds() <= START_WITHIN

    @property
    def failure(self) -> str:
        """Why it does not run, fit for a client: the engine's own words may hold addresses and paths."""
        if not self.ended:
            return self.error if _NO_NODE.fullmatch(self.error) else "no node has taken it in time"
        if self.state == "rejected":
            return (
                "its image is missing" if self.error.startswith("No such image") else "its node rejected it"
            )
        if self.error.startswith("starting container failed"):
            return "its container cannot be started"
        if "unhealthy" in self.error:
            return "its health check failed"
        return "it ended" if self.exit_code is None else f"it exited with status {self.exit_code}"

    def address(self, network: str | None) -> str | None:
        """Return the address in the network of that name; without one, in one that is attachable."""
        fit = (
            ip
            for name, attachable, ip in self.addresses
            if network == name or (network is None and attachable)
        )
        return next(fit, None)


def task_of(container: Mapping[str, Any]) -> str:
    """Return the task whose container it is."""
    task: str = container["Labels"][_TASK]
    return task


def culprit(
    tasks: Iterable[Task], since: datetime, may_still_start: Callable[[Task, float], bool]
) -> Task | None:
    """Return the task to blame when none will come up; ``None`` while one of the slots has hope.

    :param tasks: all that are known, none of which runs.
    :param since: what was created before is nobody's fault now.
    :param may_still_start: tells whether a task that waits may still start, when former ones may take so
        many seconds to end: they may hold the port or the memory that it needs.
    """
    slots: dict[str, list[Task]] = {}
    stopping = 0.0
    for task in sorted(tasks, key=lambda task: task.created):
        if task.is_leaving:
            stopping = max(stopping, task.grace + _STOPPING)
        if task.desired != "remove":
            slots.setdefault(task.slot, []).append(task)
    found = [_culprit(slot, since, lambda task: may_still_start(task, stopping)) for slot in slots.values()]
    return found[0] if found and None not in found else None


def _culprit(slot: list[Task], since: datetime, may_still_start: Callable[[Task], bool]) -> Task | None:
    last = slot[-1]
    failed = _failed_starts(slot, since)
    if len(failed) >= FAILED_STARTS:
        return failed[-1]
    if last.ended:
        # Nothing replaces it if the manager has let go of it; before that, nothing is said yet.
        return last if last.desired == "shutdown" and last.created >= since else None
    if not last.waits or may_still_start(last):
        return None
    return failed[-1] if failed else last


def _failed_starts(slot: Iterable[Task], since: datetime) -> list[Task]:
    """Return the failed starts in a row, up to the last task that ended."""
    failed: list[Task] = []
    for task in slot:
        if task.failed_to_start and task.created >= since:
            failed.append(task)
        elif task.ended:
            failed.clear()
    return failed


def _function(name: str, labels: Mapping[str, str]) -> Function:
    stack = labels.get(_STACK, "")
    own = name.removeprefix(f"{stack}_") if stack else name
    return Function(labels.get(FUNCTION) or own, labels.get(NAMESPACE, stack))


def _addresses(task: Mapping[str, Any]) -> Iterable[tuple[str, bool, str]]:
    for attachment in task.get("NetworksAttachments") or []:
        spec = attachment["Network"]["Spec"]
        for address in attachment.get("Addresses") or []:
            yield spec["Name"], spec.get("Attachable", False), str(ipaddress.ip_interface(address).ip)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
