"""What a provider must do."""

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
from ..providers.base import ListingProvider, NamespacedProvider, Provider, WatchingProvider

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
"""Names that no function has. They must not be taken for another function's, nor for another question."""


@dataclass(frozen=True, slots=True)
class ProviderBench:
    """A provider, its engine, and functions in known states.

    :param provider: the provider under test.
    :param ready: a function that starts and becomes available; the bench resets it to zero.
    :param unknown: a function that the engine does not know.
    :param bounds: what the provider must tell as the minimum and the maximum of ``ready``.
    :param broken: a function that fails while it starts.
    :param down: a provider whose engine does not run.
    :param hanging: a provider whose engine takes calls and never answers.
    :param refusing: a provider whose credentials the engine refuses.
    :param shared: whether the engine is one for all processes; not so for one that lives in memory.
    :param patience: seconds within which an error must be told, by the provider's own time-outs.
    :param start_timeout: seconds within which ``ready`` becomes available and ``broken`` fails.
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
        """The present status of ``ready``, or of another function."""
        return self.provider.get_replicas(*(function or self.ready))

    def scale(self, replicas: int, function: Function | None = None) -> None:
        """Set the replicas of ``ready``, or of another function."""
        self.provider.set_replicas(*(function or self.ready), replicas)

    def until(
        self, condition: Callable[[ReplicaStatus], bool], function: Function | None = None
    ) -> ReplicaStatus:
        """Ask until ``condition`` holds, for ``start_timeout`` seconds at most."""
        deadline = time.monotonic() + self.start_timeout
        while not condition(status := self.status(function)):
            assert time.monotonic() < deadline, f"it stays {status}"
            time.sleep(0.02)
        return status

    def reset(self) -> None:
        """Bring ``ready`` to zero, and wait until it is there."""
        self.scale(0)
        self.until(_is_at_zero)


def _in_words(provider: Provider, function: Function) -> Function:
    """The function with its namespace, which may be the provider's own."""
    own = provider.own_namespace if isinstance(provider, NamespacedProvider) else ""
    return Function(function.name, function.namespace or own)


@dataclass(slots=True)
class Tries:
    """What several workers did to start a function.

    :ivar sets: when each call of ``set_replicas`` began and ended, in monotonic seconds.
    :ivar failures: failed starts, of all workers together.
    :ivar outcomes: what the requests ended with.
    """

    sets: list[tuple[float, float]] = field(default_factory=list)
    failures: list[StartFailed] = field(default_factory=list)
    outcomes: set[type[Exception] | None] = field(default_factory=set)


class _Counted:
    """A provider whose calls of ``set_replicas`` are written down."""

    def __init__(self, provider: Provider, tries: Tries) -> None:
        self._provider = provider
        self._tries = tries
        # As attributes of the object, so that it is as watching, doubting and so on as the provider.
        for method in ("wait_for_change", "doubt", "learn"):
            if hasattr(provider, method):
                setattr(self, method, getattr(provider, method))

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return self._provider.get_replicas(name, namespace)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        begun = time.monotonic()
        try:
            self._provider.set_replicas(name, namespace, replicas)
        finally:
            self._tries.sets.append((begun, time.monotonic()))


@contextlib.contextmanager
def asked_by_workers(
    provider: Provider, function: Function, *, max_wait: float, workers: int = 3, requests: int = 3
) -> Iterator[Tries]:
    """While the block runs, so many workers that share a store have so many requests each at any time.

    :param max_wait: seconds that each request waits.
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

    store, counted = MemoryCoordination(), _Counted(provider, tries)
    fleets = [Peers(store, Reporter()) for _ in range(workers)]
    scalers = [
        FunctionScaler(counted, FunctionCache(0.25), report=Reporter([note]), peers=peers) for peers in fleets
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
        for peers in fleets:
            peers.close()


def _is_at_zero(status: ReplicaStatus) -> bool:
    return status.replicas == 0 and status.available_replicas == 0


def _is_available(status: ReplicaStatus) -> bool:
    return status.available_replicas > 0


@contextlib.contextmanager
def _provider_error(patience: float) -> Iterator[None]:
    """The block must raise a ProviderError, and within ``patience`` seconds."""
    begun = time.monotonic()
    try:
        yield
    except ProviderError:
        assert time.monotonic() - begun <= patience, "the error took too long"
    else:
        raise AssertionError("no ProviderError was raised")


class ProviderContract:
    """The tests. A subclass gives the fixture ``bench``."""

    def test_an_unknown_function_is_not_found(self, bench: ProviderBench) -> None:
        """Neither when it is asked for nor when it is scaled."""
        for call in (lambda: bench.status(bench.unknown), lambda: bench.scale(1, bench.unknown)):
            try:
                call()
            except FunctionNotFound as error:
                assert error.function == bench.unknown
            else:
                raise AssertionError("no FunctionNotFound was raised")

    def test_hostile_names_are_nobodys(self, bench: ProviderBench) -> None:
        """They are not found or refused, whatever the engine's addresses are made of."""
        for name in HOSTILE_NAMES:
            try:
                status = bench.status(Function(name, bench.ready.namespace))
            except (FunctionNotFound, ProviderError):
                continue
            raise AssertionError(f"{name!r} was taken for a function: {status}")

    def test_from_zero_to_available_and_back(self, bench: ProviderBench) -> None:
        """Zero is told as zero, the desired count soon after it was set, availability only when it is so."""
        bench.reset()
        bench.scale(1)
        bench.until(lambda status: status.replicas >= 1)
        status = bench.until(_is_available)
        assert status.failure is None
        if status.endpoint is not None:
            address = urlsplit(status.endpoint)
            # A replica that counts as available must be there now: no second try.
            socket.create_connection((str(address.hostname), address.port or 80), 5).close()
        bench.scale(0)
        bench.until(_is_at_zero)

    def test_scaling_up_twice_is_scaling_up_once(self, bench: ProviderBench) -> None:
        """Also while it starts, and when it runs."""
        bench.reset()
        bench.scale(1)
        bench.scale(1)
        assert bench.until(_is_available).replicas == 1
        bench.scale(1)
        status = bench.status()
        assert (status.replicas, _is_available(status)) == (1, True)

    def test_bounds_are_told(self, bench: ProviderBench) -> None:
        """The minimum and maximum, as the engine has them."""
        status = bench.status()
        assert (status.min_replicas, status.max_replicas) == bench.bounds

    def test_a_failure_while_starting_is_told(self, bench: ProviderBench) -> None:
        """In words, while the function is unavailable, so that nobody waits in vain."""
        if bench.broken is None:
            return
        bench.scale(1, bench.broken)
        status = bench.until(lambda status: status.failure is not None, bench.broken)
        assert status.available_replicas == 0
        bench.scale(0, bench.broken)

    def test_a_function_that_cannot_start_is_tried_once_a_step(self, bench: ProviderBench) -> None:
        """In the first three steps of its back-off, however many workers and requests there are."""
        if bench.broken is None:
            return
        deadline = time.monotonic() + 3 * bench.start_timeout + 3.0
        with asked_by_workers(bench.provider, bench.broken, max_wait=bench.start_timeout) as tries:
            while len(tries.failures) < 3:
                assert time.monotonic() < deadline, f"it failed {len(tries.failures)} times only"
                time.sleep(0.02)
        # An engine that goes on trying by itself shows a count above zero, which is not set again.
        sets = tries.sets
        assert 1 <= len(sets) <= 3
        for number, ((_, ended), (begun, _)) in enumerate(itertools.pairwise(sets), 1):
            assert begun >= ended + backoff_step(number), f"try {number + 1} came too early"
        assert tries.outcomes == {FunctionFailed}
        with contextlib.suppress(FunctionFailed):
            bench.scale(0, bench.broken)

    def test_an_engine_that_is_down_is_a_provider_error(self, bench: ProviderBench) -> None:
        """And not a missing function."""
        self._must_fail(bench, bench.down)

    def test_an_engine_that_hangs_is_a_provider_error(self, bench: ProviderBench) -> None:
        """Within the provider's own time-out."""
        self._must_fail(bench, bench.hanging)

    def test_an_engine_that_refuses_is_a_provider_error(self, bench: ProviderBench) -> None:
        """And not a missing function."""
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
        """Many ask and scale at once: one start, and no error."""
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
        """A child uses the provider that its parent has used, and neither disturbs the other."""
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
        """Long before its time-out, each time, up to the available replica."""
        provider = bench.provider
        if not isinstance(provider, WatchingProvider):
            return
        bench.reset()
        seen = bench.status()
        threading.Timer(0.3, bench.scale, [1]).start()
        begun = time.monotonic()
        while not _is_available(seen):
            changed = provider.wait_for_change(*bench.ready, seen, bench.start_timeout)
            assert changed != seen
            assert time.monotonic() - begun < bench.start_timeout
            seen = changed

    def test_a_watch_without_a_change_ends_on_time(self, bench: ProviderBench) -> None:
        """With the status that was seen."""
        provider = bench.provider
        if not isinstance(provider, WatchingProvider):
            return
        bench.reset()
        seen = bench.status()
        begun = time.monotonic()
        assert provider.wait_for_change(*bench.ready, seen, 0.7) == seen
        assert 0.6 <= time.monotonic() - begun <= 0.7 + bench.patience

    def test_the_functions_are_listed(self, bench: ProviderBench) -> None:
        """All that can be asked for, and no others."""
        provider = bench.provider
        if not isinstance(provider, ListingProvider):
            return
        functions = list(provider.list_functions())
        assert _in_words(provider, bench.ready) in functions
        assert _in_words(provider, bench.unknown) not in functions

    def test_its_own_namespace_may_be_left_out(self, bench: ProviderBench) -> None:
        """A function is the same with and without it."""
        named = _in_words(bench.provider, bench.ready)
        if named != _in_words(bench.provider, bare := Function(named.name)) or named == bare:
            return
        bench.reset()
        bench.scale(1, bare)
        bench.until(_is_available, named)
        bench.scale(0, named)
        bench.until(_is_at_zero, bare)
