"""Somebody else changes a function while it drains: that change stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from scalezero_wsgi import FunctionNotFound, ReplicaStatus
from scalezero_wsgi.activation.idling import drain
from scalezero_wsgi.activation.idling import idler as idling
from scalezero_wsgi.coordination.base import DrainPhase, WorkerReport
from scalezero_wsgi.events import DrainCancelled
from tests.support.fakes import HELLO, UP
from tests.support.idlers import end_idlers
from tests.support.waiting import until
from tests.support.wsgi import ask
from tests.unit.activation.idling.test_idler import Engine, Site, phase

IDLE_AFTER = 0.05


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site whose function drains until a worker that does not answer is taken away."""
    monkeypatch.setattr(idling, "NEWLY_LED", 0.0)
    monkeypatch.setattr(drain, "ACKNOWLEDGE", 60.0)
    site = Site(cache_expiry=0.0, idle_after=IDLE_AFTER)
    site.store.report(WorkerReport("silent/use"), 60)
    ask(site.door)
    until(lambda: phase(site) is DrainPhase.DRAINING)
    yield site
    end_idlers()


CHANGES = {
    "scale to 3": replace(UP, replicas=3, available_replicas=3),
    "scale to 3, of which none is up yet": replace(UP, replicas=3, available_replicas=1),
    "redeploy in place": replace(UP, annotations={"deployment.kubernetes.io/revision": "2"}),
    "redeploy elsewhere": replace(UP, endpoint="http://10.0.0.2:8080"),
    "redeploy, and the new one is starting": replace(UP, available_replicas=0),
}


@pytest.mark.parametrize("status", CHANGES.values(), ids=CHANGES)
def test_a_change_stands(status: ReplicaStatus, site: Site) -> None:
    site.engine.status = status
    changed_at = time.monotonic()
    site.store.leave("silent/use")
    until(lambda: site.told(DrainCancelled))
    assert site.told(DrainCancelled)[0].reason == "somebody else has changed it meanwhile"
    assert phase(site) is DrainPhase.READY
    until(site.is_at_zero)  # as of a function that nobody has used since
    assert time.monotonic() >= changed_at + IDLE_AFTER


class Deleted(Engine):
    """What an engine is for a function that is not there."""

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        raise FunctionNotFound(name, namespace)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        self.sets.append((HELLO, replicas))
        raise FunctionNotFound(name, namespace)


def test_a_function_that_is_deleted_stays_so(site: Site) -> None:
    before, site.engine.__class__ = len(site.engine.sets), Deleted
    site.store.leave("silent/use")
    until(lambda: phase(site) in {None, DrainPhase.READY})
    assert ask(site.door)[0] == "404 NOT FOUND"
    time.sleep(4 * IDLE_AFTER)
    assert site.engine.sets[before:] == []
    assert phase(site) in {None, DrainPhase.READY}


def test_a_function_that_is_deleted_at_the_last_moment_is_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look: the call that scales it to zero does not find it."""
    look: Callable[..., object] = drain.FunctionDrain._look_once_more

    def look_and_see_it_vanish(self: drain.FunctionDrain, status: ReplicaStatus) -> object:
        result = look(self, status)
        site.engine.__class__ = Deleted
        return result

    monkeypatch.setattr(drain.FunctionDrain, "_look_once_more", look_and_see_it_vanish)
    site.store.leave("silent/use")
    until(lambda: isinstance(site.engine, Deleted) and phase(site) is None)
    assert ask(site.door)[0] == "404 NOT FOUND"
    assert site.engine.sets == [(HELLO, 1), (HELLO, 0)]
