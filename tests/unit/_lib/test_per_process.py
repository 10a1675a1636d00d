from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest

from scalezero_wsgi._lib.per_process import PerProcess


def test_nothing_is_made_before_the_first_use() -> None:
    made: list[object] = []
    PerProcess(lambda: made.append(1))
    assert made == []


def test_the_value_is_made_once_and_remembered_even_if_it_is_none() -> None:
    made: list[int] = []
    value = PerProcess(lambda: made.append(1))
    assert [value.get() for _ in range(3)] == [None, None, None]
    assert made == [1]


def test_threads_that_come_first_at_once_all_get_the_same_value() -> None:
    together = threading.Barrier(4)
    got: list[object] = []

    def make() -> object:
        together.wait(timeout=30)
        return object()

    value: PerProcess[object] = PerProcess(make)
    threads = [threading.Thread(target=lambda: got.append(value.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert len(set(got)) == 1


def test_a_make_that_raises_is_tried_again_at_the_next_use() -> None:
    outcomes: list[Exception | str] = [OSError("not yet"), "made"]

    def make() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    value = PerProcess(make)
    with pytest.raises(OSError, match="not yet"):
        value.get()
    assert value.get() == "made"


@pytest.mark.server
def test_a_child_makes_its_own_value_and_the_parent_keeps_the_old_one() -> None:
    script = """
        import os
        from scalezero_wsgi._lib.per_process import PerProcess

        value = PerProcess(os.getpid)
        assert value.get() == os.getpid()
        child = os.fork()
        if child == 0:
            os._exit(0 if value.get() == os.getpid() else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert value.get() == os.getpid()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)
