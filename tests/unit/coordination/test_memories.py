"""What several workers remember of a function's starts, above all with a provider that knows only what it
was told itself."""

from __future__ import annotations

import math

from scalezero_wsgi import Function, FunctionCache, FunctionScaler
from scalezero_wsgi.activation.state import FunctionMeta
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.events import Reporter
from scalezero_wsgi.providers import CallbackProvider
from tests.support import fakes
from tests.support.clock import MovingClock

HELLO = Function("hello")


class World:
    """Workers over one store, each with a provider of its own."""

    def __init__(self) -> None:
        self.clock = MovingClock()
        self.store = MemoryCoordination(clock=self.clock)
        self.calls: list[int] = []

    def worker(self) -> FunctionScaler:
        number, report = len(self.calls), Reporter()
        provider = CallbackProvider(scale_up=lambda *_: self.calls.append(number), clock=self.clock)
        cache = FunctionCache(0.25, clock=self.clock)
        peers = Peers(self.store, report, self.clock)
        return FunctionScaler(provider, cache, report=report, peers=peers, clock=self.clock)

    def wake(self, scaler: FunctionScaler, since: float = -math.inf) -> FunctionMeta:
        return scaler.ensure_available(HELLO, self.clock() + 60.0, since=since)

    def calls_after(self, seconds: float) -> int:
        self.clock.advance(seconds)
        return len(self.calls)


def test_what_one_worker_started_is_up_for_all() -> None:
    world = World()
    workers = [world.worker() for _ in range(4)]
    for _ in range(3):
        for worker in workers:
            assert world.wake(worker).available
            assert world.calls_after(10.0) == 1  # each time another one leads


def test_also_for_one_that_comes_later() -> None:
    world = World()
    world.wake(world.worker())
    world.clock.advance(600.0)
    assert world.wake(world.worker()).available
    assert len(world.calls) == 1


def test_what_one_worker_doubts_is_started_again_once() -> None:
    world = World()
    first, second = world.worker(), world.worker()
    world.wake(first)
    meta = world.wake(second)
    world.clock.advance(10.0)
    assert second.mark_suspect(meta)
    doubted_at = world.clock()
    second.wait_for_refresh(HELLO, 1.0)  # which believes nobody's memory from before
    world.clock.advance(0.1)
    renewed = world.wake(second, since=doubted_at)
    assert renewed.state.came_up_at >= doubted_at
    assert len(world.calls) == 2
    world.clock.advance(10.0)
    assert world.wake(first).available
    assert len(world.calls) == 2


def test_what_one_worker_scaled_down_is_down_for_all() -> None:
    world = World()
    first, second = world.worker(), world.worker()
    world.wake(first)
    world.wake(second)
    first._context.provider.set_replicas("hello", "", 0)
    world.clock.advance(10.0)
    first.wait_for_refresh(HELLO, 1.0)
    world.clock.advance(10.0)
    assert not first._cache.get("hello")[0].replicas
    assert world.wake(second).available
    assert len(world.calls) == 2


def test_what_another_worker_has_started_again_has_been_woken_for_this_one_too() -> None:
    """So that a request which met the old replica is passed down once more."""
    clock, nobody = MovingClock(), Reporter()
    store, provider = MemoryCoordination(clock=clock), fakes.FakeEngine(clock)
    one, other = (
        FunctionScaler(
            provider,
            FunctionCache(30.0, clock=clock),
            report=nobody,
            peers=Peers(store, nobody, clock),
            clock=clock,
        )
        for _ in range(2)
    )
    metas = [each.ensure_available(HELLO, clock() + 20.0) for each in (one, other)]
    provider.set_replicas(*HELLO, 0)
    clock.advance(1.0)  # ages are told to a few milliseconds: starts closer than that could change places
    for scaler, meta in zip((one, other), metas, strict=True):
        assert scaler.mark_suspect(meta)
        renewed = scaler.ensure_available(HELLO, clock() + 20.0, since=clock())
        assert renewed.state.came_up_at > meta.last_refresh
        # It was not found to be there although it was doubted: what is there is another one. So the next
        # error is a reason to ask, however soon it comes.
        assert scaler.mark_suspect(renewed)
        scaler.ensure_available(HELLO, clock() + 20.0, since=clock())
    assert [replicas for _, replicas in provider.sets] == [1, 0, 1]
