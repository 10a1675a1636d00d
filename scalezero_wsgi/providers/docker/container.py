"""What the Docker Engine says of a container, read as the state of a function's replica."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from signal import Signals
from typing import Any

from ...model import Function
from ..checks import READY_LABEL_ALLOWED, URL_PATH, label_not_allowed, not_allowed
from .probe import Address, OwnAddress

FUNCTION = "scalezero.function"
NAMESPACE = "scalezero.namespace"
GROUP = "scalezero.group"
SERVICE = "com.docker.compose.service"
PROJECT = "com.docker.compose.project"
_AFTER = "scalezero.after"
_MODE = "scalezero.mode"
_PORT = "scalezero.port"
_READY = "scalezero.ready"
_NUMBER = "com.docker.compose.container-number"
_ONEOFF = "com.docker.compose.oneoff"
_SWARM_TASK = "com.docker.swarm.task.id"

IMAGE_MISSING = "its image is missing"

# As the engine has it; Compose is stricter.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}", re.ASCII)
_HOST = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", re.ASCII)
_WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 - nothing is bound here
_LOOPBACK = ("127.0.0.1", "::1")

HOPELESS_RESTARTS = 3
"""Restarts by the engine's own restart policy after which a container counts as failed while it waits for
the next: the first may come up only after what it needs has."""

_DEFAULT_GRACE = 10  # seconds; what the engine itself takes


@dataclass(frozen=True, slots=True)
class Reach:
    """How this host reaches the engine's containers.

    :param host: where published ports are; ``None``: where they were published, on the engine's host.
    :param engine_host: the engine's host; ``None``: this one.
    :param network: the Docker network in which to use the containers' own addresses.
    """

    host: str | None = None
    engine_host: str | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        host: object = self.host
        network: object = self.network
        if host is not None and not (isinstance(host, str) and _HOST.fullmatch(host)):
            raise not_allowed("host", host, "a host's name or address")
        if network is not None and not (isinstance(network, str) and is_name(network)):
            raise not_allowed("network", network, "a Docker network's name")

    def published(self, host_ip: str) -> str | None:
        """Return the address of a port that was published on ``host_ip``."""
        if self.host is not None:
            return self.host
        if host_ip in _WILDCARDS:
            return self.engine_host or "127.0.0.1"
        if host_ip in _LOOPBACK and self.engine_host not in (None, "localhost", *_LOOPBACK):
            return None
        return host_ip

    @property
    def own_addresses(self) -> bool:
        """Whether a container's own address is of use."""
        return self.engine_host is None or self.network is not None


@dataclass(frozen=True, slots=True)
class Container:
    """One container at one moment.

    :param state: ``created``, ``running``, ``paused``, ``restarting``, ``removing``, ``exited`` or ``dead``.
    :param run: tells this run of the container from the next.
    :param healthy: ``None`` without a healthcheck.
    :param grace: seconds that the engine gives it to stop.
    :param address: where it is reached; ``None``: it is not, or nobody knows.
    :param failure: why it does not run, in words fit for a client.
    """

    id: str
    name: str
    labels: Mapping[str, str]
    state: str
    run: str
    healthy: bool | None
    grace: int
    address: Address | None
    failure: str | None

    @classmethod
    def of(cls, inspected: Mapping[str, Any], reach: Reach) -> Container:
        """Read the answer of ``GET /containers/{id}/json``."""
        state = inspected["State"]
        config = inspected["Config"]
        labels = config["Labels"] or {}
        health = (state.get("Health") or {}).get("Status", "none")
        grace = config.get("StopTimeout")
        return cls(
            id=inspected["Id"],
            name=inspected["Name"].removeprefix("/"),
            labels=labels,
            state=state["Status"],
            run=state["StartedAt"],
            healthy=None if health == "none" else health == "healthy",
            grace=_DEFAULT_GRACE if grace is None else max(0, grace),
            address=_address(inspected, _port(inspected, labels), reach),
            failure=_failure(inspected),
        )

    @property
    def function(self) -> Function | None:
        """Which function it is, or is a replica of."""
        return function_of(self.name, self.labels)

    @property
    def order(self) -> tuple[int, str]:
        """Which of a service's containers comes first."""
        number = self.labels.get(_NUMBER, "")
        return (int(number) if number.isdecimal() else 0, self.name)

    @property
    def runs(self) -> bool:
        """Whether the engine wants it to run."""
        return self.state in ("running", "restarting")

    @property
    def may_serve(self) -> bool:
        """Whether nothing but the probe can tell that it does not."""
        return self.state == "running" and self.healthy is not False

    @property
    def pauses(self) -> bool:
        """Whether it goes to zero by being paused."""
        return _one_of(self.labels, _MODE, ("stop", "pause"), "stop") == "pause"

    @property
    def paused(self) -> bool:
        """Whether it is paused, and would be stopped if it were to go to zero."""
        return self.state == "paused" and not self.pauses

    @property
    def ready_path(self) -> str | None:
        """The path that must answer; ``None``: the port must take a connection."""
        value = self.labels.get(_READY, "tcp")
        if value == "tcp":
            return None
        if not URL_PATH.fullmatch(value):
            raise label_not_allowed(f"label {_READY}", value, READY_LABEL_ALLOWED)
        return value

    @property
    def asks_for_probe(self) -> bool:
        """Without a word on it, a port is tried unless a healthcheck tells more."""
        return _READY in self.labels or self.healthy is None

    def after(self, namespace: str) -> list[Function]:
        """Return what must be ready before it starts.

        :param namespace: where those are that the label names without one.
        """
        names = [name.strip() for name in self.labels.get(_AFTER, "").split(",")]
        parts = [name.rpartition(".") for name in names if name]
        return [Function(name, space) if dot else Function(space, namespace) for name, dot, space in parts]


def is_name(text: str) -> bool:
    """Return whether the engine would take it as a name."""
    return _NAME.fullmatch(text) is not None


def function_of(name: str, labels: Mapping[str, str]) -> Function | None:
    """Return the function that a container is, or is a replica of; exactly one, so that none has two names.

    A label goes before a Compose service, and that before the container's name. A one-off container of
    Compose and a task of a Swarm service are none.
    """
    if FUNCTION in labels:
        return Function(labels[FUNCTION], labels.get(NAMESPACE, ""))
    if _SWARM_TASK in labels or labels.get(_ONEOFF, "").lower() == "true":
        return None
    if SERVICE in labels:
        return Function(labels[SERVICE], labels.get(PROJECT, ""))
    return Function(name, labels.get(NAMESPACE, ""))


def _one_of(labels: Mapping[str, str], label: str, allowed: tuple[str, ...], default: str) -> str:
    value = labels.get(label, default)
    if value not in allowed:
        raise label_not_allowed(f"label {label}", value, " or ".join(allowed))
    return value


def _failure(inspected: Mapping[str, Any]) -> str | None:
    """Return why it does not run.

    The engine keeps the exit status and whether the kernel ended it for want of memory, but not who asked
    for the end. So the statuses that ``docker stop`` leaves say nothing: 0, that of its signal (SIGTERM,
    143, or the image's own ``STOPSIGNAL``) and that of the SIGKILL after the grace (137). A process that
    ends in another way when it is stopped leaves a failure, which does not stand against a later start.
    """
    state = inspected["State"]
    code = state["ExitCode"]
    if state["Status"] == "restarting":
        if inspected.get("RestartCount", 0) < HOPELESS_RESTARTS:
            return None
        return (
            "ran out of memory again and again" if state["OOMKilled"] else f"keeps exiting with status {code}"
        )
    if state["Status"] not in ("created", "exited"):
        return None
    if state["Error"]:
        return _refusal(state["Error"], code)
    if state["OOMKilled"]:
        return "ran out of memory"
    if code in {0, 128 + Signals.SIGKILL, 128 + Signals.SIGTERM, 128 + _stop_signal(inspected)}:
        return None
    return f"exited with status {code}"


def _refusal(error: str, code: int) -> str:
    """Return why the engine could not start a container, fit for a client: its own words name paths."""
    if "no such image" in error.lower():
        return IMAGE_MISSING
    if code in (126, 127):
        return "its command cannot be executed" if code == 126 else "its command is not there"
    return "the engine could not start it"


def _stop_signal(inspected: Mapping[str, Any]) -> int:
    """Return the signal that stops it; Docker takes ``SIGINT``, ``INT`` and ``2``."""
    text = str(inspected["Config"].get("StopSignal") or "TERM").upper()
    if text.isdecimal():
        return int(text)
    found = Signals.__members__.get(f"SIG{text.removeprefix('SIG')}", Signals.SIGTERM)
    return int(found)


def _port(inspected: Mapping[str, Any], labels: Mapping[str, str]) -> int | None:
    """Return the port that serves: the label's, else the only published or exposed one."""
    if _PORT in labels:
        text = labels[_PORT]
        if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
            raise label_not_allowed(f"label {_PORT}", text, "a port from 1 to 65535")
        return int(text)
    published = inspected["HostConfig"].get("PortBindings") or {}
    exposed = inspected["Config"].get("ExposedPorts") or {}
    for ports in (published, exposed):
        numbers = [int(port.partition("/")[0]) for port in ports if port.endswith("/tcp")]
        if numbers:
            return numbers[0] if len(numbers) == 1 else None
    return None


def _address(inspected: Mapping[str, Any], port: int | None, reach: Reach) -> Address | None:
    if port is None:
        return None
    if inspected["HostConfig"].get("NetworkMode") == "host":
        return Address(reach.host or reach.engine_host or "127.0.0.1", port)
    settings = inspected["NetworkSettings"]
    own = _own_address(settings.get("Networks") or {}, port, reach.network)
    if reach.network is None:
        for binding in (settings.get("Ports") or {}).get(f"{port}/tcp") or ():
            host = reach.published(binding.get("HostIp", ""))
            if host is not None:
                return Address(host, int(binding["HostPort"]), proxied=True, own=own)
    return Address(own.host, port) if own is not None and reach.own_addresses else None


def _own_address(networks: Mapping[str, Any], port: int, wanted: str | None) -> OwnAddress | None:
    """Return the address in the wanted network, or in the first."""
    for name, network in networks.items():
        if wanted in (None, name) and network.get("IPAddress"):
            return OwnAddress(network["IPAddress"], port, network.get("Gateway", ""))
    return None
