"""What there is, what a function needs, and how amounts of memory are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalezero_wsgi._lib.sizes import memory, shown
from scalezero_wsgi.activation.budget.limits import Limits, Need
from tests.support.fakes import HELLO, UP

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[(1, 1), ("1", 1), ("1b", 1), (" 4 KiB ", 4096), ("2Mi", 2 * 2**20), ("1.5GiB", 3 * 2**29)],
        *[("1TiB", 2**40), ("3kB", 3000), ("3KB", 3000), ("2gb", 2_000_000_000)],
    ],
)
def test_an_amount_is_read(text: object, size: int) -> None:
    assert memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "0", "-1", "1 gibibyte", "1e9", "0.1b", "9" * 400, 1.5, True, None]
)
def test_a_wrong_amount_is_refused(text: object) -> None:
    with pytest.raises(
        ValueError, match="must be a number of bytes, 1 or more, or a string such as '512MiB'"
    ):
        memory(text)


@given(st.integers(1, 2**50))
def test_what_is_shown_is_about_what_it_is(size: int) -> None:
    assert abs(memory(shown(size)) - size) <= size / 100 + 1


def test_a_need_is_what_labels_or_annotations_say_for_each_replica() -> None:
    limits = Limits(running_of={"gpu": 1})
    labelled = replace(UP, labels={"scalezero.memory": "2GiB"}, annotations={"scalezero.budget": " gpu "})
    assert limits.need(HELLO, labelled, 3) == Need("gpu", 6 * GIB)
    assert limits.need(HELLO, labelled, 0) == Need("gpu", 2 * GIB)
    assert limits.need(HELLO, UP, 3) == Need("", 0)


def test_what_is_missing() -> None:
    limits = Limits(running=3, memory=8 * GIB, running_of={"gpu": 1}, memory_of={"gpu": 4 * GIB})
    held = [Need("gpu", 4 * GIB), Need("", 2 * GIB)]
    assert limits.shortage(held, Need()) == {}
    assert limits.shortage(held, Need("", 2 * GIB)) == {}
    missing = limits.shortage(held, Need("gpu", 3 * GIB))
    assert {str(limit): amount for limit, amount in missing.items()} == {
        "max_running_of['gpu'] = 1": 1,
        "max_memory = 8 GiB": GIB,
        "max_memory_of['gpu'] = 4 GiB": 3 * GIB,
    }
    assert limits.shortage([*held, Need()], Need()) != {}


def test_what_is_too_large_by_itself() -> None:
    limits = Limits(memory_of={"gpu": 4 * GIB})
    assert limits.beyond(Need("", 9 * GIB)) is limits.beyond(Need("gpu", 4 * GIB)) is None
    assert str(limits.beyond(Need("gpu", 5 * GIB))) == "max_memory_of['gpu'] = 4 GiB"
