"""A page of the functions that were asked for, as HTML and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple
from urllib.parse import urlencode

from ...pages.plot import shares, small_plot
from .overview import STATES, Row
from .saved import Sum, as_fields, as_sentence

PER_PAGE = 50

LONGEST_QUERY = 200

GROUPS = {
    "warm": "bar",
    "stale": "bar",
    "cold": "held",
    "replayed": "held",
    "deferred": "held",
}
"""How requests of an outcome are drawn; all others did not get what they wanted."""

COLUMNS = (
    *(
        ("Function", ""),
        ("State", ""),
        ("Replicas", "number"),
        ("In flight", "number"),
        ("Waiting", "number"),
    ),
    *(("Last use", ""), ("Idle in", ""), ("Last starts", "wide-only"), ("Requests", "wide-only")),
)
"""Their names and classes; behind them are the buttons."""


class Wish(NamedTuple):
    """What is to be shown.

    :ivar q: part of a name.
    :ivar state: one of ``STATES``; empty: all.
    """

    q: str = ""
    state: str = ""
    page: int = 1

    @classmethod
    def of(cls, args: Mapping[str, str]) -> Wish:
        """Read a query string; what cannot be read is left out."""
        page, state = args.get("page", ""), args.get("state", "")
        number = int(page) if page.isascii() and page.isdecimal() and len(page) < 10 else 1
        return cls(
            args.get("q", "").strip()[:LONGEST_QUERY], state if state in STATES else "", max(1, number)
        )

    def query(self, **changes: str | int) -> str:
        """Return the query string, with a question mark in front if there is one."""
        wish = self._replace(**changes)  # type: ignore[arg-type]
        told = {"q": wish.q, "state": wish.state, "page": wish.page if wish.page > 1 else ""}
        text = urlencode({name: value for name, value in told.items() if value})
        return f"?{text}" if text else ""


class View(NamedTuple):
    """What is shown.

    :ivar states: how many functions there are in each state, of those whose name matches.
    :ivar saved: all functions of the last days as one, where that is added up.
    """

    wish: Wish
    rows: Sequence[Row]
    total: int
    pages: int
    states: Mapping[str, int]
    saved: Sum | None = None


def view(rows: Sequence[Row], wish: Wish) -> View:
    """Return the page that is wished for, or the last one."""
    q = wish.q.casefold()
    named = [row for row in rows if q in str(row.function).casefold()]
    found = [row for row in named if not wish.state or row.state == wish.state]
    pages = max(1, math.ceil(len(found) / PER_PAGE))
    page = min(wish.page, pages)
    part = found[(page - 1) * PER_PAGE : page * PER_PAGE]
    return View(wish._replace(page=page), part, len(found), pages, Counter(row.state for row in named))


def as_json(shown: View, trouble: str) -> dict[str, Any]:
    """Return what ``/functions`` answers; the README has its schema."""
    return {
        "functions": [_fields(row) for row in shown.rows],
        "total": shown.total,
        "page": shown.wish.page,
        "pages": shown.pages,
        "states": {state: shown.states.get(state, 0) for state in STATES},
        "trouble": trouble or None,
        "saved": None if shown.saved is None else as_fields(shown.saved),
    }


def _fields(row: Row) -> dict[str, Any]:
    return {
        "function": row.key,
        "state": row.state,
        "replicas": row.replicas,
        "available_replicas": row.available_replicas,
        "in_flight": row.in_flight,
        "waiting": row.waiting,
        "unused_for": _rounded(row.unused_for),
        "idle_in": _rounded(row.idle_in),
        "kept_up_for": _rounded(row.kept_up_for),
        "failure": row.failure or None,
        "last_starts": [round(seconds, 3) for seconds in row.last_starts],
        "requests": None if row.requests is None else dict(row.requests),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


# HTML


def as_html(shown: View, trouble: str, home: str, can_keep_up: bool) -> str:
    """Return the part of the page that changes.

    :param home: the dashboard's URL, which ends with a slash.
    """
    parts = [f'<p class="trouble">{escape(trouble)}</p>'] if trouble else []
    if shown.saved is not None:
        parts.append(f'<p class="saved">{as_sentence(shown.saved)}</p>')
    parts.append(_states(shown, home))
    if shown.rows:
        lines = [_line(row, home, can_keep_up) for row in shown.rows]
        parts.append(f"<table>{_head(shown.rows[0])}<tbody>\n{''.join(lines)}</tbody></table>")
        parts.append(_pages(shown, home))
    else:
        nothing = (
            "No function is like that." if shown.wish.q or shown.wish.state else "There is no function yet."
        )
        parts.append(f'<p class="none-yet">{nothing}</p>')
    return "\n".join(parts)


def _head(row: Row) -> str:
    cells = [
        f'<th scope="col"{_class(css)}>{name}</th>'
        for name, css in COLUMNS
        if name != "Requests" or row.requests is not None
    ]
    return f'<thead><tr>{"".join(cells)}<th scope="col"><span class="aside">Actions</span></th></tr></thead>'


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


def _states(shown: View, home: str) -> str:
    links = [_link(home, shown.wish, "", "all", sum(shown.states.values()))]
    links += [
        _link(home, shown.wish, state, state, shown.states[state])
        for state in STATES
        if shown.states.get(state) or state == shown.wish.state
    ]
    return f'<nav aria-label="States"><ul class="states">{"".join(links)}</ul></nav>'


def _link(home: str, wish: Wish, state: str, text: str, count: int) -> str:
    current = ' aria-current="true"' if wish.state == state else ""
    url = escape(home + wish.query(state=state, page=1))
    return f'<li><a href="{url}"{current}>{text} <span class="count">{count:,}</span></a></li>'


def _pages(shown: View, home: str) -> str:
    if shown.pages == 1:
        return ""
    page, links = shown.wish.page, []
    for text, target in (("Previous", page - 1), ("Next", page + 1)):
        if 1 <= target <= shown.pages:
            url = escape(home + shown.wish.query(page=target))
            links.append(f'<li><a href="{url}">{text}</a></li>')
    where = f"<li><span>Page {page:,} of {shown.pages:,}</span></li>"
    return f'<nav aria-label="Pages"><ul class="pages">{where}{"".join(links)}</ul></nav>'


def _line(row: Row, home: str, can_keep_up: bool) -> str:
    name, css = escape(str(row.function)), row.state.replace(" ", "-")
    why = f"<small>{escape(_short(row.failure))}</small>" if row.failure else ""
    counts = "" if not row.replicas else f"{row.available_replicas} of {row.replicas}"
    return (
        f'<tr data-key="{escape(row.key)}"><th scope="row">{name}</th>'
        f'<td{_class("why" if why else "")}><span class="state {css}">{row.state}</span>{why}</td>'
        f"{_cell('Replicas', counts)}"
        f"{_cell('In flight', str(row.in_flight or ''))}"
        f"{_cell('Waiting', str(row.waiting or ''))}"
        f"{_cell('Last use', '' if row.unused_for is None else _in_short(row.unused_for) + ' ago')}"
        f"{_cell('Idle in', _idle_in(row))}"
        f"{_cell('Last starts', small_plot(row.last_starts))}"
        f"{'' if row.requests is None else _cell('Requests', _requests(row))}"
        f'<td class="actions">{" ".join(_buttons(row, name, home, can_keep_up))}</td></tr>\n'
    )


def _cell(name: str, html: str) -> str:
    css = dict(COLUMNS)[name] if html else f"{dict(COLUMNS)[name]} empty".strip()
    return f'<td data-name="{name}"{_class(css)}>{html}</td>'


def _buttons(row: Row, name: str, home: str, can_keep_up: bool) -> Iterator[str]:
    is_up = row.state in ("ready", "starting")
    if not is_up:
        yield _button("wake", "Wake", row, name, home)
    if is_up or row.state == "paused":
        yield _button("stop", "Stop", row, name, home)
    if can_keep_up:
        yield _button("keep-up", "Keep up 1 h", row, name, home)


def _button(path: str, text: str, row: Row, name: str, home: str) -> str:
    return (
        f'<button class="small" data-key="{path}" form="act" formaction="{escape(home + path)}"'
        f' name="function" value="{escape(row.key)}">{text}<span class="aside"> {name}</span></button>'
    )


def _idle_in(row: Row) -> str:
    if row.kept_up_for > 0:
        return f"kept {_in_short(row.kept_up_for)}"
    return "" if row.idle_in is None else _in_short(row.idle_in) if row.idle_in >= 1 else "now"


def _requests(row: Row) -> str:
    if not row.requests:
        return ""
    known = [
        (css, outcome, row.requests[outcome]) for outcome, css in GROUPS.items() if outcome in row.requests
    ]
    rest = [
        ("bad", escape(each), count) for each, count in sorted(row.requests.items()) if each not in GROUPS
    ]
    return shares([*known, *rest])


def _short(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def _in_short(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, int(seconds))} s"
