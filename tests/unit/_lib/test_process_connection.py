from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from weakref import WeakSet

import pytest

from scalezero_wsgi._lib import process_connection
from scalezero_wsgi._lib.process_connection import ProcessConnection


@pytest.mark.server
def test_a_fork_waits_for_a_thread_that_uses_a_connection_however_slow_the_disk_is() -> None:
    """Else the child might inherit a mutex of SQLite that nobody unlocks."""
    script = """
        import os, sqlite3, threading, time
        from scalezero_wsgi._lib.process_connection import ProcessConnection

        process = ProcessConnection()
        process.connection = sqlite3.connect(":memory:", check_same_thread=False)
        using, used = threading.Event(), threading.Event()

        def use():
            with process.lock:
                using.set()
                time.sleep(1.0)
                process.connection.execute("SELECT 1")
                used.set()

        thread = threading.Thread(target=use)
        thread.start()
        using.wait()
        child = os.fork()
        if child == 0:
            os._exit(0 if used.is_set() and process.connection is None and process.lock.acquire(False) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        thread.join()
        assert process.lock.acquire(False)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)


def test_a_fork_finds_all_connections_while_another_thread_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing(WeakSet[ProcessConnection]):
        looks = 0

        def __iter__(self) -> Iterator[ProcessConnection]:
            self.looks += 1
            if self.looks == 1:
                raise RuntimeError("Set changed size during iteration")
            return super().__iter__()

    monkeypatch.setattr(process_connection, "_all", Changing())
    own = ProcessConnection()
    assert process_connection._connections() == [own]
