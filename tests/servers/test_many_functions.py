"""10,000 functions: what they cost a worker, and how long it takes to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers.harness import ROOT
from tests.servers.many_functions import COUNT
from tests.support.waiting import until

pytestmark = [pytest.mark.server, pytest.mark.soak, pytest.mark.measured]

MEMORY = 10 * 1024
"""Bytes of a worker for each function."""

SHARE = 0.01
"""Of a core, for the thread that decides; and for the one that asks for what nobody uses, while it does."""

START = 2.0
"""Seconds."""


@pytest.mark.parametrize("mode", ["at-zero", "up", "in-use"])
def test_what_they_cost(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "tests.servers.many_functions", mode]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True
    )
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(
            f"\n{COUNT} functions, {mode}: {found['bytes'] / 1024:.1f} KiB each,"
            f" {100 * found['scalezero-idler']:.2f} % of a core to decide,"
            f" {100 * found['scalezero-list']:.2f} % to list, started in {found['started_in']:.2f} s"
        )
    assert found["bytes"] < MEMORY
    assert found["scalezero-idler"] < SHARE
    assert found["scalezero-list"] < 1.5 * SHARE  # the threads' switches are not in its own account
    assert found["started_in"] < START


def test_the_command_starts_as_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all of them in one file."""
    functions, log = tmp_path / "functions.toml", tmp_path / "log"
    functions.write_text("".join(f"[functions.f{n}]\ncommand = ['true']\n" for n in range(COUNT)))
    options = ["--coordination", f"sqlite://{tmp_path}/store/workers.db", "--idle-after", "15m"]
    begun = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "scalezero_wsgi", "idle", str(functions), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
            stdout=out,
            stderr=out,
        )
    try:
        until(lambda: "functions are idle after" in log.read_text() or process.poll() is not None)
        took = time.monotonic() - begun
        with capsys.disabled():
            print(f"\nthe command started in {took:.2f} s")
        assert process.poll() is None, log.read_text()
        assert took < START
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
