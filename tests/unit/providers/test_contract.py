"""The contract, for the providers that need no engine."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi import Function, FunctionFailed, FunctionNotFound, ReplicaStatus
from scalezero_wsgi.providers import CallbackProvider, ProcessFunction, ProcessProvider, Ready
from scalezero_wsgi.testing import ProviderBench, ProviderContract
from tests.support.fakes import ZERO


@pytest.mark.server
class TestProcessProvider(ProviderContract):
    @pytest.mark.soak
    def test_a_function_that_cannot_start_is_tried_once_a_step(self, bench: ProviderBench) -> None:
        super().test_a_function_that_cannot_start_is_tried_once_a_step(bench)

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[ProviderBench]:
        demo = [sys.executable, "-m", "scalezero_wsgi.demo", "hello", "{port}"]
        functions = {
            "hello": ProcessFunction(demo, Ready("/")),
            "broken": ProcessFunction([sys.executable, "-c", "raise SystemExit(3)"]),
        }
        provider = ProcessProvider(functions, state_dir=tmp_path / "state")
        # A state that cannot be read is the nearest that processes have to an engine that is down.
        down = ProcessProvider(functions, state_dir=tmp_path / "down")
        (tmp_path / "down").rmdir()
        yield ProviderBench(
            provider=provider,
            ready=Function("hello"),
            unknown=Function("nobody"),
            bounds=(1, 1),
            broken=Function("broken"),
            down=_Unreadable(down),
        )
        provider.stop_all(5)


class _Unreadable:
    """The part of the contract about an engine that is down is for calls that need the state."""

    def __init__(self, provider: ProcessProvider) -> None:
        self._provider = provider

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        self._provider.set_replicas(name, namespace, 1)
        return self._provider.get_replicas(name, namespace)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        self._provider.set_replicas(name, namespace, replicas)


class TestCallbackProvider(ProviderContract):
    @pytest.mark.soak
    def test_a_function_that_cannot_start_is_tried_once_a_step(self, bench: ProviderBench) -> None:
        super().test_a_function_that_cannot_start_is_tried_once_a_step(bench)

    @pytest.fixture
    def bench(self) -> ProviderBench:
        counts: dict[str, int] = {"hello": 0, "broken": 0}
        ready_at: dict[str, float] = {}
        lock = threading.Lock()

        def get_replicas(name: str, namespace: str) -> ReplicaStatus:
            with lock:
                if name not in counts:
                    raise FunctionNotFound(name, namespace)
                if name == "broken" and counts[name] and time.monotonic() >= ready_at[name]:
                    return ReplicaStatus(0, 0, failure="exited with 1")
                available = counts[name] if time.monotonic() >= ready_at.get(name, 0) else 0
                return ReplicaStatus(counts[name], available, max_replicas=1)

        def set_replicas(name: str, namespace: str, replicas: int) -> None:
            with lock:
                if name not in counts:
                    raise FunctionNotFound(name, namespace)
                if replicas and (not counts[name] or name == "broken"):
                    ready_at[name] = time.monotonic() + 0.1
                counts[name] = replicas

        return ProviderBench(
            provider=CallbackProvider(get_replicas=get_replicas, set_replicas=set_replicas, namespace="fn"),
            ready=Function("hello"),
            unknown=Function("nobody"),
            bounds=(1, 1),
            broken=Function("broken"),
            shared=False,
        )


def broken_scale_up(name: str, namespace: str) -> None:
    time.sleep(0.1)
    raise OSError("connection refused")


def broken_set_replicas(name: str, namespace: str, replicas: int) -> None:
    time.sleep(0.1)
    raise FunctionFailed(name, "its licence has expired")


class TestCallbacksThatRaise:
    """They have no functions to list, to watch or not to know: of the contract this is their part."""

    test_tried_once_a_step = ProviderContract.test_a_function_that_cannot_start_is_tried_once_a_step

    pytestmark = pytest.mark.soak

    @pytest.fixture(params=["scale_up", "set_replicas"])
    def bench(self, request: pytest.FixtureRequest) -> ProviderBench:
        if request.param == "scale_up":
            provider = CallbackProvider(scale_up=broken_scale_up)
        else:
            provider = CallbackProvider(get_replicas=lambda *_: ZERO, set_replicas=broken_set_replicas)
        broken = Function("broken")
        return ProviderBench(provider, ready=broken, unknown=broken, broken=broken)
