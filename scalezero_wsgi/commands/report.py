"""``scalezero-wsgi report``: what scaling to zero saved, by the file that the workers write."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._lib.readers import positive_duration
from ..integrations.savings import prices
from ..model import SettingError
from ..savings.book import Book, Entry, path_of, total
from ..savings.life import State
from ..savings.prices import Cost, Prices

HEAD = (
    "NAME",
    "UP",
    "ALWAYS ON",
    "SAVED",
    "NOT KNOWN",
    "PAUSED",
    "STARTS",
    "FAILED",
    "WAITED",
    "P50",
    "P99",
    "COSTS",
    "SAVED",
)


def report(
    url: str,
    since: str | None,
    costs: Sequence[str],
    as_json: bool,
    clock: Callable[[], float] = time.time,
) -> None:
    """Print for how long functions were up, and requests waited: a table, or JSON.

    :param url: of the file, ``sqlite:///path/of/file``.
    :param since: how long ago that begins which is reported, a duration; ``None``: all.
    :param costs: of an instance in an hour, each a number or ``NAME=NUMBER``.
    :param clock: seconds since the epoch.
    :raises ScaleZeroError: an option is not allowed, or the file cannot be read.
    """
    path, priced = path_of(url), _prices(costs)
    try:
        begin = 0.0 if since is None else clock() - positive_duration(since)
    except ValueError as error:
        raise SettingError(f"--since: {error}") from None
    try:
        book = Book(path, owner=Path(path).stat().st_uid)  # root may look as well
    except OSError as error:
        raise SettingError(f"{url!r}: {error.strerror}") from None
    now = clock()
    entries = book.entries(now, begin)
    book.close()
    if unknown := priced.unknown(entries):
        print(f"scalezero-wsgi: --cost-per-hour: nothing is known of {', '.join(unknown)}", file=sys.stderr)
    rows = [_row(str(entry.function), entry, priced.cost(entry)) for entry in entries]
    together = _row("all", total(entries), priced.total(entries))
    if as_json:
        print(json.dumps({"until": now, "functions": rows, "total": together}))
    elif rows:
        print(_table([*rows, together] if len(rows) > 1 else rows))
        if any(entry.unknown >= 1 for entry in entries):
            print("\nNOT KNOWN is when functions may have been up, which nobody has seen.")
    else:
        print("nothing is known of any function yet")


def _prices(texts: Sequence[str]) -> Prices:
    told: dict[str, str] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        told[name] = number
    return prices(told, "--cost-per-hour")


def _row(name: str, entry: Entry, cost: Cost | None) -> dict[str, Any]:
    waits = entry.waits
    return {
        "function": name,
        "state": None if entry.state is State.UNKNOWN else entry.state.value,
        "seconds_up": round(entry.up, 3),
        "seconds_always_on": round(entry.always_on, 3),
        "seconds_saved": round(entry.saved, 3),
        "seconds_not_known": round(entry.unknown, 3),
        "seconds_paused": round(entry.paused, 3),
        "starts": entry.starts,
        "failed_starts": entry.failures,
        "waited": waits.count,
        "wait_p50": round(waits.quantile(0.5), 3),
        "wait_p99": round(waits.quantile(0.99), 3),
        "cost": None if cost is None else round(cost.spent, 4),
        "cost_saved": None if cost is None else round(cost.saved, 4),
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table; columns of which nothing is known are left out."""
    cells = [HEAD, *map(_cells, rows)]
    columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in zip(*columns, strict=True)
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def hours(name: str) -> str:
        return f"{row[name] / 3600:.2f} h"

    always_on = row["seconds_always_on"]
    share = row["seconds_saved"] / always_on if always_on else 0.0
    waited = row["waited"]
    return (
        row["function"],
        hours("seconds_up"),
        hours("seconds_always_on"),
        f"{share:.0%}",
        hours("seconds_not_known") if row["seconds_not_known"] >= 1 else "",
        hours("seconds_paused") if row["seconds_paused"] else "",
        str(row["starts"]),
        str(row["failed_starts"] or ""),
        str(waited),
        f"{row['wait_p50']:.2f} s" if waited else "",
        f"{row['wait_p99']:.2f} s" if waited else "",
        "" if row["cost"] is None else f"{row['cost']:.2f}",
        "" if row["cost_saved"] is None else f"{row['cost_saved']:.2f}",
    )
