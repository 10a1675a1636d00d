from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scalezero_wsgi._lib.bounded import Bounded

KEYS = st.integers(0, 5)


class BoundedAgainstAList(RuleBasedStateMachine):
    """The model is a list of pairs, the most recently set last."""

    @initialize(maxsize=st.integers(1, 4))
    def begin(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.bounded: Bounded[int, int] = Bounded(maxsize)
        self.model: list[tuple[int, int]] = []

    def _known(self, key: int) -> int | None:
        return dict(self.model).get(key)

    def _renew(self, key: int, value: int) -> None:
        self.model = [pair for pair in self.model if pair[0] != key]
        self.model = [*self.model, (key, value)][-self.maxsize :]

    @rule(key=KEYS, value=st.integers())
    def set(self, key: int, value: int) -> None:
        self.bounded.set(key, value)
        self._renew(key, value)

    @rule(key=KEYS)
    def count_up(self, key: int) -> None:
        expected = (self._known(key) or 0) + 1
        assert self.bounded.change(key, lambda value: (value or 0) + 1) == expected
        self._renew(key, expected)

    @rule(key=KEYS)
    def a_change_that_raises_changes_nothing(self, key: int) -> None:
        with pytest.raises(ZeroDivisionError):
            self.bounded.change(key, lambda _: 1 // 0)

    @rule(key=KEYS)
    def pop(self, key: int) -> None:
        self.bounded.pop(key)
        self.model = [pair for pair in self.model if pair[0] != key]

    @rule(key=KEYS)
    def reading_does_not_renew(self, key: int) -> None:
        assert self.bounded.get(key) == self._known(key)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert len(self.bounded) == len(self.model) <= self.maxsize
        assert {key: self.bounded.get(key) for key in range(6)} == {key: self._known(key) for key in range(6)}


BoundedAgainstAList.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestBoundedAgainstAList = BoundedAgainstAList.TestCase


def test_the_least_recently_set_goes_first() -> None:
    bounded: Bounded[str, int] = Bounded(2)
    bounded.set("a", 1)
    bounded.set("b", 2)
    bounded.set("a", 3)
    bounded.set("c", 4)
    assert [bounded.get(key) for key in "abc"] == [3, None, 4]


@pytest.mark.parametrize("maxsize", [0, -1])
def test_a_bound_below_one_is_refused_and_named(maxsize: int) -> None:
    with pytest.raises(ValueError, match=f"maxsize must be 1 or more, not {maxsize}"):
        Bounded(maxsize)


def test_a_hundred_thousand_keys_leave_as_many_as_the_bound_allows() -> None:
    bounded: Bounded[int, int] = Bounded(100)
    for key in range(100_000):
        bounded.set(key, key)
    assert len(bounded) == 100
    assert bounded.get(99_899) is None
    assert bounded.get(99_900) == 99_900


def test_a_reader_never_sees_a_key_vanish_that_is_set_again_and_again() -> None:
    bounded: Bounded[str, int] = Bounded(2)
    seen: list[int | None] = []

    class Looking(str):
        """A key that looks before each step that a mapping takes with it."""

        __slots__ = ()

        def __hash__(self) -> int:
            seen.append(bounded.get("kept"))
            return super().__hash__()

    bounded.set("kept", 0)
    for number in range(1, 10):
        bounded.set(Looking("kept"), number)
        bounded.set(f"passing-{number}", number)
    assert set(seen) == set(range(10))


def test_writers_at_once_lose_no_change_and_stay_within_the_bound() -> None:
    bounded: Bounded[object, int] = Bounded(8)
    start = threading.Barrier(4)

    def count_up(value: int | None) -> int:
        time.sleep(0)
        return (value or 0) + 1

    def write(writer: int) -> None:
        start.wait()
        for number in range(500):
            bounded.change("counter", count_up)
            bounded.set((writer, number % 3), number)
            if number % 5 == 0:
                bounded.pop((writer, 0))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert bounded.get("counter") == 2_000
    assert len(bounded) <= 8


@pytest.mark.server
def test_a_child_forked_while_a_writer_held_the_lock_can_write_and_keeps_the_bound() -> None:
    script = """
        import os
        from scalezero_wsgi._lib.bounded import Bounded

        bounded = Bounded(2)
        bounded.set("a", 1)

        def fork_and_write(value):
            global child
            child = os.fork()
            if child == 0:
                for number in range(10):
                    bounded.set(number, number)
                os._exit(0 if len(bounded) == 2 and bounded.get(9) == 9 else 1)
            return value

        bounded.change("a", fork_and_write)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert len(bounded) == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)
