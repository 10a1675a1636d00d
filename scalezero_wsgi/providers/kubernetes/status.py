"""How a function's status is made of what Kubernetes knows of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from ..._lib.bounded import Bounded
from ...model import Function, FunctionNotFound, ProviderError, ReplicaStatus
from . import objects
from .api import ApiError, KubernetesApi
from .objects import Address, Kind, at

_REMEMBERED = 10_000

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/: RFC 1123 subdomain and label
LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
NAMESPACE = re.compile(LABEL, re.ASCII)
NAME = re.compile(rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """A function, and where Kubernetes keeps what belongs to it."""

    function: Function
    name: str
    namespace: str
    objects: str

    def core(self, plural: str) -> str:
        """Return the path of pods, services or endpoints."""
        return f"api/v1/namespaces/{self.namespace}/{plural}"

    @property
    def scale(self) -> str:
        """The path of the scale subresource."""
        return f"{self.objects}/{self.name}/scale"


@dataclass(frozen=True, slots=True)
class Found:
    """One object, and the version of the list it was in: a watch goes on from there without a gap."""

    path: str
    name: str
    body: Any
    version: str

    @property
    def selection(self) -> dict[str, str]:
        """What makes a list, or a watch, one of this object alone."""
        return {"fieldSelector": f"metadata.name={self.name}"}


@dataclass(frozen=True, slots=True)
class View:
    """A status, what it was made of, and what it waits for."""

    status: ReplicaStatus
    thing: Found
    awaited: Found


@dataclass(frozen=True, slots=True)
class _Proof:
    """The state in which the pods have been seen to stay, and the endpoint that was found then."""

    state: tuple[object, ...]
    available: int
    endpoint: str | None


class StatusReader:
    """Reads functions' status from the API server. Safe for threads and after a fork.

    :param service: the template of a Service's name; ``None``: Services are not read.
    :param by_pod: the endpoint is a pod's address, not the Service's.
    :param pending_timeout: seconds for which a pod that no node takes counts as hope.
    """

    def __init__(
        self, api: KubernetesApi, kind: Kind, service: str | None, *, by_pod: bool, pending_timeout: float
    ) -> None:
        self._api = api
        self._kind = kind
        self._service = service
        self._by_pod = by_pod
        self._pending_timeout = pending_timeout
        self._selectors: Bounded[Function, tuple[str, str]] = Bounded(_REMEMBERED)
        self._proofs: Bounded[Function, _Proof] = Bounded(_REMEMBERED)

    def read(self, target: Target, deadline: float) -> View:
        """Ask for all that a status is made of.

        :param deadline: monotonic seconds.
        :raises FunctionNotFound: there is no such object.
        :raises ProviderError: the API server refused or failed, or something is missing.
        """
        thing = self._find(target.objects, target.name, deadline)
        if thing is None:
            raise FunctionNotFound(*target.function)
        return self.view(target, thing, deadline)

    def view(
        self,
        target: Target,
        thing: Found,
        deadline: float,
        endpoints: Found | None = None,
        last: View | None = None,
    ) -> View:
        """Make a view of an object.

        :param endpoints: those of its Service, if they are known.
        :param last: the view before an event; while it stays unavailable, that one's failure is taken over.
        """
        body = thing.body
        scale = self._scale(target, deadline) if self._kind.by_scale else None
        desired = objects.count(at(scale if self._kind.by_scale else body, "spec", "replicas"))
        annotations = objects.texts(body, "metadata", "annotations")
        low, high = objects.bounds(annotations)
        labels = objects.texts(body, "metadata", "labels")
        status = ReplicaStatus(desired, 0, low, high, labels, annotations)
        if not desired:
            return View(status, thing, thing)
        if claimed := min(desired, objects.claimed(self._kind, body, scale)):
            return self._reachable(target, status, claimed, thing, endpoints, deadline)
        if last is not None:
            return View(replace(status, failure=last.status.failure), thing, thing)
        pods, now = self._pods(target, thing, deadline)
        failure = objects.failure(body, pods or (), now, self._pending_timeout)
        return View(replace(status, failure=failure), thing, thing)

    def _reachable(
        self,
        target: Target,
        status: ReplicaStatus,
        claimed: int,
        thing: Found,
        endpoints: Found | None,
        deadline: float,
    ) -> View:
        """Check what the object claims against its endpoints and pods."""
        service = self._service_name(target, status)
        source = thing
        ready: list[Address] | None = None
        if service is not None:
            source = endpoints or self._endpoints(target, service, deadline)
            ready = objects.addresses(source.body)
            if not ready:
                return View(status, thing, source)
        state = (*(at(thing.body, "metadata", key) for key in ("uid", "generation")), _version(source))
        proof = self._proofs.get(target.function)
        if proof is None or proof.state != state:
            proof = self._prove(target, thing, _Proof(state, claimed, None), service, ready, deadline)
        if not proof.available:
            return View(status, thing, source)
        available = min(claimed, proof.available)
        return View(replace(status, available_replicas=available, endpoint=proof.endpoint), thing, thing)

    def _prove(
        self,
        target: Target,
        thing: Found,
        claim: _Proof,
        service: str | None,
        ready: list[Address] | None,
        deadline: float,
    ) -> _Proof:
        """Leave out the pods that are terminating: object and endpoints still count them for a moment.

        Done once for each scale change and each change of the endpoints, and remembered if all pods stay.
        """
        pods, _ = self._pods(target, thing, deadline)
        terminating = {at(pod, "metadata", "name") for pod in pods or () if objects.is_terminating(pod)}
        if ready is None or service is None:
            available = claim.available if pods is None else sum(map(objects.is_ready, pods))
            proof = replace(claim, available=available)
        else:
            staying = [address for address in ready if address.pod not in terminating]
            proof = replace(claim, available=len(staying))
            if staying:
                url = staying[0].url if self._by_pod else self._service_url(target, service, deadline)
                proof = replace(proof, endpoint=url)
        if proof.available and not terminating:
            self._proofs.set(target.function, proof)
        return proof

    def _scale(self, target: Target, deadline: float) -> Any:
        try:
            return self._api.get(target.scale, deadline).body
        except ApiError as error:
            if error.missing == target.name:
                raise FunctionNotFound(*target.function) from error
            raise

    def _pods(self, target: Target, thing: Found, deadline: float) -> tuple[list[Any] | None, float]:
        """Return the object's pods, ``None`` if it does not tell how to find them; and the cluster's time."""
        uid = str(at(thing.body, "metadata", "uid"))
        known = self._selectors.get(target.function)
        if known is None or known[0] != uid:
            selector = at(self._scale(target, deadline), "status", "selector")
            known = (uid, selector if isinstance(selector, str) else "")
            self._selectors.set(target.function, known)
        if not known[1]:  # which would select all pods there are
            return None, 0.0
        answer = self._api.get(target.core("pods"), deadline, labelSelector=known[1])
        return objects.items(answer.body, "items"), answer.date

    def _service_name(self, target: Target, status: ReplicaStatus) -> str | None:
        if self._service is None:
            return None
        name = status.annotations.get(objects.SERVICE) or self._service.format(name=target.name)
        if not NAME.fullmatch(name):
            raise ProviderError(f"{name!r} cannot be the name of a Service, for function {target.function}")
        return name

    def _endpoints(self, target: Target, service: str, deadline: float) -> Found:
        found = self._find(target.core("endpoints"), service, deadline)
        if found is None:
            raise ProviderError(
                f"there are no endpoints {service!r} in namespace {target.namespace!r}: function"
                f" {target.function} needs a Service of that name; annotate it with {objects.SERVICE}, or set"
                " service=None"
            )
        return found

    def _service_url(self, target: Target, service: str, deadline: float) -> str:
        body = self._api.get(f"{target.core('services')}/{service}", deadline).body
        address = at(body, "spec", "clusterIP")
        if not address or address == "None":
            address = f"{service}.{target.namespace}.svc"
        return objects.base_url(address, at(objects.http_port(objects.items(body, "spec", "ports")), "port"))

    def _find(self, path: str, name: str, deadline: float) -> Found | None:
        """Ask for a list of one, not the object: its version is young enough for a watch to go on from."""
        asked = Found(path, name, None, "")
        answer = self._api.get(path, deadline, **asked.selection).body
        version = str(at(answer, "metadata", "resourceVersion") or "")
        if not isinstance(at(answer, "items"), list) or not version:
            raise ProviderError(f"Kubernetes answered GET {path} with something that is no list")
        found = objects.items(answer, "items")
        return replace(asked, body=found[0], version=version) if found else None


def _version(found: Found) -> object:
    return at(found.body, "metadata", "resourceVersion")
