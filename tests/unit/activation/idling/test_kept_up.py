"""What operators keep up: it goes by the store's clock, and the whole fleet sees it."""

from __future__ import annotations

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi.activation.idling.kept_up import KEPT_UP, LONGEST, LOOK_EVERY, PATIENCE, KeptUp
from scalezero_wsgi.coordination import CoordinationError
from scalezero_wsgi.coordination.base import SharedStatus
from scalezero_wsgi.coordination.leadership import LEASE
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.events import Reporter
from scalezero_wsgi.model import ReplicaStatus
from tests.support.clock import Clock
from tests.support.fakes import HELLO, UP

OTHER = Function("other", "dev")
IDLE_AFTER = 15.0


class Fleet:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryCoordination(clock=self.clock)
        self.first, self.second = self.worker(), self.worker()

    def worker(self) -> KeptUp:
        peers = Peers(self.store, Reporter(), self.clock)
        return KeptUp(self.store, peers, lambda *_: IDLE_AFTER, self.clock, self.clock.sleep)


def test_what_one_keeps_up_is_not_idle_for_another_until_its_time_is_over() -> None:
    fleet = Fleet()
    assert fleet.second(HELLO, UP) == IDLE_AFTER
    fleet.first.keep(HELLO, LONGEST)
    fleet.clock.advance(LOOK_EVERY + 1)
    assert fleet.second(HELLO, UP) is None
    assert fleet.second(OTHER, UP) == IDLE_AFTER
    fleet.clock.advance(LONGEST)
    assert fleet.second(HELLO, UP) == IDLE_AFTER


def test_a_later_one_leaves_the_time_of_those_before_it() -> None:
    fleet = Fleet()
    fleet.first.keep(HELLO, 100.0)
    fleet.clock.advance(30.0)
    fleet.second.keep(OTHER, 200.0)
    assert fleet.second.left() == {HELLO: 70.0, OTHER: 200.0}
    fleet.second.keep(HELLO, 0.0)
    fleet.clock.advance(1.0)
    assert fleet.first.left() == {OTHER: 199.0}


@pytest.mark.parametrize("seconds", [-1.0, LONGEST + 1, float("nan")])
def test_a_time_that_no_store_keeps_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 3600"):
        Fleet().first.keep(HELLO, seconds)


def test_it_waits_for_who_changes_it_and_not_for_ever() -> None:
    fleet = Fleet()
    assert fleet.store.acquire(KEPT_UP, "dead", LEASE)
    fleet.first.keep(HELLO, 10.0)
    assert fleet.store.acquire(KEPT_UP, "hanging", 10 * PATIENCE)
    with pytest.raises(CoordinationError, match="another worker"):
        fleet.first.keep(HELLO, 20.0)


def test_what_a_later_release_has_written_is_nothing() -> None:
    fleet = Fleet()
    lease = fleet.store.acquire(KEPT_UP, "later", LEASE)
    assert lease is not None
    for status in (None, ReplicaStatus(0, 0), ReplicaStatus(0, 0, annotations={"scalezero.kept-up": "[1]"})):
        assert fleet.store.publish(lease, SharedStatus(status))
        assert fleet.worker().left() == {}


class Broken(MemoryCoordination):
    works = True

    def known(self, function: Function) -> SharedStatus | None:
        if not self.works:
            raise CoordinationError("it is gone")
        return super().known(function)


def test_without_the_store_what_was_known_stands_and_nothing_can_be_changed() -> None:
    clock = Clock()
    store = Broken(clock=clock)
    kept_up = KeptUp(store, Peers(store, Reporter(), clock), lambda *_: IDLE_AFTER, clock, clock.sleep)
    kept_up.keep(HELLO, 10.0)
    assert kept_up.holds(HELLO)
    store.works = False
    clock.advance(1.0)
    assert kept_up.left() == {HELLO: 9.0}
    with pytest.raises(CoordinationError):
        kept_up.keep(HELLO, 20.0)
    clock.advance(10.0)
    assert not kept_up.holds(HELLO)
