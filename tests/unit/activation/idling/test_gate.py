from __future__ import annotations

from collections.abc import Iterator

import pytest

from scalezero_wsgi import Function, FunctionCache
from scalezero_wsgi.activation.idling.gate import Gate
from scalezero_wsgi.coordination.base import Drain, DrainPhase
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.events import Reporter
from tests.support.clock import Clock
from tests.support.fakes import UP

HELLO = Function("hello")


class Site:
    """A worker's gate, and a store in which another worker brings the function to zero."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryCoordination(self.clock)
        self.peers = Peers(self.store, Reporter(), self.clock)
        self.cache = FunctionCache(1.0, stale_for=60.0, clock=self.clock)
        self.gate = Gate(self.store, self.peers, self.cache, dict, Reporter(), clock=self.clock)
        self._drain: Drain | None = None

    def drain(self, phase: DrainPhase, epoch: int) -> None:
        """The other worker has come that far."""
        after = Drain(phase, epoch)
        assert self.store.change_drain(HELLO, self._drain, after, 60.0)
        self._drain = after
        self.clock.advance(0.1)

    def sees_it_up(self) -> None:
        self.cache.set("hello", UP)
        self.clock.advance(0.1)

    def turn(self) -> None:
        self.gate.turn()
        self.clock.advance(0.1)

    def is_suspect(self) -> bool:
        """Whether no request is passed down by what this worker has seen."""
        meta = self.cache.find(HELLO)
        assert meta is not None
        return meta.suspect


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    site.turn()
    yield site
    site.peers.close()


def test_what_was_seen_before_the_function_was_stopped_counts_no_more(site: Site) -> None:
    site.sees_it_up()
    site.drain(DrainPhase.STOPPING, 1)
    site.turn()
    site.drain(DrainPhase.ZERO, 1)
    site.turn()
    assert HELLO not in site.gate.closed
    assert site.is_suspect()


def test_what_was_seen_after_that_counts(site: Site) -> None:
    """A worker has started it again, before this one's thread has had its turn."""
    site.drain(DrainPhase.STOPPING, 1)
    site.turn()
    site.drain(DrainPhase.ZERO, 1)
    site.sees_it_up()
    site.turn()
    assert HELLO not in site.gate.closed
    assert not site.is_suspect()


def test_that_a_request_saw_an_earlier_stop_says_nothing_of_the_next_one(site: Site) -> None:
    """This worker's thread has missed the first one, at whose end nothing was to be opened."""
    site.sees_it_up()
    site.drain(DrainPhase.STOPPING, 1)
    assert not site.gate.enter(HELLO)
    site.drain(DrainPhase.ZERO, 1)
    site.sees_it_up()
    site.drain(DrainPhase.DRAINING, 2)
    site.drain(DrainPhase.STOPPING, 2)
    site.turn()
    site.drain(DrainPhase.ZERO, 2)
    site.turn()
    assert HELLO not in site.gate.closed
    assert site.is_suspect()


def test_a_second_stop_that_was_missed_counts(site: Site) -> None:
    """Between two turns it was at zero, up, and at zero again."""
    site.drain(DrainPhase.STOPPING, 1)
    site.turn()
    site.drain(DrainPhase.ZERO, 1)
    site.sees_it_up()
    site.drain(DrainPhase.STOPPING, 2)
    site.drain(DrainPhase.ZERO, 2)
    site.turn()
    assert HELLO not in site.gate.closed
    assert site.is_suspect()
