"""The Docker Engine's containers: which are a function's, and how they are started and stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..._lib.per_process import PerProcess
from ...model import Function, FunctionNotFound
from .client import DockerClients
from .container import (
    FUNCTION,
    GROUP,
    IMAGE_MISSING,
    PROJECT,
    SERVICE,
    Container,
    Reach,
    function_of,
    is_name,
)

_log = logging.getLogger("scalezero_wsgi")


class CannotStart(Exception):
    """A start will not succeed. The message is fit for a client."""


class DockerEngine:
    """What a provider asks of the engine. Safe for threads and after a fork.

    Each method raises :class:`~scalezero_wsgi.ProviderError` when the engine fails, hangs or refuses.

    :param clients: lends the clients; each request takes its time-out at most.
    :param reach: how this host reaches the containers.
    """

    def __init__(self, clients: DockerClients, reach: Reach) -> None:
        self._clients = clients
        self._reach = reach
        self._stopping: PerProcess[set[str]] = PerProcess(set)

    def functions(self) -> list[Function]:
        """Return all functions, in order."""
        return sorted({function for _, function in self._list([], self._deadline())})

    def find(self, function: Function) -> list[Container]:
        """Return the function's containers in order; one or more. Takes the time-out in all.

        :raises FunctionNotFound: there is none.
        :raises ProviderError: also when a label's value is not allowed.
        """
        deadline = self._deadline()
        if is_name(function.name) and (not function.namespace or is_name(function.namespace)):
            found = [self._inspect(key, deadline) for key in self._keys(function, deadline)]
            # The engine also takes the beginning of an id for a name, which it is not.
            containers = [each for each in found if each is not None and each.function == function]
            if containers:
                return sorted(containers, key=lambda each: each.order)
        raise FunctionNotFound(*function)

    def group(self, function: Function, containers: Sequence[Container]) -> set[Function]:
        """Return the functions that wake together with this one."""
        found = set()
        for group in {each.labels[GROUP] for each in containers if each.labels.get(GROUP)}:
            found |= {other for _, other in self._list([f"{GROUP}={group}"], self._deadline())}
        return {other for other in found if other.namespace == function.namespace}

    def runs(self, container: Container) -> bool:
        """Return whether it runs, and is not about to be stopped by this process."""
        return container.runs and container.id not in self._stopping.get()

    def start(self, containers: Sequence[Container]) -> None:
        """Start or unpause them, all at once.

        :raises CannotStart: one cannot be started, and its state will not tell.
        """
        _all_at_once(self._start, containers)

    def stop(self, containers: Sequence[Container]) -> None:
        """Stop them, or pause those whose label says so, all at once; return when they have ended."""
        _all_at_once(lambda each: self._halt(each, pause=each.pauses), containers)

    def pause(self, containers: Sequence[Container]) -> None:
        """Pause them, all at once. One that waits for its next restart is stopped: it cannot be paused."""
        _all_at_once(lambda each: self._halt(each, pause=True), containers)

    def _deadline(self) -> float:
        return time.monotonic() + self._clients.timeout

    def _keys(self, function: Function, deadline: float) -> list[str]:
        """Return ids or names of the containers that may be the function's."""
        labels = [[f"{FUNCTION}={function.name}"]]
        if function.namespace:
            labels.append([f"{SERVICE}={function.name}", f"{PROJECT}={function.namespace}"])
        for each in labels:
            if ids := [key for key, found in self._list(each, deadline) if found == function]:
                return ids
        return [function.name]

    def _list(self, labels: list[str], deadline: float) -> list[tuple[str, Function]]:
        """Return ids, and the functions that they are."""
        with self._clients.use(deadline - time.monotonic()) as client:
            entries = client.api.containers(all=True, filters={"label": labels})
            found = [(str(entry["Id"]), _identity(entry)) for entry in entries]
        return [(key, function) for key, function in found if function is not None]

    def _inspect(self, key: str, deadline: float) -> Container | None:
        from docker.errors import NotFound

        with self._clients.use(deadline - time.monotonic()) as client:
            try:
                container = Container.of(client.api.inspect_container(key), self._reach)
            except NotFound:
                return None
        return None if container.state in ("removing", "dead") else container

    def _start(self, container: Container) -> None:
        from docker.errors import APIError

        now = self._stopped(container)
        with self._clients.use() as client:
            try:
                if now.state == "paused":
                    client.api.unpause(now.id)
                else:
                    client.api.start(now.id)
            except APIError as error:
                self._accept_refusal(now, error)

    def _stopped(self, container: Container) -> Container:
        """Wait until this process has stopped the container, and return it as it is then."""
        if container.id not in self._stopping.get():
            return container
        deadline = self._deadline() + container.grace
        while container.id in self._stopping.get() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._inspect(container.id, self._deadline()) or container

    def _accept_refusal(self, container: Container, error: Any) -> None:
        """Return if somebody else was first, or if the container's state tells why it cannot start."""
        from docker.errors import ImageNotFound

        now = self._inspect(container.id, self._deadline())
        if now is None or now.runs:
            return
        _log.warning("container %s cannot be started: %s", container.name, error.explanation)
        if now.failure is None:
            raise CannotStart(IMAGE_MISSING) if isinstance(error, ImageNotFound) else error

    def _halt(self, container: Container, pause: bool) -> None:
        from docker.errors import APIError

        stopping = self._stopping.get()
        stopping.add(container.id)
        try:
            with self._clients.use() as client:
                try:
                    # The engine refuses to pause what waits for its next restart.
                    if pause and container.state == "running":
                        client.api.pause(container.id)
                    else:
                        client.api.stop(container.id, timeout=container.grace)
                except APIError:
                    now = self._inspect(container.id, self._deadline())
                    if now is not None and (now.runs or (now.paused and not pause)):
                        raise
        finally:
            stopping.discard(container.id)


def _identity(entry: Mapping[str, Any]) -> Function | None:
    """Return the function of an entry of ``GET /containers/json``."""
    # A link gives a container more names, with a second slash in them.
    names = [name[1:] for name in entry["Names"] or () if name.count("/") == 1]
    return function_of(names[0], entry["Labels"] or {}) if names else None


def _all_at_once(act: Callable[[Container], None], containers: Sequence[Container]) -> None:
    """Act on all of them at the same time. Raise the first error when all are done."""
    errors: list[Exception] = []

    def run(container: Container) -> None:
        try:
            act(container)
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    # No executor: its module makes a lock at import, which gevent may patch too late for.
    threads = [threading.Thread(target=run, args=(each,)) for each in containers[1:]]
    for thread in threads:
        thread.start()
    for each in containers[:1]:
        run(each)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
