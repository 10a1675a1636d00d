"""A page of the functions, as HTML and as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from scalezero_wsgi import Function
from scalezero_wsgi.integrations.dashboard.overview import STATES, Row
from scalezero_wsgi.integrations.dashboard.view import LONGEST_QUERY, PER_PAGE, Wish, as_html, as_json, view

MARKUP = "<img src=x onerror=alert(1)>\"'&"


def row(
    name: str = "hello",
    state: str = "at zero",
    *,
    in_flight: int = 0,
    unused_for: float | None = None,
    idle_in: float | None = None,
    kept_up_for: float = 0.0,
    failure: str = "",
    last_starts: tuple[float, ...] = (),
    requests: Mapping[str, int] | None = None,
) -> Row:
    up = int(state in ("ready", "starting"))
    told = (unused_for, idle_in, kept_up_for, failure, last_starts, requests)
    return Row(Function(name), name, state, up, int(state == "ready"), in_flight, 0, *told)


def html(*rows: Row, wish: Wish = Wish(), trouble: str = "", can_keep_up: bool = True) -> str:  # noqa: B008
    return as_html(view(rows, wish), trouble, "/board/", can_keep_up)


def cell(text: str, name: str) -> str:
    found = re.search(rf'<td data-name="{name}"[^>]*>(.*?)</td>', text)
    assert found
    return found[1]


MANY = [row(f"f-{number:03}", STATES[number % 2]) for number in range(2 * PER_PAGE + 2)]


@pytest.mark.parametrize(
    ("args", "wish"),
    [
        ({}, Wish()),
        ({"q": " He ", "state": "ready", "page": "3"}, Wish("He", "ready", 3)),
        ({"q": "x" * 999, "state": "asleep", "page": "-1"}, Wish("x" * LONGEST_QUERY)),
        ({"page": "0"}, Wish()),
        ({"page": "9" * 5000}, Wish()),
        ({"page": "٣"}, Wish()),
    ],
)
def test_what_cannot_be_read_is_left_out(args: dict[str, str], wish: Wish) -> None:
    assert Wish.of(args) == wish


def test_a_wish_as_a_query() -> None:
    assert Wish().query() == ""
    assert Wish("a&b", "at zero", 2).query(page=3) == "?q=a%26b&state=at+zero&page=3"


def test_pages_have_so_many_and_none_is_left_out() -> None:
    pages = [view(MANY, Wish(page=number)) for number in (1, 2, 3)]
    assert [len(page.rows) for page in pages] == [PER_PAGE, PER_PAGE, 2]
    assert [each for page in pages for each in page.rows] == MANY
    assert view(MANY, Wish(page=99)).wish.page == 3
    assert view([], Wish(page=99)).wish.page == 1


def test_a_part_of_a_name_and_a_state() -> None:
    found = view(MANY, Wish("F-00", "ready"))
    assert [str(each.function) for each in found.rows] == [f"f-00{number}" for number in (0, 2, 4, 6, 8)]
    assert found.states == {"ready": 5, "starting": 5}
    assert found.total == 5


def test_as_json() -> None:
    told = as_json(view([row(requests={"warm": 1}, failure=MARKUP, last_starts=(0.12345,))], Wish()), "")
    assert told == {
        "functions": [
            {
                "function": "hello",
                "state": "at zero",
                "replicas": 0,
                "available_replicas": 0,
                "in_flight": 0,
                "waiting": 0,
                "unused_for": None,
                "idle_in": None,
                "kept_up_for": 0.0,
                "failure": MARKUP,
                "last_starts": [0.123],
                "requests": {"warm": 1},
            }
        ],
        "total": 1,
        "page": 1,
        "pages": 1,
        "states": {"ready": 0, "starting": 0, "paused": 0, "failed": 0, "unknown": 0, "at zero": 1},
        "trouble": None,
        "saved": None,
    }


def test_text_is_text() -> None:
    text = html(
        row(MARKUP, failure=MARKUP, requests={MARKUP: 1}), wish=Wish(MARKUP.split(" ")[0]), trouble=MARKUP
    )
    assert "<img" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") >= 5


@pytest.mark.parametrize(
    ("state", "buttons"),
    [
        ("ready", ["stop"]),
        ("starting", ["stop"]),
        ("paused", ["wake", "stop"]),
        ("failed", ["wake"]),
        ("unknown", ["wake"]),
        ("at zero", ["wake"]),
    ],
)
def test_there_are_the_buttons_that_make_sense(state: str, buttons: list[str]) -> None:
    text = html(row(state=state), can_keep_up=False)
    assert re.findall(r'formaction="/board/([\w-]+)"', text) == buttons
    assert re.findall(r'formaction="/board/([\w-]+)"', html(row(state=state))) == [*buttons, "keep-up"]


def test_times_in_the_largest_unit() -> None:
    for seconds, told in ((0.4, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7200.0, "2 h"), (2e5, "2 d")):
        assert cell(html(row(unused_for=seconds)), "Last use") == f"{told} ago"
    assert cell(html(row(idle_in=30.0)), "Idle in") == "30 s"
    assert cell(html(row(idle_in=0.0)), "Idle in") == "now"
    assert cell(html(row(idle_in=30.0, kept_up_for=3599.9)), "Idle in") == "kept 60 min"


def test_plots() -> None:
    text = html(row(last_starts=(2.0, 1.0), requests={"warm": 1500, "cold": 2, "timeout": 1}))
    assert 'aria-label="The last 2 starts took 2.0 s, 1.0 s"' in text
    assert 'aria-label="Requests: 1,500 warm, 2 cold, 1 timeout"' in text
    assert cell(html(row(last_starts=())), "Last starts") == ""
    assert cell(html(row(requests={})), "Requests") == ""
    assert "Requests" not in html(row())


def test_a_long_reason_is_cut() -> None:
    assert len(html(row(failure="x" * 5000))) < 2500


def test_there_is_none() -> None:
    assert "There is no function yet." in html()
    assert "No function is like that." in html(wish=Wish("x"))
    assert "No function is like that." in html(wish=Wish(state="ready"))


def test_the_ways_to_other_pages_and_states() -> None:
    text = html(*MANY, wish=Wish("f", "", 2))
    for link in ('"/board/?q=f"', '"/board/?q=f&amp;page=3"', '"/board/?q=f&amp;state=starting"'):
        assert link in text
    assert "Page 2 of 3" in text
    assert "Previous" not in html(*MANY)
    assert "Next" not in html(*MANY, wish=Wish(page=3))
