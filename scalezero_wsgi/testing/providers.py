"""Tests that every provider must pass."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .._lib.backoff import backoff_step
from ..activation.function_cache import FunctionCache
from ..activation.scaler import FunctionScaler
from ..coordination.memory import MemoryCoordination
from ..coordination.peers import Peers
from ..events import Event, Reporter, StartFailed
from ..model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    ProviderError,
    ReplicaStatus,
    ScaleZeroError,
)
from ..providers.base import (
    ListingProvider,
    NamespacedProvider,
    PausingProvider,
    Provider,
    WatchingProvider,
)

HOSTILE_NAMES = (
    "",
    ".",
    "..",
    "../hello",
    "hello/",
    "a/b",
    "a?b=c",
    "a#b",
    "a%2Fb",
    "a b",
    "a\nb",
    "\x00",
    "ä",
)
"""Names that no function has. A provider must not take them for another function's name or another query."""


@dataclass(frozen=True, slots=True)
class ProviderBench:
    """A provider to test, and functions of its engine in known states.

    :param provider: the provider under test.
    :param ready: a function that starts and becomes available; the bench resets it to zero.
    :param unknown: a function that the engine does not know.
    :param bounds: the minimum and the maximum that the provider must report of ``ready``.
    :param broken: a function that fails while it starts.
    :param down: a provider whose engine does not run.
    :param hanging: a provider whose engine accepts calls and never answers.
    :param refusing: a provider whose credentials the engine refuses.
    :param shared: whether all processes see the same engine; ``False`` for an engine in memory.
    :param patience: seconds within which an error must be raised, by the provider's own time-outs.
    :param start_timeout: seconds within which ``ready`` must become available and ``broken`` must fail.
    """

    provider: Provider
    ready: Function
    unknown: Function
    bounds: tuple[int, int | None] = (1, None)
    broken: Function | None = None
    down: Provider | None = None
    hanging: Provider | None = None
    refusing: Provider | None = None
    shared: bool = True
    patience: float = 5.0
    start_timeout: float = 30.0

    def status(self, function: Function | None = None) -> ReplicaStatus:
        """Return the status of ``ready``, or of another function."""
        return self.provider.get_replicas(*(function or self.ready))

    def scale(self, replicas: int, function: Function | None = None) -> None:
        """Set the replicas of ``ready``, or of another function."""
        self.provider.set_replicas(*(function or self.ready), replicas)

    def until(
        self, condition: Callable[[ReplicaStatus], bool], function: Function | None = None
    ) -> ReplicaStatus:
        """Query until ``condition`` holds, for ``start_timeout`` seconds at most; return that status."""
        deadline = time.monotonic() + self.start_timeout
        while not condition(status := self.status(function)):
            assert time.monotonic() < deadline, f"the status stays {status}"
            time.sleep(0.02)
        return status

    def reset(self) -> None:
        """Scale ``ready`` to zero, and wait until it is there."""
        self.scale(0)
        self.until(_is_at_zero)


def _with_namespace(provider: Provider, function: Function) -> Function:
    """Return the function with its namespace, by default the provider's own."""
    own = provider.own_namespace if isinstance(provider, NamespacedProvider) else ""
    return Function(function.name, function.namespace or own)


@dataclass(slots=True)
class Tries:
    """A record of how several workers tried to start a function.

    :ivar sets: when each call of ``set_replicas`` began and ended, in monotonic seconds.
    :ivar failures: the failed starts of all workers.
    :ivar outcomes: the classes of the errors that requests ended with; ``None`` for those without one.
    """

    sets: list[tuple[float, float]] = field(default_factory=list)
    failures: list[StartFailed] = field(default_factory=list)
    outcomes: set[type[Exception] | None] = field(default_factory=set)


class _Recorded:
    """A provider whose calls of ``set_replicas`` are recorded."""

    def __init__(self, provider: Provider, tries: Tries) -> None:
        self._provider = provider
        self._tries = tries
        # Set on the object, so that it has the optional methods that the provider has, and no others.
        for method in ("wait_for_change", "doubt", "learn"):
            if hasattr(provider, method):
                setattr(self, method, getattr(provider, method))

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return self._provider.get_replicas(name, namespace)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        started_at = time.monotonic()
        try:
            self._provider.set_replicas(name, namespace, replicas)
        finally:
            self._tries.sets.append((started_at, time.monotonic()))


@contextlib.contextmanager
def asked_by_workers(
    provider: Provider, function: Function, *, max_wait: float, workers: int = 3, requests: int = 3
) -> Iterator[Tries]:
    """During the block, have workers that share a store request the function all the time.

    :param max_wait: seconds that each request waits.
    :param workers: how many workers there are.
    :param requests: how many requests each of them has at a time.
    """
    tries = Tries()
    done = threading.Event()

    def note(event: Event) -> None:
        if isinstance(event, StartFailed):
            tries.failures.append(event)

    def ask(scaler: FunctionScaler) -> None:
        while not done.wait(0.01):
            try:
                scaler.ensure_available(function, time.monotonic() + max_wait)
                tries.outcomes.add(None)
            except ScaleZeroError as error:
                tries.outcomes.add(type(error))

    store, recorded = MemoryCoordination(), _Recorded(provider, tries)
    all_peers = [Peers(store, Reporter()) for _ in range(workers)]
    scalers = [
        FunctionScaler(recorded, FunctionCache(0.25), report=Reporter([note]), peers=peers)
        for peers in all_peers
    ]
    threads = [threading.Thread(target=ask, args=(scaler,)) for scaler in scalers for _ in range(requests)]
    for thread in threads:
        thread.start()
    try:
        yield tries
    finally:
        done.set()
        for thread in threads:
            thread.join()
        for peers in all_peers:
            peers.close()


def _is_at_zero(status: ReplicaStatus) -> bool:
    return status.replicas == 0 and status.available_replicas == 0


def _is_available(status: ReplicaStatus) -> bool:
    return status.available_replicas > 0


@contextlib.contextmanager
def _provider_error(patience: float) -> Iterator[None]:
    """Fail unless the block raises a ProviderError within ``patience`` seconds."""
    started_at = time.monotonic()
    try:
        yield
    except ProviderError:
        assert time.monotonic() - started_at <= patience, "the error took too long"
    else:
        raise AssertionError("no ProviderError was raised")


class ProviderContract:
    """The tests. A subclass defines the fixture ``bench``."""

    def test_an_unknown_function_is_not_found(self, bench: ProviderBench) -> None:
        """A query and a scale-up both say so."""
        for call in (lambda: bench.status(bench.unknown), lambda: bench.scale(1, bench.unknown)):
            try:
                call()
            except FunctionNotFound as error:
                assert error.function == bench.unknown
            else:
                raise AssertionError("no FunctionNotFound was raised")

    def test_hostile_names_are_nobodys(self, bench: ProviderBench) -> None:
        """They are not found, or refused, however the engine's addresses are built."""
        for name in HOSTILE_NAMES:
            try:
                status = bench.status(Function(name, bench.ready.namespace))
            except (FunctionNotFound, ProviderError):
                continue
            raise AssertionError(f"{name!r} was taken for a function: {status}")

    def test_from_zero_to_available_and_back(self, bench: ProviderBench) -> None:
        """Zero is reported as zero, a new count soon after it was set, availability only when it is true."""
        bench.reset()
        bench.scale(1)
        bench.until(lambda status: status.replicas >= 1)
        status = bench.until(_is_available)
        assert status.failure is None
        if status.endpoint is not None:
            address = urlsplit(status.endpoint)
            # A replica that is reported as available must accept a connection at the first try.
            socket.create_connection((str(address.hostname), address.port or 80), 5).close()
        bench.scale(0)
        bench.until(_is_at_zero)

    def test_scaling_up_twice_is_scaling_up_once(self, bench: ProviderBench) -> None:
        """While the function starts, and when it runs."""
        bench.reset()
        bench.scale(1)
        bench.scale(1)
        assert bench.until(_is_available).replicas == 1
        bench.scale(1)
        status = bench.status()
        assert (status.replicas, _is_available(status)) == (1, True)

    def test_a_paused_function_is_at_zero_until_it_is_scaled_up(self, bench: ProviderBench) -> None:
        """It says that it is paused, serves at once when it is resumed, and can be stopped without that."""
        provider = bench.provider
        if not isinstance(provider, PausingProvider):
            return
        bench.reset()
        provider.pause(*bench.ready)
        assert not bench.until(_is_at_zero).paused, "a function at zero was paused"
        bench.scale(bench.status().first_replicas)
        replicas = bench.until(_is_available).replicas
        for _ in range(2):
            provider.pause(*bench.ready)
            status = bench.status()
            assert _is_at_zero(status)
            assert status.paused
        bench.scale(status.first_replicas)
        status = bench.until(_is_available)
        assert (status.replicas, status.paused) == (replicas, False)
        if status.endpoint is not None:
            address = urlsplit(status.endpoint)
            socket.create_connection((str(address.hostname), address.port or 80), 5).close()
        provider.pause(*bench.ready)
        bench.reset()
        assert not bench.status().paused

    def test_bounds_are_told(self, bench: ProviderBench) -> None:
        """They are the engine's minimum and maximum."""
        status = bench.status()
        assert (status.min_replicas, status.max_replicas) == bench.bounds

    def test_a_failure_while_starting_is_told(self, bench: ProviderBench) -> None:
        """As a text, while the function is unavailable, so that requests do not wait for it."""
        if bench.broken is None:
            return
        bench.scale(1, bench.broken)
        status = bench.until(lambda status: status.failure is not None, bench.broken)
        assert status.available_replicas == 0
        bench.scale(0, bench.broken)

    def test_a_function_that_cannot_start_is_tried_once_a_step(self, bench: ProviderBench) -> None:
        """At most once in each of the first three steps of the back-off, by several workers."""
        if bench.broken is None:
            return
        deadline = time.monotonic() + 3 * bench.start_timeout + 3.0
        with asked_by_workers(bench.provider, bench.broken, max_wait=bench.start_timeout) as tries:
            while len(tries.failures) < 3:
                assert time.monotonic() < deadline, f"only {len(tries.failures)} starts failed"
                time.sleep(0.02)
        # An engine that retries by itself keeps its count above zero, so it is not set again.
        sets = tries.sets
        assert 1 <= len(sets) <= 3
        for number, ((_, ended_at), (started_at, _)) in enumerate(itertools.pairwise(sets), 1):
            assert started_at >= ended_at + backoff_step(number), f"try {number + 1} came too early"
        assert tries.outcomes == {FunctionFailed}
        with contextlib.suppress(FunctionFailed):
            bench.scale(0, bench.broken)

    def test_an_engine_that_is_down_is_a_provider_error(self, bench: ProviderBench) -> None:
        """It is not taken for a missing function."""
        self._must_fail(bench, bench.down)

    def test_an_engine_that_hangs_is_a_provider_error(self, bench: ProviderBench) -> None:
        """It is raised by the provider's own time-out."""
        self._must_fail(bench, bench.hanging)

    def test_an_engine_that_refuses_is_a_provider_error(self, bench: ProviderBench) -> None:
        """It is not taken for a missing function."""
        self._must_fail(bench, bench.refusing)

    def _must_fail(self, bench: ProviderBench, provider: Provider | None) -> None:
        if provider is None:
            return
        with _provider_error(bench.patience):
            provider.get_replicas(*bench.ready)
        with _provider_error(bench.patience):
            provider.set_replicas(*bench.ready, 1)
        if isinstance(provider, WatchingProvider):
            with _provider_error(bench.patience + 1.0):
                provider.wait_for_change(*bench.ready, ReplicaStatus(0, 0), 1.0)

    def test_it_is_safe_for_threads(self, bench: ProviderBench) -> None:
        """Many threads query and scale at once: there is one start, and no error."""
        bench.reset()
        errors: list[Exception] = []

        def use() -> None:
            try:
                bench.scale(1)
                bench.until(_is_available)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert bench.status().replicas == 1

    def test_it_is_safe_after_a_fork(self, bench: ProviderBench) -> None:
        """A child uses the provider that its parent has used, and neither affects the other."""
        bench.reset()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                bench.scale(1)
                bench.until(_is_available)
                status = 0
            finally:
                os._exit(status)
        deadline = time.monotonic() + bench.start_timeout + 10
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            bench.status()
            assert time.monotonic() < deadline, "the child hangs"
            time.sleep(0.05)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        if bench.shared:
            assert bench.until(_is_available).replicas == 1

    def test_a_watch_ends_early_on_a_change(self, bench: ProviderBench) -> None:
        """Each change ends it long before its time-out, until a replica is available."""
        provider = bench.provider
        if not isinstance(provider, WatchingProvider):
            return
        bench.reset()
        seen = bench.status()
        threading.Timer(0.3, bench.scale, [1]).start()
        started_at = time.monotonic()
        while not _is_available(seen):
            changed = provider.wait_for_change(*bench.ready, seen, bench.start_timeout)
            assert changed != seen
            assert time.monotonic() - started_at < bench.start_timeout
            seen = changed

    def test_a_watch_without_a_change_ends_on_time(self, bench: ProviderBench) -> None:
        """It returns the status that it was given."""
        provider = bench.provider
        if not isinstance(provider, WatchingProvider):
            return
        bench.reset()
        seen = bench.status()
        started_at = time.monotonic()
        assert provider.wait_for_change(*bench.ready, seen, 0.7) == seen
        assert 0.6 <= time.monotonic() - started_at <= 0.7 + bench.patience

    def test_the_functions_are_listed(self, bench: ProviderBench) -> None:
        """All functions that can be queried are, and no others."""
        provider = bench.provider
        if not isinstance(provider, ListingProvider):
            return
        functions = list(provider.list_functions())
        assert _with_namespace(provider, bench.ready) in functions
        assert _with_namespace(provider, bench.unknown) not in functions

    def test_its_own_namespace_may_be_left_out(self, bench: ProviderBench) -> None:
        """A name with and without it means the same function."""
        named = _with_namespace(bench.provider, bench.ready)
        if named != _with_namespace(bench.provider, bare := Function(named.name)) or named == bare:
            return
        bench.reset()
        bench.scale(1, bare)
        bench.until(_is_available, named)
        bench.scale(0, named)
        bench.until(_is_at_zero, bare)
