"""What was saved, on the dashboard."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi.integrations.dashboard.saved import READ_EVERY, Saved, as_fields, as_sentence
from scalezero_wsgi.integrations.savings import Savings
from scalezero_wsgi.savings import life
from scalezero_wsgi.savings.book import Book, BookError
from tests.support.clock import Clock

HELLO = Function("hello")
HOUR = 3600.0


@pytest.fixture
def savings(tmp_path: Path) -> Savings:
    return Savings(f"sqlite://{tmp_path}/own/savings.db", cost_per_hour={"hello": 2.0})


@pytest.fixture
def book(savings: Savings) -> Book:
    return savings.book


@pytest.fixture
def clock() -> Clock:
    return Clock()


def up_for(book: Book, begin: float, seconds: float) -> None:
    book.change(HELLO, begin, partial(life.requested, at=begin, took=0.0, replicas=1))
    book.change(HELLO, begin + seconds, partial(life.stopped, at=begin + seconds))


def test_it_is_told_in_a_sentence_and_as_fields(savings: Savings, book: Book, clock: Clock) -> None:
    begin = 1000 * HOUR
    up_for(book, begin, HOUR)
    book.waited(HELLO, begin, 0.5)
    clock.now = begin + 10 * HOUR
    told = Saved(savings, clock).look()
    assert told is not None
    fields = as_fields(told)
    assert (fields["seconds_up"], fields["seconds_always_on"], fields["waited"]) == (HOUR, 10 * HOUR, 1)
    assert fields["seconds_saved"] == 9 * HOUR
    sentence = as_sentence(told)
    assert sentence.startswith("In the last 30 days: up for 1.0 h of 10.0 h (90% saved), starts: 1; 1 waited")
    assert sentence.endswith("; cost 2.00, saved 18.00.")
    assert (fields["cost"], fields["cost_saved"]) == (2.0, 18.0)


def test_nothing_is_told_of_an_empty_book(savings: Savings, clock: Clock) -> None:
    clock.now = 1000 * HOUR
    assert Saved(savings, clock).look() is None


def test_the_file_is_read_once_a_minute_and_what_was_read_is_kept_when_it_is_lost(
    savings: Savings, book: Book, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    up_for(book, 1000 * HOUR, HOUR)
    clock.now = 1010 * HOUR
    saved = Saved(savings, clock)
    first = saved.look()
    up_for(book, clock.now, 10.0)
    clock.now += READ_EVERY - 1
    assert saved.look() is first
    clock.now += 2
    second = saved.look()
    assert second is not None
    assert second.entry.starts == 2

    def lost(*_: object) -> None:
        raise BookError("it is gone")

    monkeypatch.setattr(book, "entries", lost)
    clock.now += READ_EVERY + 1
    assert saved.look() is second
