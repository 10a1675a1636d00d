"""How much a reader has to follow: the functions that one cold request runs through."""

from __future__ import annotations

import pytest

from tests.bench.cold_calls import count


@pytest.mark.parametrize(("store", "functions"), [(False, 70), (True, 100)])
def test_a_cold_request_runs_through_few_functions(
    store: bool, functions: int, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = count(store)
    with capsys.disabled():
        print(f"\n{'with the memory store' if store else 'without a store'}: {counted}", end=" ")
    assert len(counted.functions) <= functions
    assert counted.caller_depth <= 6
