"""A trace of real cold starts under gunicorn, against what the response and the events say of their times."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from scalezero_wsgi.providers import ProcessProvider
from tests.servers.harness import Server, gunicorn
from tests.support.waiting import until

pytestmark = [pytest.mark.server, pytest.mark.soak]

WITHIN = 0.005
"""Seconds by which a trace may differ: in one start of three, for another process may have the processor."""

POSSIBLE = (
    ["status_queried", "scale_requested", "function_ready"],
    ["scale_requested", "function_ready"],  # it came a moment later
    ["function_ready"],
    ["status_queried", "function_ready"],  # in the worker that follows the other one
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def seconds(time: str) -> float:
    return datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()


def ask(server: Server, function: str, trace: int, headers: dict[str, str]) -> tuple[str, float, str]:
    """Return the trace's id, how long the response says that it waited, and what reached the function."""
    told = {"traceparent": f"00-{trace:032x}-{trace:016x}-01", **headers}
    answer = server.get(f"/function/{function}/", headers=told)
    assert answer.status_code == 200, server.log
    waited = re.fullmatch(r"cold-start;dur=([\d.]+)", answer.headers["Server-Timing"])
    assert waited is not None
    (reached,) = re.findall(r"^Traceparent: (.*)$", answer.text, re.MULTILINE)
    return f"0x{trace:032x}", float(waited[1]) / 1000, reached.strip()


def test_a_trace_of_a_cold_start(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    provider = ProcessProvider({}, state_dir=tmp_path)
    request.addfinalizer(lambda: provider.stop_all(5))
    options, env = ["--workers", "2", "--threads", "8"], {"STATE_DIR": str(tmp_path)}
    deviations: list[float] = []
    with gunicorn("tests.servers.tracing_site:application", tmp_path / "log", *options, env=env) as server:
        for start, function in enumerate(("one", "two", "three")):
            headers: list[dict[str, str]] = [{}] * 3 + [{"X-No-Server-Span": "1"}]
            traces = range(1 + 10 * start, 5 + 10 * start)
            with ThreadPoolExecutor(4) as pool:
                told = list(pool.map(lambda *each: ask(server, *each), [function] * 4, traces, headers))
            until(lambda: (tmp_path / "spans").read_bytes().count(b"\n") == 7 * (start + 1))  # noqa: B023
            spans = lines(tmp_path / "spans")[7 * start :]
            happened = {
                (each["pid"], each["event"]): each["time"]
                for each in lines(tmp_path / "events")
                if each.get("function") == function
            }
            deviations.append(
                max(
                    deviation(spans, happened, *each, bare=bool(sent))
                    for each, sent in zip(told, headers, strict=True)
                )
            )
            assert any(len(span["events"]) == 3 for span in spans)  # the one of who came first
            assert "Traceback" not in server.log
    print(f"\na trace deviates by {', '.join(f'{each * 1000:.1f}' for each in deviations)} ms", end=" ")
    assert min(deviations) <= WITHIN


def deviation(
    spans: list[dict[str, Any]],
    happened: dict[tuple[int, str], float],
    trace: str,
    waited: float,
    reached: str,
    bare: bool,
) -> float:
    """Check a request's trace, and return by how many seconds its times differ from those told otherwise."""
    ours = {span["name"]: span for span in spans if span["context"]["trace_id"] == trace}
    wait = ours["scalezero.wait"]
    assert set(ours) == ({"scalezero.wait"} if bare else {"scalezero.wait", "GET"})
    parent = trace[-16:] if bare else ours["GET"]["context"]["span_id"][2:]
    assert wait["parent_id"] == f"0x{parent}"
    assert reached.split("-")[1:3] == [trace[2:], wait["context"]["span_id"][2:] if bare else parent]
    assert wait["attributes"]["faas.coldstart"] is True
    begun, ended = seconds(wait["start_time"]), seconds(wait["end_time"])
    differences = [abs(ended - begun - waited)]
    pid = wait["resource"]["attributes"]["process.pid"]
    names = [event["name"].removeprefix("scalezero.") for event in wait["events"]]
    assert names in POSSIBLE
    for name, event in zip(names, wait["events"], strict=True):
        differences.append(abs(seconds(event["timestamp"]) - happened[pid, name]))
        assert begun <= seconds(event["timestamp"]) <= ended
    if not bare:
        assert seconds(ours["GET"]["start_time"]) <= begun
        assert ended <= seconds(ours["GET"]["end_time"])
    return max(differences)
