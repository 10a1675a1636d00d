"""What an operator does by hand: look at functions, and wake one. Asks the provider alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .model import Function, FunctionFailed, ProviderError, ReplicaStatus, ScaleZeroError, SettingError
from .providers import make_provider
from .providers.base import ListingProvider, Provider, WatchingProvider
from .providers.process import ProcessProvider
from .providers.process.config import checked_name, functions_from_toml
from .providers.process.files import default_path, path_for_file
from .providers.process.running import is_served, running

POLL = 0.25
"""Seconds between two questions."""


class Seen(NamedTuple):
    """A function as its provider tells it.

    :ivar status: ``None``: the provider failed to tell it.
    :ivar trouble: why; empty if it did not fail.
    """

    function: Function
    status: ReplicaStatus | None
    trouble: str = ""

    @property
    def state(self) -> str:
        """What it is at, in a word or two."""
        status = self.status
        if status is None:
            return "unknown"
        if status.available_replicas:
            return "ready"
        if status.paused:
            return "paused"
        if status.failure is not None:
            return "failed"
        return "starting" if status.replicas else "at zero"


def is_file_of_functions(which: str) -> bool:
    """Return whether a command line names a file of functions, rather than a provider."""
    return which.endswith(".toml") and "://" not in which


def provider_of(which: str, state_dir: Path | None = None) -> Provider:
    """Make the provider that a command line names.

    :param which: a file of functions (``*.toml``), or a provider's name or URL.
    :param state_dir: of the functions of a file; by default where they run, see :func:`where_they_run`.
    :raises SettingError: there is no such file or provider, or it cannot be read.
    :raises MissingExtra: the provider's library is not installed.
    """
    if is_file_of_functions(which):
        return ProcessProvider.from_toml(which, state_dir=state_dir or where_they_run(which))
    if state_dir is not None:
        raise SettingError(f"--state-dir: {which!r} has none; it is of a file of functions (*.toml)")
    return make_provider(which)


def where_they_run(file: str) -> Path:
    """Return the directory of the processes that ``serve`` runs of a file; or, if it does not run, that of an
    application which has the same functions, if there is one.

    :raises SettingError: the file cannot be read.
    """
    served = path_for_file(file)
    own = default_path({checked_name(key): each for key, each in functions_from_toml(file).items()})
    return own if own.is_dir() and not is_served(served) and not _runs_any(served) else served


def _runs_any(state_dir: Path) -> bool:
    return state_dir.is_dir() and bool(running(state_dir))


def functions_of(provider: Provider, is_ours: Callable[[Function], bool] = lambda _: True) -> list[Seen]:
    """Return the functions that a provider lists, as it tells them one after another.

    :param is_ours: which of them.
    :raises SettingError: it cannot list its functions.
    :raises ProviderError: it does not answer.
    """
    if not isinstance(provider, ListingProvider):
        raise SettingError(f"{type(provider).__name__} cannot list its functions: it has no list_functions")
    return [
        _seen(provider, each)
        for each in sorted(map(Function._make, provider.list_functions()))
        if is_ours(each)
    ]


def _seen(provider: Provider, function: Function) -> Seen:
    try:
        return Seen(function, provider.get_replicas(*function))
    except ScaleZeroError as error:
        return Seen(function, None, str(error))


Row = dict[str, str | int | float | None]
"""What is shown of a function."""

HEAD = ("NAME", "STATE", "AVAILABLE", "IN FLIGHT", "WAITING", "UNUSED FOR", "WHY")


def row_of(seen: Seen) -> Row:
    """Return what is shown of a function, as far as its provider tells it."""
    status = seen.status
    return {
        "function": str(seen.function),
        "state": seen.state,
        "replicas": None if status is None else status.replicas,
        "available_replicas": None if status is None else status.available_replicas,
        "failure": seen.trouble or (None if status is None else status.failure),
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table for people; columns of which nothing is known are left out."""
    return aligned([HEAD, *map(tuple, map(_cells, rows))]) if rows else "there is no function"


def _cells(row: Row) -> Iterator[str]:
    yield str(row["function"])
    yield str(row["state"])
    yield "" if row["replicas"] is None else f"{row['available_replicas']} of {row['replicas']}"
    for name in ("in_flight", "waiting"):
        yield str(row.get(name, ""))
    unused_for = row.get("unused_for")
    yield f"{unused_for:.0f} s" if isinstance(unused_for, float | int) else ""
    yield " | ".join(str(row["failure"] or "").splitlines())


def aligned(lines: Iterable[Sequence[str]]) -> str:
    """Return lines, the first of which is the head, with their columns one below another; a column that has
    nothing but its head is left out."""
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    )


def going_up(provider: Provider, function: Function, timeout: float) -> Iterator[ReplicaStatus]:
    """Have a function started, and return each status until it is available.

    :param timeout: seconds.
    :raises FunctionNotFound: the provider does not know it.
    :raises FunctionFailed: it cannot start.
    :raises ProviderError: the provider does not answer, or the time is over.
    """
    deadline = time.monotonic() + timeout
    status = provider.get_replicas(*function)
    if not status.replicas:  # one that has replicas is starting, and may have more than it starts with
        provider.set_replicas(*function, status.first_replicas)
        status = provider.get_replicas(*function)
    yield status
    while not status.available_replicas:
        if status.failure is not None:
            raise FunctionFailed(function, status.failure)
        left = deadline - time.monotonic()
        if left <= 0:
            raise ProviderError(f"{function} is not available after {timeout:g} s")
        seen = status
        if isinstance(provider, WatchingProvider):
            status = provider.wait_for_change(*function, seen, left)
        else:
            time.sleep(min(POLL, left))
            status = provider.get_replicas(*function)
        if status != seen:
            yield status
