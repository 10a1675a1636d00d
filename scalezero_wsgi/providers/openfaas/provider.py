"""Functions of an OpenFaaS gateway, or of faas-netes or faasd themselves, by their REST API.

::

    OpenFaaSProvider("http://gateway:8080", secret_mount_path="/var/secrets")
    make_provider("openfaas+http://gateway:8080?secret_mount_path=/var/secrets")

The API cannot push a change, so the scaler polls. It has no word for a start that will not succeed, so
``failure`` is never set: such a wait ends at its deadline.

What an answer means:

- 404: not found. faas-netes answers 500 when it is to scale a function that is missing, and also when its
  cluster is out of order. So after a 500 the function is asked for, and only a 404 then is "not found".
- 503 with ``X-OpenFaaS-Internal: proxy``: the function has no endpoint yet. That is a start under way, not
  an outage, so the status says one replica, none available. To scale it is an error all the same, since
  nothing was scaled; the scaler tries again.
- 400 when zero was asked for: this edition does not scale to zero (the Community Edition). It is logged once
  for each function, and zero is not asked of that function again for ``REFUSAL_REST`` seconds.
- 200, 201, 202, 204: success. Everything else, a redirect too, is a ``ProviderError``.

Proxies, ``.netrc`` and certificates that the environment names do not count: a gateway is an inner address,
and the credentials for it are nobody else's business.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn, Self, TypeVar

from ..._lib.bounded import Bounded
from ...model import Function, FunctionNotFound, ProviderError, ReplicaStatus
from ..checks import positive_duration
from . import config
from .http import Answer, Client

__all__ = ["OpenFaaSProvider"]

_log = logging.getLogger("scalezero_wsgi")
T = TypeVar("T")

OWN_NAMESPACE = "openfaas-fn"
"""The namespace that faasd, and faas-netes by its chart, have their functions in."""

REFUSAL_REST = 600.0
"""Seconds for which zero is not asked again of a function that was refused it."""

_PROBE_WAIT = 1.0
_REMEMBERED = 10_000
_COUNT = re.compile(r"\d{1,9}", re.ASCII)
_STARTING = ReplicaStatus(replicas=1, available_replicas=0)
_KEYWORDS = (
    "ca_file", "connect_timeout", "endpoint", "namespace", "namespaces", "password", "ready",
    "secret_mount_path", "timeout", "token", "username",
)  # fmt: skip


class OpenFaaSProvider:
    """Asks a gateway for a function's replicas, and scales it.

    Safe for threads and after a fork: connections are opened on first use and kept, each belongs to one
    process and serves one thread at a time.

    :param url: of the gateway, with or without a path, a slash at its end, or ``user:password@``.
    :param username: for basic authentication, with ``password``.
    :param secret_mount_path: instead of them, the directory of the files ``basic-auth-user`` and
        ``basic-auth-password``; white space around their content does not count. They are read once, now.
    :param token: instead of all that, a bearer token.
    :param ca_file: the certificates to trust for https; ``None``: those that come with requests.
    :param timeout: seconds (or a string such as ``"5s"``) for each call in all; but the look-up of the
        gateway's address takes what the system gives it.
    :param connect_timeout: seconds of these for a connection.
    :param namespace: the gateway's own, where a function is that is named without one
        (``function_namespace`` of faas-netes): ``name`` and ``name.<namespace>`` are one function. Empty: it
        is not known, and they are two.
    :param namespaces: those whose functions are listed, as a list or with commas between; by default the
        gateway's own one.
    :param endpoint: what the status tells as the function's base URL: ``None``: nothing; ``"gateway"``: the
        gateway's own ``/function/<name>.<namespace>``; or a template such as
        ``"http://{name}.{namespace}.svc:8080"``. Nothing is the default because the gateways of today scale
        from zero themselves: one would hold a request that came too early, past every deadline set here.
    :param ready: a path under the endpoint, such as ``"/_/ready"`` of of-watchdog. A function counts as
        available only when that has answered a GET, sent without credentials, with 2xx or 3xx since it
        came up. It closes the gap in which replicas are available and the gateway still answers 503.
    :raises SettingError: a value is not allowed, or a file cannot be read.
    """

    lists_only_functions = True

    def __init__(
        self,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        secret_mount_path: str | os.PathLike[str] | None = None,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        timeout: float | str = 5.0,
        connect_timeout: float | str = 2.0,
        namespace: str = OWN_NAMESPACE,
        namespaces: str | Iterable[str] = (),
        endpoint: str | None = None,
        ready: str | None = None,
    ) -> None:
        self._url, in_url = config.split_url(url)
        self._credentials = config.credentials(
            in_url,
            config.basic(username, password),
            config.mounted(secret_mount_path),
            config.bearer(token),
        )
        self._timeout = positive_duration("timeout", timeout)
        self._client = Client(
            positive_duration("connect_timeout", connect_timeout), config.existing_file("ca_file", ca_file)
        )
        self.own_namespace = config.name_or_none("namespace", namespace)
        self._namespaces = config.name_list("namespaces", namespaces)
        self._endpoint = config.template(endpoint)
        self._ready = config.ready_path(ready, endpoint)
        self._reached: Bounded[Function, bool] = Bounded(_REMEMBERED)
        self._refused: Bounded[Function, float] = Bounded(_REMEMBERED)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make one from ``openfaas+http://[user:password@]gateway:8080[/path][?keyword=value&...]``.

        :raises SettingError: the URL, a parameter or its value is not allowed.
        """
        base, keywords = config.parameters(url, _KEYWORDS)
        values: dict[str, Any] = dict(keywords)
        return cls(base, **values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        """Return the present status.

        :raises FunctionNotFound: the gateway does not know it, or no function can be called so.
        :raises ProviderError: the gateway failed, refused, or has not answered within ``timeout``.
        """
        return self._status(_checked(name, namespace), self._deadline())

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        """Ask for a number of replicas; returns when the gateway has taken it.

        :raises FunctionNotFound: the gateway does not know it, or no function can be called so.
        :raises ProviderError: the gateway failed, refused, or has not answered within ``timeout``.
        """
        function = _checked(name, namespace)
        refused_until = self._refused.get(function) if replicas == 0 else None
        if refused_until is not None and time.monotonic() < refused_until:
            raise ProviderError(f"function {function}: the gateway refused zero, and is not asked again yet")
        deadline = self._deadline()
        # The namespace goes into both: faas-netes reads it from the query alone, faasd from the body alone.
        order = {"serviceName": name, "replicas": replicas, **_query(namespace)}
        answer = self._ask("POST", f"/system/scale-function/{name}", namespace, deadline, json=order)
        if answer.status == 400 and replicas == 0:
            self._note_refusal(function, answer)
        if answer.status == 500:
            self._status(function, deadline)
        self._check(answer, function)
        if replicas == 0:
            self._refused.pop(function)

    def list_functions(self) -> list[Function]:
        """Name the functions of ``namespaces``; without those, the gateway's own.

        :raises ProviderError: the gateway failed, refused, or has not answered within ``timeout`` in all.
        """
        deadline = self._deadline()
        return [
            Function(name, namespace or self.own_namespace)
            for namespace in self._namespaces or ("",)
            for name in self._names(namespace, deadline)
        ]

    def doubt(self, name: str, namespace: str) -> None:
        """Let the function answer at ``ready`` again before it counts as available."""
        self._reached.pop(Function(name, namespace))

    def _status(self, function: Function, deadline: float) -> ReplicaStatus:
        answer = self._ask("GET", f"/system/function/{function.name}", function.namespace, deadline)
        if answer.status == 503 and answer.headers.get("X-OpenFaaS-Internal") == "proxy":
            return _STARTING
        self._check(answer, function)
        status = replace(_read(answer.json()), endpoint=self._endpoint_of(function))
        if not status.available_replicas:
            self._reached.pop(function)
        elif self._ready and not self._reached.get(function):
            if not self._answers(f"{status.endpoint}{self._ready}", deadline):
                return replace(status, available_replicas=0)
            self._reached.set(function, True)
        return status

    def _endpoint_of(self, function: Function) -> str | None:
        return self._endpoint and self._endpoint.format(
            gateway=self._url, function=function, name=function.name, namespace=function.namespace
        )

    def _answers(self, url: str, deadline: float) -> bool:
        try:
            answer = self._client.ask("GET", url, min(deadline, time.monotonic() + _PROBE_WAIT))
        except ProviderError:
            return False
        return 200 <= answer.status < 400

    def _names(self, namespace: str, deadline: float) -> list[str]:
        answer = self._ask("GET", "/system/functions", namespace, deadline)
        self._check(answer)
        found = answer.json()
        if not isinstance(found, list):
            raise ProviderError(f"the gateway's list of functions is {found!r:.100}")
        names = [_field(each, "name", str) for each in found]
        return [name for name in names if config.NAME.fullmatch(name)]

    # -- calls to the gateway

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def _ask(self, method: str, path: str, namespace: str, deadline: float, **options: Any) -> Answer:
        headers = {"Authorization": self._credentials.header}
        return self._client.ask(
            method, self._url + path, deadline, params=_query(namespace), headers=headers, **options
        )

    def _check(self, answer: Answer, function: Function | None = None) -> None:
        if answer.status == 404 and function is not None:
            raise FunctionNotFound(*function)
        if answer.status not in (200, 201, 202, 204):
            raise ProviderError(f"the gateway answered {answer.status}{self._excerpt(answer)}")

    def _note_refusal(self, function: Function, answer: Answer) -> NoReturn:
        known: float | None = None

        def renew(until: float | None) -> float:
            nonlocal known
            known = until
            return time.monotonic() + REFUSAL_REST

        self._refused.change(function, renew)
        if known is None:
            _log.warning("function %s: the gateway refuses zero%s", function, self._excerpt(answer))
        raise ProviderError(f"function {function}: the gateway refuses zero{self._excerpt(answer)}")

    def _excerpt(self, answer: Answer) -> str:
        """Return how the answer begins, without the credentials, should they be echoed."""
        text = answer.body.decode("utf-8", "replace")
        for secret in self._credentials.secrets:
            text = text.replace(secret, "***")
        text = " ".join(text.split())[:200]
        return f": {text!r}" if text else ""


def _checked(name: str, namespace: str) -> Function:
    if not config.NAME.fullmatch(name) or (namespace and not config.NAME.fullmatch(namespace)):
        raise FunctionNotFound(name, namespace)
    return Function(name, namespace)


def _query(namespace: str) -> dict[str, str]:
    return {"namespace": namespace} if namespace else {}


def _read(found: object) -> ReplicaStatus:
    replicas = _field(found, "replicas", int)
    available = _field(found, "availableReplicas", int)
    if replicas < 0 or available < 0:
        raise ProviderError(f"the gateway tells of {replicas} replicas, {available} available")
    labels = _texts(found, "labels")
    most = _scale_label(labels, "com.openfaas.scale.max")
    least = _scale_label(labels, "com.openfaas.scale.min") or 1
    return ReplicaStatus(
        replicas,
        available if replicas else 0,  # those that are left are being stopped
        min_replicas=least if most is None else min(least, most),
        max_replicas=most,
        labels=labels,
        annotations=_texts(found, "annotations"),
    )


def _field(found: object, key: str, kind: type[T]) -> T:
    """Return a member of an object; the kind's zero if it is absent or null."""
    if not isinstance(found, Mapping):
        raise ProviderError(f"the gateway's answer is {found!r:.100}, not an object")
    value = found.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ProviderError(f"{key} in the gateway's answer is {value!r:.100}")
    return value


def _texts(found: object, key: str) -> dict[str, str]:
    return {str(name): str(text) for name, text in _field(found, key, dict).items()}


def _scale_label(labels: Mapping[str, str], label: str) -> int | None:
    """Return the count that the label tells; ``None`` for 0 and for what is no count."""
    text = labels.get(label, "").strip()
    return (int(text) or None) if _COUNT.fullmatch(text) else None
