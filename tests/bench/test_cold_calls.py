"""How much a reader has to follow: the functions that one cold request runs through."""

from __future__ import annotations

import pytest

from tests.bench.cold_calls import count


@pytest.mark.parametrize(("store", "functions"), [(False, 103), (True, 138)])
def test_a_cold_request_runs_through_no_more_functions(
    store: bool, functions: int, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = count(store)  # a few more or less, by who comes first of the caller and the leader
    with capsys.disabled():
        print(f"\n{'with the memory store' if store else 'without a store'}: {counted}", end=" ")
    assert len(counted.functions) <= functions
