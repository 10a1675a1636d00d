"""Lines of access logs, as usual servers write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scalezero_wsgi.simulation.access_log import Entry, LineReader, Told, WrongLine

AT = 1795952164.0  # 29 Nov 2026, 11:36:04 UTC
STAMP = "[29/Nov/2026:11:36:04 +0000]"
HEAD = f'10.0.0.1 - - {STAMP} "GET /function/hello?x=1 HTTP/1.1" 200 512'


@pytest.mark.parametrize(
    ("tail", "duration"),
    [
        ("", 0.0),
        (' "-" "curl/8 1.5"', 0.0),
        (' "-" "curl/8" 0.250', 0.25),  # nginx's $request_time, gunicorn's %(L)s
        (' "-" "curl/8" 250000', 0.25),  # %D of Apache, %(D)s of gunicorn
        (' "-" "curl/8" rt=0.250 urt="0.2"', 0.0),  # the rest after the last quote is empty
        (' "-" "curl/8" request_time=0.250', 0.25),
        (' "-" "curl/8" 7 "router" "http://10.0.0.2" 250ms', 0.25),  # Traefik
        (' 0.250', 0.25),
        (' "cold-start;dur=200.0" 0.250', 0.05),  # without the wait that the log was recorded with
    ],
)  # fmt: skip
def test_text(tail: str, duration: float) -> None:
    entry = LineReader()(HEAD + tail + "\n")
    whole = 0.25 if "cold-start" in tail else duration
    assert isinstance(entry, Entry)
    assert (entry.path, entry.status) == ("/function/hello?x=1", 200)
    assert (entry.came_at, entry.duration) == pytest.approx((AT - whole, duration))


def test_a_unit_and_a_stamp_may_be_told() -> None:
    entry = LineReader("start", "ms")(HEAD + ' "-" "curl/8" 250')
    assert entry == Entry("/function/hello?x=1", AT, 0.25, 200)


@pytest.mark.parametrize(
    "stamp", ["29/Nov/2026:11:36:04.500 +0000", "29/Nov/2026:13:36:04.5 +0200", "2026-11-29T11:36:04.5Z"]
)
def test_stamps(stamp: str) -> None:
    entry = LineReader()(f'- - - [{stamp}] "GET /x HTTP/1.1" 200 -')
    assert isinstance(entry, Entry)
    assert entry.came_at == AT + 0.5


@pytest.mark.parametrize(
    ("told", "came_at", "duration"),
    [
        ({"time": AT, "path": "/x", "status": 200, "request_time": "0.5"}, AT - 0.5, 0.5),
        ({"ts": AT, "request": {"uri": "/x"}, "status": 200, "duration": 0.5}, AT - 0.5, 0.5),  # Caddy
        ({"time_iso8601": "2026-11-29T11:36:04+00:00", "request": "GET /x HTTP/1.1", "status": "200"}, AT, 0),
        (
            {
                "StartUTC": "2026-11-29T11:36:04Z",
                "RequestPath": "/x",
                "DownstreamStatus": 200,
                "Duration": 500000000,
            },
            AT,
            0.5,
        ),  # Traefik
        (
            {
                "start_time": "2026-11-29T11:36:04.000Z",
                "path": "/x",
                "response_code": 200,
                "duration": 500,
            },
            AT,
            0.5,
        ),  # Envoy
        ({"time": AT, "path": "/x", "duration_ms": 500, "waited": 0.4}, AT - 0.5, 0.1),
        (
            {"time": AT, "path": "/x", "duration_us": 500000, "server_timing": "cold-start;dur=400"},
            AT - 0.5,
            0.1,
        ),
    ],
)
def test_json(told: dict[str, Any], came_at: float, duration: float) -> None:
    entry = LineReader()(json.dumps(told))
    assert isinstance(entry, Entry)
    assert (entry.path, entry.status) == ("/x", 200)
    assert (entry.came_at, entry.duration) == pytest.approx((came_at, duration))


def test_an_event_of_this_package() -> None:
    event = {"time": AT, "pid": 1, "event": "function_ready", "function": "hello", "after": 2.0, "led": True}
    assert LineReader()(json.dumps(event)) == Told(event)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "{",
        "{}",
        "[1]",
        '{"path": 1, "time": 2}',
        '{"path": "/x", "time": "yesterday"}',
        '{"path": "/x", "time": 1e400}',
        '{"path": "/x", "time": NaN}',
        '{"path": "/x", "time": 1, "request_time": -1}',
        '{"path": "/x", "time": [1]}',
        "{" + '"a":[' * 100000,
        HEAD.replace("Nov", "Nev"),
        HEAD.replace("29/", "39/"),
        HEAD.replace("11:36:04", "11:36:xx"),
    ],
)
def test_what_is_no_line_of_a_log(line: str) -> None:
    with pytest.raises(WrongLine):
        LineReader()(line)
