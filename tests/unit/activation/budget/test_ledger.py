"""The ledger: what stands in it goes by the store's clock, and one worker at a time changes it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero_wsgi import Function
from scalezero_wsgi.activation.budget.ledger import LEDGER, PATIENCE, Book, Held, Ledger, Ticket
from scalezero_wsgi.activation.budget.limits import Need
from scalezero_wsgi.coordination import CoordinationError
from scalezero_wsgi.coordination.base import SharedStatus
from scalezero_wsgi.coordination.codec import pack, unpack
from scalezero_wsgi.coordination.leadership import LEASE
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import Peers
from scalezero_wsgi.events import Reporter
from scalezero_wsgi.model import ReplicaStatus
from tests.support.clock import Clock

A, B = Function("a"), Function("b", "dev")


class Fleet:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryCoordination(clock=self.clock)
        self.first, self.second = self.worker(), self.worker()

    def worker(self) -> Ledger:
        peers = Peers(self.store, Reporter(), self.clock)
        return Ledger(self.store, peers, self.clock, self.clock.sleep)


def hold(function: Function = A) -> Callable[[Book], None]:
    def change(book: Book) -> None:
        book.held[function], book.changed = Held(Need("gpu", 5)), True

    return change


def test_what_one_has_written_another_reads_and_it_grows_older() -> None:
    fleet = Fleet()
    assert fleet.first.read() is None
    fleet.first.change(hold())
    fleet.clock.advance(7.0)
    book = fleet.second.read()
    assert book is not None
    assert (book.held, book.age, book.looked_for) == ({A: Held(Need("gpu", 5), 7.0)}, 7.0, math.inf)


def test_what_is_not_marked_as_changed_is_not_written() -> None:
    fleet = Fleet()
    fleet.first.change(lambda book: book.held.update({A: Held(Need())}))
    assert fleet.second.read() is None


def test_a_worker_that_was_suspended_in_the_middle_writes_nothing_and_claims_nothing() -> None:
    fleet = Fleet()

    def suspended(book: Book) -> None:
        fleet.clock.advance(LEASE + 1)
        fleet.second.change(hold(B))
        hold(A)(book)

    with pytest.raises(CoordinationError, match="taken by another"):
        fleet.first.change(suspended)
    book = fleet.first.read()
    assert book is not None
    assert set(book.held) == {B}


def test_who_cannot_get_at_it_gives_up_after_a_while() -> None:
    fleet = Fleet()
    assert fleet.store.acquire(LEDGER, "x", 1000) is not None
    with pytest.raises(CoordinationError, match="held by another"):
        fleet.first.change(hold())
    assert PATIENCE < fleet.clock() < PATIENCE + 1


def test_one_that_has_died_with_it_holds_nobody_up_for_long() -> None:
    fleet = Fleet()
    assert fleet.store.acquire(LEDGER, "x", LEASE) is not None
    fleet.first.change(hold())
    assert LEASE <= fleet.clock() < LEASE + 0.1


few = settings(max_examples=30, deadline=None)
ages = st.floats(0, 1e9)
functions = st.builds(Function, st.text("abc-", min_size=1), st.text("de"))
needs = st.builds(Need, st.text(), st.integers(0, 2**60))


@few
@given(
    st.builds(
        Book,
        age=ages,
        looked_for=ages | st.just(math.inf),
        held=st.dictionaries(functions, st.builds(Held, needs, ages | st.just(math.inf))),
        waiting=st.dictionaries(functions, st.builds(Ticket, needs, ages, st.booleans())),
    )
)
def test_it_survives_what_stores_do_to_it(book: Book) -> None:
    shared = SharedStatus(ReplicaStatus(0, 0, annotations={"scalezero.ledger": book.pack()}))
    again = unpack(pack(shared), 0.0)
    assert again is not None
    assert again.status is not None
    read = Book.unpack(again.status.annotations["scalezero.ledger"], 0.0)
    assert read == book
    assert read is not None
    assert list(read.waiting) == list(book.waiting)


@pytest.mark.parametrize("text", ["", "{}", "[]", "1", '{"name": 1, "age": "x", "looked_for": 1}', "{"])
def test_what_cannot_be_read_is_nothing(text: str) -> None:
    assert Book.unpack(text, 0.0) is None
