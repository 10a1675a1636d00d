"""Who gets room when: first come, first served, among those who want the same."""

from __future__ import annotations

import pytest

from scalezero_wsgi import Function, FunctionFailed, ReplicaStatus
from scalezero_wsgi.activation.budget.budget import (
    KEEP_PLACE,
    KNOWN_FOR,
    LOOK_EVERY,
    LOOK_PAUSE,
    RETRY_AFTER,
    UNSEEN,
)
from scalezero_wsgi.activation.budget.ledger import Book, Held, Ticket
from scalezero_wsgi.activation.budget.limits import Limit, Need
from scalezero_wsgi.activation.budget.survey import JUST_CLAIMED
from tests.support.fakes import HELLO
from tests.unit.activation.budget.simulated import Fleet, Worker

SIZES = {"a": 4, "b": 4, "c": 1, "d": 7}
LONG = 1e6


@pytest.fixture
def fleet() -> Fleet:
    """One of whose 6 bytes ``a`` takes 4, for ever."""
    fleet = Fleet("abcde", memory=6, sizes=SIZES, min_uptime=LONG)
    fleet.workers[0].use("a")
    fleet.sleep(KNOWN_FOR)
    return fleet


@pytest.fixture
def worker(fleet: Fleet) -> Worker:
    return fleet.workers[1]


def test_a_small_one_does_not_slip_in_before_a_large_one_that_came_first(worker: Worker) -> None:
    assert not worker.claims("b")
    assert not worker.claims("c")


def test_one_that_needs_nothing_of_what_is_short_does_not_wait(worker: Worker) -> None:
    assert not worker.claims("b")
    assert worker.claims("e")


def test_one_that_waits_for_something_else_keeps_nobody_back() -> None:
    """What both need is all taken, and can go; what the first needs besides cannot."""
    fleet = Fleet("abcd", running=2, running_of={"gpu": 1}, groups={"a": "gpu", "b": "gpu"})
    first, second = fleet.workers

    def meanwhile() -> None:
        first.use("c")
        fleet.sleep(KNOWN_FOR)
        assert not second.claims("b")
        assert not second.claims("d")  # for which c goes
        assert second.claims("d")
        assert not second.claims("b")

    first.use("a", 1.0, meanwhile)
    assert set(fleet.host.up) == {"a"}


def test_one_that_nobody_waits_for_any_more_keeps_nobody_back(worker: Worker) -> None:
    assert not worker.claims("b")
    assert not worker.claims("b", wanted=False)
    assert worker.claims("c")


def test_one_whose_leader_has_died_keeps_nobody_back(fleet: Fleet, worker: Worker) -> None:
    assert not worker.claims("b")
    fleet.sleep(UNSEEN + 1)
    assert worker.claims("c")


def test_it_keeps_its_place_for_a_while(fleet: Fleet, worker: Worker) -> None:
    assert not worker.claims("b")
    assert not worker.claims("c")
    fleet.sleep(UNSEEN + 1)
    assert not worker.claims("b")  # whose client has come again
    assert not worker.claims("c")
    fleet.sleep(KEEP_PLACE + 1)
    assert worker.claims("c")
    book = worker.budget._ledger.read()
    assert book is not None
    assert (set(book.held), set(book.waiting)) == ({Function("a"), Function("c")}, set())


def test_one_in_the_queue_is_not_its_own_obstacle(fleet: Fleet, worker: Worker) -> None:
    assert not worker.claims("b")
    fleet.host.set_replicas("a", "", 0)
    fleet.sleep(JUST_CLAIMED)
    assert not worker.claims("b")  # it looks what is up now
    assert worker.claims("b")
    assert worker.claims("b", again=True)


def test_a_claim_whose_start_came_to_nothing_is_given_back(fleet: Fleet, worker: Worker) -> None:
    assert worker.claims("c")
    fleet.sleep(JUST_CLAIMED)
    for _ in range(3):
        assert not worker.claims("b")
    book = worker.budget._ledger.read()
    assert book is not None
    assert set(book.held) == {Function("a")}


def test_but_not_while_it_may_not_show_yet_or_somebody_leads_it(fleet: Fleet, worker: Worker) -> None:
    assert worker.claims("c")
    assert not worker.claims("b")
    fleet.sleep(JUST_CLAIMED)
    lease = fleet.store.acquire(Function("c"), "another", LONG)
    assert lease is not None
    assert not worker.claims("b")
    book = worker.budget._ledger.read()
    assert book is not None
    assert set(book.held) == {Function("a"), Function("c")}


def test_one_that_takes_over_from_a_leader_that_has_just_died_need_not_wait(worker: Worker) -> None:
    """That one may have asked for the start, which does not show yet."""
    assert worker.claims("c")
    assert not worker.claims("b")
    assert worker.claims("c")


def test_a_paused_one_goes_on_in_its_own_room_whoever_waits(fleet: Fleet, worker: Worker) -> None:
    fleet.sleep(JUST_CLAIMED)
    assert not worker.claims("b")
    paused = ReplicaStatus(0, 0, paused=True, labels={"scalezero.memory": "4"})
    assert worker.budget.claim(Function("a"), paused, False, lambda: True)


def test_what_somebody_else_has_started_is_found_after_a_while(fleet: Fleet, worker: Worker) -> None:
    fleet.host.set_replicas("c", "", 1)
    fleet.sleep(LOOK_EVERY + 1)
    worker.claims("b")
    book = worker.budget._ledger.read()
    assert book is not None
    assert Function("c") in book.held


def test_with_many_functions_that_is_done_less_often(fleet: Fleet, worker: Worker) -> None:
    many = [Function(f"f{number}") for number in range(1000)]
    fleet.host.list_functions = lambda: many  # type: ignore[method-assign]
    fleet.sleep(LOOK_EVERY + 1)
    worker.claims("b")
    many.append(Function("c"))
    fleet.host.set_replicas("c", "", 1)
    for passed, is_known in ((1000 * LOOK_PAUSE - 1, False), (2, True)):
        fleet.sleep(passed)
        worker.claims("b")
        book = worker.budget._ledger.read()
        assert book is not None
        assert (Function("c") in book.held) == is_known


def test_before_it_is_known_what_is_up_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet("abcde", memory=6, sizes=SIZES)
    listed = fleet.host.list_functions

    def fail() -> list[Function]:
        raise OSError("down")

    monkeypatch.setattr(fleet.host, "list_functions", fail)
    assert not fleet.workers[0].claims("b")
    monkeypatch.setattr(fleet.host, "list_functions", listed)
    assert fleet.workers[0].claims("b")


def test_what_is_too_large_at_all_fails(worker: Worker) -> None:
    with pytest.raises(FunctionFailed, match="more than there is at all"):
        worker.claims("d")


def test_a_store_that_has_forgotten_everything_lets_nothing_go_until_all_have_reported() -> None:
    fleet = Fleet("ab", running=1)
    fleet.workers[0].use("a")
    fleet.sleep(10.0)
    fleet.store._memory._values.clear()
    begun = fleet.clock()
    fleet.workers[1].use("b")
    assert fleet.host.up["b"] >= begun + 3.0


def test_a_request_that_has_waited_in_vain_is_told_so(fleet: Fleet, worker: Worker) -> None:
    assert worker.budget.refusal(HELLO, 1.0) is None
    assert not worker.claims("b")
    for each in fleet.workers:
        error = each.budget.refusal(Function("b"), 1.0, shortened=True)
        assert error is not None
        assert str(error) == "there was no room for function b within 1.0 s"
        assert error.shortened
        assert error.retry_after == pytest.approx(LONG, rel=0.01)  # then a may go


def test_if_nothing_says_when_there_will_be_room_it_is_told_to_come_again_soon() -> None:
    fleet = Fleet("ab", running=1)
    first, second = fleet.workers
    first.use("a", 1.0, lambda: second.claims("b"))
    refused = second.budget.refusal(Function("b"), 1.0)
    assert refused is not None
    assert refused.retry_after == RETRY_AFTER


def test_a_look_costs_no_more_than_how_many_hold_room_and_how_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that wait look again and again: with 200 of them for 200 others it took more than a core."""
    worker, need = Fleet("a", running=50).workers[0], Need()
    others = [Function(f"a{number}") for number in range(100)]
    book = Book(
        held={each: Held(need) for each in others[:50]}, waiting={each: Ticket(need) for each in others[50:]}
    )
    looked_at: list[Need] = []

    def amount(self: Limit, of: Need) -> int:
        looked_at.append(of)
        return 1

    monkeypatch.setattr(Limit, "amount", amount)
    assert worker.budget._missing(book, others[-1], need)
    assert len(looked_at) < 5 * len(others)
