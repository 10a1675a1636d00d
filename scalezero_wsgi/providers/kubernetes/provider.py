"""Functions as Kubernetes' objects: a Deployment, or anything else that has the scale subresource.

The client library is lightkube. What a worker that has loaded the middleware and the proxy pays for it, from
the import to the first answer of a real API server (Python 3.11, median of five fresh processes):

===================  =======  ==========  ===============  ================================================
library              import   memory      first answer     maintenance (November 2026)
===================  =======  ==========  ===============  ================================================
lightkube 1.0         49 ms   12.1 MiB     86 ms           released in 2026, models follow each Kubernetes
kubernetes 37        100 ms   32.2 MiB    282 ms           the official one; 20.5 MiB without its models
kr8s 0.20            122 ms   22.5 MiB    214 ms           released in 2026; runs two threads of its own
pykube-ng 23.6        27 ms    6.7 MiB     35 ms           not since 2023; never reads a rotated token again
requests and PyYAML   26 ms    6.2 MiB     33 ms           all of kubeconfig, tokens and CA would be ours
===================  =======  ==========  ===============  ================================================

So of those that are maintained and read a rotated token again, it is the smallest and the quickest. It brings
kubeconfig, in-cluster credentials, exec plugins (``v1alpha1`` and ``v1beta1``) and TLS.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

from ...model import Function, FunctionNotFound, ProviderError, ReplicaStatus, SettingError
from ..checks import duration, not_allowed, positive_duration
from ..url import read_url
from . import objects
from .api import ApiError, KubernetesApi
from .objects import KINDS, Kind, at
from .status import LABEL, NAME, NAMESPACE, StatusReader, Target, View

__all__ = ["KubernetesProvider"]

_REFRESH_AFTER = 1.5
"""Seconds after which a start is read as a whole, whatever the watch says: pods are not watched."""

_WATCH_PAUSE = 0.1
"""Seconds between two watches that broke at once."""

_TRIES = 3
"""How often a scale change that met another one (409) is asked for."""

_PAGE = "500"

_KEYWORDS = ("namespace", "kind", "service", "address", "kubeconfig", "context", "pending_timeout", "timeout")

_CUSTOM = re.compile(rf"({LABEL}(?:\.{LABEL})+)/(v[0-9][a-z0-9]*)/([a-z0-9]+)", re.ASCII)


class KubernetesProvider:
    """Scales Kubernetes' objects through their scale subresource.

    A function is available when its object says so, an endpoint of its Service is ready, and the pod behind
    it has not been told to end. ``scalezero.min`` and ``scalezero.max`` among the object's annotations bound
    its replicas.

    Safe for threads and after a fork; connections are opened on first use, in each process its own.

    :param namespace: where a function is that names none, so that ``name`` and ``name.<namespace>`` are one;
        and whose functions are listed.
    :param kind: ``"Deployment"``, ``"StatefulSet"``, ``"ReplicaSet"``, ``"ReplicationController"``, or a
        custom resource as ``"<group>/<version>/<plural>"``, such as ``"example.com/v1/widgets"``.
    :param service: the name of a function's Service, a template with ``{name}``; the object's annotation
        ``scalezero.service`` goes before it. ``None`` (or empty): Services are not read, and no endpoint
        is known.
    :param address: what the status's endpoint is: ``"service"``, the cluster IP of the Service (its name in
        the cluster's DNS if it has none); or ``"pod"``, the address of its first ready pod, which is reached
        at once, where kube-proxy takes a moment to learn of it. The port is the one called ``http``, or the
        first.
    :param kubeconfig: a file. ``None``: a pod's own service account, else ``$KUBECONFIG``, else
        ``~/.kube/config``.
    :param context: of the kubeconfig; ``None``: its current one.
    :param pending_timeout: seconds, or a duration, for which a pod that fits on no node counts as hope.
    :param timeout: seconds, or a duration, within which a call ends; each of a name's addresses may take what
        is left of it.
    :raises SettingError: a keyword or the configuration is not allowed.
    :raises MissingExtra: lightkube is not installed.
    """

    def __init__(
        self,
        *,
        namespace: str = "default",
        kind: str = "Deployment",
        service: str | None = "{name}",
        address: str = "service",
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
        pending_timeout: float | str = 30.0,
        timeout: float | str = 5.0,
    ) -> None:
        if not NAMESPACE.fullmatch(str(namespace)):
            raise not_allowed("namespace", namespace, "a name of a-z, 0-9 and '-', at most 63 characters")
        if address not in ("service", "pod"):
            raise not_allowed("address", address, "'service' or 'pod'")
        self.own_namespace = str(namespace)
        self._kind = _kind(kind)
        self._timeout = positive_duration("timeout", timeout)
        self._api = KubernetesApi(kubeconfig or None, context or None)
        self._reader = StatusReader(
            self._api,
            self._kind,
            _template(service) if service else None,
            by_pod=address == "pod",
            pending_timeout=duration("pending_timeout", pending_timeout),
        )

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make one from ``kubernetes://?namespace=fn&kind=StatefulSet``; the parameters are the keywords.

        :raises SettingError: a parameter is unknown or not allowed.
        :raises MissingExtra: lightkube is not installed.
        """
        parts, chosen = read_url(url, _KEYWORDS)
        if parts.netloc or parts.path.strip("/") or parts.fragment:
            raise SettingError(f"provider {parts.scheme}: its URL must be like 'kubernetes://?namespace=fn'")
        keywords: dict[str, Any] = {**chosen}
        return cls(**keywords)

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Return the present status.

        Asks for the object, for its Service's endpoints when the object says that it is available, and for
        its pods while it does not come up, and once when it has.

        :raises FunctionNotFound: there is no such object, or there can be none of that name.
        :raises ProviderError: the API server refused, failed, or did not answer within the time-out; there is
            no such Service, or no permission. The message says what is missing.
        """
        return self._reader.read(self._target(name, namespace), self._deadline()).status

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Patch the scale subresource; does not wait for the pods.

        :raises FunctionNotFound: there is no such object, or there can be none of that name.
        :raises ProviderError: as for :meth:`get_replicas`.
        """
        target = self._target(name, namespace)
        deadline = self._deadline()
        left = _TRIES
        while True:
            left -= 1
            try:
                self._api.patch(target.scale, {"spec": {"replicas": replicas}}, deadline)
            except ApiError as error:
                if error.missing == target.name:
                    raise FunctionNotFound(name, namespace) from error
                if error.status != 409 or not left:
                    raise
            else:
                return

    def wait_for_change(
        self, name: str, namespace: str, seen: ReplicaStatus, timeout: float
    ) -> ReplicaStatus:
        """Return the status as soon as it differs from ``seen``.

        Watches the object, and when that says it is available, the endpoints: one after the other, so no
        thread is needed. A watch that breaks, times out or is told 410, Gone, begins anew with a full read.

        :param timeout: seconds after which it returns in any case.
        :raises FunctionNotFound: there is no such object, or no more.
        :raises ProviderError: as for :meth:`get_replicas`.
        """
        target = self._target(name, namespace)
        deadline = time.monotonic() + timeout
        while True:
            started_at = time.monotonic()
            view = self._reader.read(target, self._deadline())
            if view.status != seen or time.monotonic() >= deadline:
                return view.status
            for changed in self._changes(target, view, deadline):
                if changed.status != seen:
                    return changed.status
            now = time.monotonic()
            if now < started_at + _WATCH_PAUSE:
                time.sleep(max(0.0, min(started_at + _WATCH_PAUSE, deadline) - now))

    def list_functions(self) -> list[Function]:
        """Name every object of the kind in the provider's namespace.

        :raises ProviderError: as for :meth:`get_replicas`.
        """
        path = self._target("any", "").objects
        deadline = self._deadline()
        found: list[Function] = []
        page: dict[str, str] = {"limit": _PAGE}
        while True:
            answer = self._api.get(path, deadline, **page).body
            names = (at(thing, "metadata", "name") for thing in objects.items(answer, "items"))
            found += [Function(name, self.own_namespace) for name in names if isinstance(name, str)]
            if not (more := at(answer, "metadata", "continue")):
                return found
            page["continue"] = str(more)

    def _target(self, name: str, namespace: str) -> Target:
        where = namespace or self.own_namespace
        if not NAME.fullmatch(name) or not NAMESPACE.fullmatch(where):
            raise FunctionNotFound(name, namespace)
        path = f"{self._kind.api}/namespaces/{where}/{self._kind.plural}"
        return Target(Function(name, namespace), name, where, path)

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def _changes(self, target: Target, view: View, deadline: float) -> Iterator[View]:
        """Yield a view for each event of what is waited for. Ends when another full read is due."""
        duration = deadline - time.monotonic()
        if view.status.replicas:
            duration = min(duration, _REFRESH_AFTER)
        awaited = view.awaited
        params = {"resourceVersion": awaited.version, **awaited.selection}
        with contextlib.closing(self._api.watch(awaited.path, duration, **params)) as events:
            try:
                for event, body in events:
                    if event == "DELETED":
                        return
                    found = replace(awaited, body=body)
                    thing, endpoints = (found, None) if awaited is view.thing else (view.thing, found)
                    changed = self._reader.view(target, thing, self._deadline(), endpoints, view)
                    yield changed
                    # The next read may take the whole duration again.
                    if changed.awaited.path != awaited.path or time.monotonic() + duration > deadline:
                        return
            except ApiError as error:
                if error.status < 500 and error.status not in (410, 429):
                    raise
            except ProviderError:
                return


def _kind(kind: object) -> Kind:
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind]
    if isinstance(kind, str) and (custom := _CUSTOM.fullmatch(kind)):
        return objects.custom_kind(*custom.groups())
    raise not_allowed("kind", kind, f"{', '.join(KINDS)}, or a custom resource as 'group/version/plural'")


def _template(service: object) -> str:
    try:
        if isinstance(service, str) and service.format(name="a") is not None:
            return service
    except (LookupError, ValueError, AttributeError):
        pass
    raise not_allowed("service", service, "a name, which may hold {name}, or None")
