"""What Kubernetes' objects say: counts, bounds, addresses, and why pods do not come up.

Nothing here calls the API server. The objects are JSON as it sent them; a field may be missing or null.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MIN, MAX, SERVICE = "scalezero.min", "scalezero.max", "scalezero.service"
"""The annotations that are read from a function's object."""

_TOO_LONG = "kubectl.kubernetes.io/last-applied-configuration"

_HOPELESS = {
    "CrashLoopBackOff": "its container ends again and again",
    # Not ErrImagePull: that is the first failed try, and the second comes within seconds.
    "ImagePullBackOff": "its image cannot be pulled",
    "ErrImageNeverPull": "its image is not there and must not be pulled",
    "InvalidImageName": "its image has an impossible name",
    "CreateContainerConfigError": "its container needs a ConfigMap or a Secret that is missing or wrong",
    "CreateContainerError": "its container cannot be created",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of objects with the scale subresource.

    :ivar api: ``apis/<group>/<version>``, or ``api/v1``.
    :ivar counts: which field of the status counts the available replicas; the first one that is there.
    :ivar by_scale: the desired count is known to the scale subresource only.
    """

    api: str
    plural: str
    counts: tuple[str, ...] = ("availableReplicas",)
    by_scale: bool = False


KINDS = {
    "Deployment": Kind("apis/apps/v1", "deployments"),
    "ReplicaSet": Kind("apis/apps/v1", "replicasets"),
    "ReplicationController": Kind("api/v1", "replicationcontrollers"),
    # Up to 1.21 it does not count the available ones.
    "StatefulSet": Kind("apis/apps/v1", "statefulsets", ("availableReplicas", "readyReplicas")),
}


def custom_kind(group: str, version: str, plural: str) -> Kind:
    """Return a custom resource's kind. Only the server knows where its objects keep the desired count."""
    return Kind(f"apis/{group}/{version}", plural, ("availableReplicas", "readyReplicas"), by_scale=True)


def at(thing: Any, *path: str) -> Any:
    """Return what lies under ``path``; ``None`` if there is nothing."""
    for key in path:
        thing = thing.get(key) if isinstance(thing, Mapping) else None
    return thing


def items(thing: Any, *path: str) -> list[Any]:
    """Return the list under ``path``, which is empty when it is missing."""
    found = at(thing, *path)
    return found if isinstance(found, list) else []


def count(value: object) -> int:
    """Return a number of replicas. At zero the field is left out, or null."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def texts(thing: Any, *path: str) -> dict[str, str]:
    """Return labels or annotations, but for the one that holds a copy of the whole object."""
    found = at(thing, *path)
    found = found if isinstance(found, Mapping) else {}
    return {str(key): str(value) for key, value in found.items() if key != _TOO_LONG}


def bounds(annotations: Mapping[str, str]) -> tuple[int, int | None]:
    """Return minimum and maximum; nonsense counts as not said, and the minimum is never above the maximum."""
    low, high = (_positive(annotations.get(key)) for key in (MIN, MAX))
    low = low or 1
    return (low, None) if high is None else (min(low, high), high)


def _positive(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) else None


def claimed(kind: Kind, thing: Any, scale: Any) -> int:
    """Return how many replicas the object says are available; 0 while it speaks of another desired count."""
    if not _is_up_to_date(thing):
        return 0
    status = at(thing, "status")
    for field in kind.counts:
        if isinstance(at(status, field), int):
            return count(at(status, field))
    return count(at(scale, "status", "replicas"))


def _is_up_to_date(thing: Any) -> bool:
    observed = at(thing, "status", "observedGeneration")
    return not isinstance(observed, int) or observed >= count(at(thing, "metadata", "generation"))


def is_terminating(pod: Any) -> bool:
    """Return whether it was told to end. It may still be running, be ready and have an endpoint."""
    return at(pod, "metadata", "deletionTimestamp") is not None


def condition(thing: Any, kind: str) -> Any:
    """Return the condition of that type, or ``None``."""
    return next((found for found in items(thing, "status", "conditions") if at(found, "type") == kind), None)


def is_ready(pod: Any) -> bool:
    """Return whether it can serve, and will go on."""
    return at(condition(pod, "Ready"), "status") == "True" and not is_terminating(pod)


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a ready pod is reached."""

    url: str
    pod: str


def addresses(endpoints: Any) -> list[Address]:
    """Return the ready endpoints' addresses, in an order that does not change by itself."""
    found = []
    for subset in items(endpoints, "subsets"):
        port = at(http_port(items(subset, "ports")), "port")
        for address in items(subset, "addresses"):
            pod = at(address, "targetRef", "name") if at(address, "targetRef", "kind") == "Pod" else None
            found.append(Address(base_url(str(at(address, "ip")), port), str(pod or "")))
    return sorted(found)


def http_port(ports: Iterable[Any]) -> Any:
    """Return the port that is called ``http``, else the first one."""
    listed = list(ports)
    return next((port for port in listed if at(port, "name") == "http"), listed[0] if listed else None)


def base_url(host: str, port: object) -> str:
    """Return ``http://host:port``; an IPv6 address gets its brackets."""
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}" if port else f"http://{host}"


def failure(thing: Any, pods: Collection[Any], now: float, pending_timeout: float) -> str | None:
    """Return why the function will not come up, in words fit for a client; ``None`` while there is hope.

    :param pods: those of the object; the ones that are terminating or done do not count.
    :param now: seconds since the epoch, by the clock of the cluster.
    :param pending_timeout: seconds for which a pod that no node takes counts as hope.
    """
    if not _is_up_to_date(thing):
        return None
    done = ("Succeeded", "Failed")
    remaining = [pod for pod in pods if not is_terminating(pod) and at(pod, "status", "phase") not in done]
    reasons = [_pod_failure(pod, now, pending_timeout) for pod in remaining]
    if reasons and all(reasons):
        return reasons[0]
    if at(condition(thing, "Progressing"), "reason") == "ProgressDeadlineExceeded":
        return "it did not become available within its progress deadline"
    if not remaining and at(condition(thing, "ReplicaFailure"), "status") == "True":
        return "its pods cannot be created"
    return None


def _pod_failure(pod: Any, now: float, pending_timeout: float) -> str | None:
    scheduled = condition(pod, "PodScheduled")
    if at(scheduled, "reason") == "Unschedulable" and at(scheduled, "status") == "False":
        waited = now - _epoch(at(scheduled, "lastTransitionTime"))
        return "no node takes it" if waited >= pending_timeout else None
    for container in items(pod, "status", "initContainerStatuses") + items(
        pod, "status", "containerStatuses"
    ):
        reason = at(container, "state", "waiting", "reason")
        if reason in _HOPELESS:
            return _HOPELESS[reason] + _last_end(at(container, "lastState", "terminated"))
    return None


def _last_end(terminated: Any) -> str:
    if at(terminated, "reason") == "OOMKilled":
        return " (it ran out of memory)"
    code = at(terminated, "exitCode")
    return f" (exit status {code})" if isinstance(code, int) else ""


def _epoch(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return math.inf
