from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalezero_wsgi.servers.line import Line, Ticket


def served(line: Line) -> list[object]:
    return [line.popleft() for _ in range(len(line))]


def test_each_kind_is_served_in_its_order_and_they_take_turns() -> None:
    line, tickets = Line(), [Ticket() for _ in range(3)]
    for item in ["a", "b", "c", *tickets, "d"]:
        line.append(item)
    assert served(line) == [tickets[0], "a", tickets[1], "b", tickets[2], "c", "d"]


def test_who_was_put_back_is_next_of_its_kind() -> None:
    line = Line(deque(["b"]))
    line.appendleft("a")
    assert served(line) == ["a", "b"]


def test_an_empty_line_has_nobody_next() -> None:
    line = Line()
    assert not line
    assert line.pop_returning() is None
    with pytest.raises(IndexError):
        line.popleft()


@given(st.lists(st.sampled_from(["new", "returns", "serve"])))
def test_neither_kind_keeps_the_other_out(steps: list[str]) -> None:
    """While both wait, no two of one kind are served after another."""
    line, last, both = Line(), "", False
    for step in steps:
        if step != "serve":
            line.append(Ticket() if step == "returns" else object())
            continue
        if not line:
            continue
        both_before, both = both, 0 < line_new(line) < len(line)
        kind = "returns" if isinstance(line.popleft(), Ticket) else "new"
        assert not (both and both_before and kind == last)
        last = kind


def line_new(line: Line) -> int:
    return len(line._new)
