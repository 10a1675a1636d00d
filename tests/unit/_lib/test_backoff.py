from __future__ import annotations

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalezero_wsgi._lib.backoff import backoff_step, exponential

PAUSES = st.floats(0.001, 10)


def test_pauses_grow_by_the_factor_up_to_the_longest_and_stay_there() -> None:
    assert list(islice(exponential(0.1, 0.5, factor=2), 5)) == [0.1, 0.2, 0.4, 0.5, 0.5]


@given(PAUSES, PAUSES, st.floats(1, 10))
def test_pauses_never_shrink_nor_exceed_the_longest(first: float, more: float, factor: float) -> None:
    longest = first + more
    pauses = list(islice(exponential(first, longest, factor), 20))
    assert pauses[0] == first
    assert max(pauses) <= longest
    assert all(earlier <= later for earlier, later in pairwise(pauses))


@pytest.mark.parametrize(("failures", "expected"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (100, 60)])
def test_each_failure_in_a_row_doubles_the_step_up_to_a_minute(failures: int, expected: float) -> None:
    assert backoff_step(failures) == expected


def test_first_and_longest_step_may_be_chosen() -> None:
    assert [backoff_step(n, first=0.5, longest=3) for n in (1, 2, 3, 4)] == [0.5, 1, 2, 3]


@given(st.integers(1, 10**9))
def test_any_number_of_failures_has_a_step(failures: int) -> None:
    assert 1 <= backoff_step(failures) <= backoff_step(failures + 1) <= 60
