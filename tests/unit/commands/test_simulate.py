"""``scalezero-wsgi simulate`` on small logs."""

from __future__ import annotations

import gzip
import io
import json
import tomllib
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scalezero_wsgi._lib.durations import as_text, seconds
from scalezero_wsgi.cli import main
from scalezero_wsgi.simulation.run import decided_after, turn_of

BEGIN = 1795910400.0  # Sunday, 29 Nov 2026
KEPT = decided_after(60.0) + turn_of(60.0)
"""Seconds for which a function stays up after a use."""


def line(at: float, name: str = "hello", status: int = 200) -> str:
    stamp = datetime.fromtimestamp(BEGIN + at, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
    return f'10.0.0.1 - - [{stamp}] "GET /function/{name}/x HTTP/1.1" {status} 5 "-" "-"\n'


def written(path: Path, *lines: str) -> str:
    path.write_text("".join(lines))
    return str(path)


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Requests each ten minutes for an hour for one function, and two for another."""
    lines = [line(600.0 * number) for number in range(7)]
    return written(
        tmp_path / "access.log", *lines, line(3600.0, "other.staging"), line(3601.0, "other.staging")
    )


def test_the_table(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", log, "--start-time", "5s", "--idle-after", "15m,1m"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "9 requests for 2 functions from 2026-11-29 00:00 to 2026-11-29 01:00 UTC, 1.00 hours\n"
    )
    first, _, rest = told.partition("hello: 7 requests")
    assert [row.split()[:3] for row in first.splitlines()[4:6]] == [["1m", "8", "9"], ["15m", "2", "3"]]
    up = (6 * (5 + KEPT) + 1) / 3600
    assert [row.split()[:8] for row in rest.splitlines()[2:4]] == [
        ["*", "1m", "7", "7", "5.00", "s", "5.00", "s"],
        ["15m", "1", "1", "5.00", "s", "5.00", "s", "1.00"],
    ]
    assert f"up for {up:.2f} hours" in rest


def test_json(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--start-time", "5s", "--start-time", "other.staging=2s", "--idle-after", "1m"]
    assert main(["simulate", log, *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    hello, other = told["functions"]
    assert hello["outcomes"][0]["hours_up"] == pytest.approx((6 * (5 + KEPT) + 1) / 3600, abs=1e-6)
    assert (other["function"], other["outcomes"][0]["cold_starts"], other["outcomes"][0]["waited"]) == (
        "other.staging",
        1,
        2,
    )
    assert other["outcomes"][0]["wait_p99"] == pytest.approx(2.0, rel=0.011)
    assert told["total"][0]["cold_starts"] == 8


def test_what_can_be_pasted(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", log, "--toml", "--idle-after", "90s"]) == 0
    told = tomllib.loads(capsys.readouterr().out)
    assert told == {"functions": {"hello": {"idle_after": "1m30s"}, "other.staging": {"idle_after": "1m30s"}}}
    assert main(["simulate", log, "--labels", "--idle-after", "90s"]) == 0
    assert "# hello\nscalezero.idle-after=1m30s\n" in capsys.readouterr().out


def test_the_plot(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plot.svg"
    assert main(["simulate", log, "--svg", str(path)]) == 0
    root = ElementTree.fromstring(path.read_text())
    assert root.tag.endswith("svg")
    assert "other.staging" in "".join(root.itertext())
    assert main(["simulate", log, "--svg", str(tmp_path / "no" / "plot.svg")]) == 2
    assert "--svg: " in capsys.readouterr().err


def test_wrong_lines_and_invented_names_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(
        tmp_path / "log",
        *("nonsense\n", line(0.0), "\n", line(1.0, "admin", 404), line(1.0, "UPPER"), "\x00\n"),
        *(line(2.0).replace("/function/", "/static/"), line(3.0, status=404)),
    )  # fmt: skip
    assert main(["simulate", log]) == 0
    told = capsys.readouterr().out
    assert "2 requests for 1 functions" in told
    assert (
        f"2 lines could not be read; the first is line 1 of {log}: it is neither common nor combined" in told
    )
    assert "1 lines are not below /function/" in told
    assert "2 requests were for names that are no function's" in told
    assert "a start is taken to last 1 s; say --start-time" in told


def test_starts_stops_and_turns_are_measured_by_events(
    log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [
        {"time": BEGIN, "pid": 1, "event": "function_ready", "function": "hello", "after": 4.0, "led": led}
        for led in (True, False)
    ]
    stop = {"time": BEGIN, "pid": 1, "event": "function_stopped", "function": "hello", "after": 3.0}
    lines = [json.dumps(event) + "\n" for event in (*events, stop)]
    late = [json.dumps({**stop, "late": seconds}) + "\n" for seconds in (0.3, 0.4, 90.0)]
    for told, kept_for in ((lines, decided_after(60.0)), (lines + late, decided_after(60.0, late=0.4))):
        path = written(tmp_path / "events", *told)
        assert main(["simulate", log, "--events", path, "--idle-after", "1m", "--json"]) == 0
        hello = json.loads(capsys.readouterr().out)["functions"][0]["outcomes"][0]
        assert hello["hours_up"] == pytest.approx((6 * (4 + kept_for + 3) + 1) / 3600, abs=1e-6)
        assert hello["wait_p50"] == pytest.approx(4.0, rel=0.011)


def test_events_alone_tell_of_a_longer_idle_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for at in (0.0, 1000.0, 5000.0):
        ready = {"time": BEGIN + at + 2, "event": "function_ready", "after": 2.0, "led": True}
        stopped = {"time": BEGIN + at + 2 + 300 + 61, "event": "function_stopped", "after": 1.0}
        lines += [json.dumps({"pid": 1, "function": "hello", **each}) + "\n" for each in (ready, stopped)]
    path = written(tmp_path / "events", *lines)
    assert main(["simulate", path]) == 2
    assert "there are only events" in capsys.readouterr().err
    options = ["--events", path, "--recorded-with", "1m", "--idle-after", "30s,1m,15m,2h", "--json"]
    assert main(["simulate", path, *options]) == 0
    outcomes = json.loads(capsys.readouterr().out)["functions"][0]["outcomes"]
    assert [(each["idle_after"], each["cold_starts"]) for each in outcomes] == [(60, 3), (900, 2), (7200, 1)]
    assert outcomes[0]["hours_up"] == pytest.approx((3 * (300 + 62 + 1) - 61) / 3600, abs=2e-3)


def test_a_rotated_log_and_a_pipe(
    log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with gzip.open(tmp_path / "access.log.1.gz", "wt") as file:
        file.write(line(-600.0))
    assert main(["simulate", str(tmp_path / "access.log.1.gz"), log]) == 0
    assert capsys.readouterr().out.startswith("10 requests")
    monkeypatch.setattr("sys.stdin", io.StringIO(line(0.0)))
    assert main(["simulate", "-"]) == 0
    assert capsys.readouterr().out.startswith("1 requests")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--idle-after", "soon"], "--idle-after: 'soon' is not a duration"),
        (["--idle-after", "0"], "--idle-after: '0' is not allowed"),
        (["--start-time", "hello=x"], "--start-time: 'x' is not a duration"),
        (["--start-time", "He=3s"], "--start-time: 'He' is not a function's name"),
        (["--route", "function"], "--route: 'function' is not allowed; it must begin and end with '/'"),
        (["--route", "/fn/"], "no request for a function below /fn/ in 9 lines"),
        (["--zone", "Mars/Base"], "--zone: 'Mars/Base' is not known here"),
        (["--recorded-with", "1d"], "--recorded-with: with 1d nothing is known of a shorter --idle-after"),
        (["--events", "/nowhere"], "/nowhere: it cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_line(
    log: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", log, *options]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_a_log_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(tmp_path / "no.log")]) == 2
    assert "no.log: it cannot be read: No such file or directory" in capsys.readouterr().err
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    assert main(["simulate", str(tmp_path / "bad.gz")]) == 2
    assert "bad.gz: it cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["250ms", "1s", "1m30s", "15m", "1h", "2d1h", "0s"])
def test_durations_are_written_as_they_are_read(text: str) -> None:
    assert as_text(seconds(text) if text != "0s" else 0.0) == text
