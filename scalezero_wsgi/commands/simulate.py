"""``scalezero-wsgi simulate``: what ``idle_after`` should be, by a log of requests."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote
from zoneinfo import ZoneInfoNotFoundError

from .._lib.durations import as_text
from .._lib.durations import seconds as read_seconds
from .._lib.readers import positive_duration
from ..model import Function, InvalidFunctionName, SettingError
from ..simulation.access_log import Entry, LineReader, Told
from ..simulation.event_log import MOST_FUNCTIONS, EventReader
from ..simulation.in_order import in_order
from ..simulation.regularity import Calendar
from ..simulation.run import decided_after
from ..simulation.simulation import IDLE_AFTERS, Outcome, Prediction, Simulation, Times, total
from ..web.routing import Names
from .simulated import chart, table

ASSUMED_START = 1.0
"""Seconds that a start takes where nothing is known."""

TABLES = 20
"""Functions of which a table is printed, the busiest; the last lines name all."""

NOT_A_FUNCTIONS = (400, 404)
"""Answers that a name gets which a client has invented."""


@dataclass
class Options:
    """What the command was told.

    :param logs: paths, ``-`` for the standard input; those of a rotated log in their order.
    :param events: the path of a ``JsonLog``, by which starts, stops and turns are measured.
    :param start_times: each a duration for all functions, or ``NAME=DURATION``.
    :param idle_afters: durations with commas between.
    :param stamp: what the time of a line is, ``end`` or ``start``.
    :param unit: of a line's duration; ``None``: see :class:`LineReader`.
    :param recorded_with: the ``idle_after`` with which a log was recorded that has only events.
    :param workers: how many the fleet has.
    :param svg: the path of a plot to be written.
    """

    logs: Sequence[str]
    events: str | None = None
    start_times: Sequence[str] = ()
    idle_afters: str | None = None
    route: str = "/function/"
    names: str = "dns"
    stamp: str = "end"
    unit: str | None = None
    zone: str = "UTC"
    recorded_with: str | None = None
    workers: int = 1
    as_json: bool = False
    svg: str | None = None
    toml: bool = False
    labels: bool = False


@dataclass
class Read:
    """What was found in the logs.

    :ivar lines: without empty ones.
    :ivar wrong: those that could not be read.
    :ivar first_wrong: where the first one stands, and why.
    :ivar others: requests that are not a function's.
    :ivar unknown: requests for names that were never answered with anything but 400 and 404.
    """

    lines: int = 0
    wrong: int = 0
    first_wrong: str = ""
    others: int = 0
    unknown: int = 0
    events: int = 0
    requests: int = 0
    functions: set[Function] = field(default_factory=set)


def simulate(options: Options) -> None:
    """Read the logs and print what each ``idle_after`` would have done.

    :raises ScaleZeroError: an option is not allowed, a log cannot be read, or has no request for a function.
    """
    names, idle_afters, calendar = _settings(options)
    starts, otherwise = _start_times(options.start_times, names)
    recorded = _duration("--recorded-with", options.recorded_with)
    measured = EventReader(names.split)
    if options.events is not None:
        _measure(options, measured)
    given = {function: [start] for function, start in starts.items()}
    fallback = ASSUMED_START if otherwise is None else otherwise
    times = Times(
        given if otherwise is not None else {**measured.starts, **given},
        fallback,
        measured.stops,
        options.workers,
        measured.late,
    )
    read = Read()
    decided = 0.0 if recorded is None else decided_after(recorded, options.workers, measured.late)
    events = EventReader(names.split, decided)
    reader = _RequestReader(options, names, events, recorded is not None, read)
    if recorded is not None:
        idle_afters = [each for each in idle_afters if each >= recorded]
        if not idle_afters:
            raise SettingError(
                f"--recorded-with: with {options.recorded_with} nothing is known of a shorter --idle-after"
            )
    simulation = Simulation(idle_afters, times, calendar)
    simulation.run(in_order(reader.requests()) if recorded is None else reader.requests())
    predictions = simulation.results()
    if not predictions:
        raise SettingError(_nothing(options, read))
    if unread := starts.keys() - {each.function for each in predictions}:
        _warn(f"--start-time: no request for {', '.join(sorted(map(str, unread)))} was read")
    if options.svg is not None:
        _write(options.svg, chart(total(predictions), predictions))
    if options.as_json:
        print(json.dumps(_as_json(predictions, read)))
    elif options.toml:
        print(_toml(predictions))
    elif options.labels:
        print(_labels(predictions))
    else:
        _print(
            options,
            predictions,
            read,
            calendar,
            simulation,
            otherwise is not None or all(times.knows(each.function) for each in predictions),
        )


def _warn(text: str) -> None:
    print(f"scalezero-wsgi: {text}", file=sys.stderr)


# Options


def _settings(options: Options) -> tuple[Names, list[float], Calendar]:
    if not options.route.startswith("/") or not options.route.endswith("/"):
        raise SettingError(f"--route: {options.route!r} is not allowed; it must begin and end with '/'")
    idle_afters = sorted(IDLE_AFTERS)
    if options.idle_afters is not None:
        texts = options.idle_afters.split(",")
        idle_afters = sorted({float(_duration("--idle-after", text.strip()) or 0.0) for text in texts})
    try:
        calendar = Calendar(options.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingError(
            f"--zone: {options.zone!r} is not known here; it must be a name such as 'Europe/Berlin'"
        ) from None
    return Names(options.names), idle_afters, calendar


def _duration(option: str, text: str | None) -> float | None:
    try:
        return None if text is None else positive_duration(text)
    except ValueError as error:
        raise SettingError(f"{option}: {error}") from None


def _start_times(texts: Sequence[str], names: Names) -> tuple[dict[Function, float], float | None]:
    """Return how long starts take: of some functions, and of all others if that is said."""
    of_functions: dict[Function, float] = {}
    otherwise = None
    for text in texts:
        name, sign, told = text.rpartition("=")
        try:
            duration = read_seconds(told)
            if sign:
                of_functions[names.split(name)] = duration
            else:
                otherwise = duration
        except (ValueError, InvalidFunctionName) as error:
            raise SettingError(f"--start-time: {error}") from None
    return of_functions, otherwise


# Reading


@contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    try:
        if path == "-":
            yield sys.stdin
        elif path.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                yield file
        else:
            with Path(path).open(encoding="utf-8", errors="replace") as file:
                yield file
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingError(f"{path}: it cannot be read: {reason}") from None


def _measure(options: Options, measured: EventReader) -> None:
    read_line, found = LineReader(), 0
    with _opened(str(options.events)) as file:
        for line in file:
            try:
                told = read_line(line)
                if isinstance(told, Told):
                    measured(told.fields)
                    found += 1
            except ValueError:  # what is no event is not asked for here
                pass
    if not found:
        raise SettingError(f"--events: {options.events} has no line of a JsonLog")


class _RequestReader:
    """Reads requests for functions from the logs."""

    def __init__(
        self, options: Options, names: Names, events: EventReader, with_events: bool, read: Read
    ) -> None:
        self._options, self._names, self._events, self._read = options, names, events, read
        self._with_events = with_events
        self._functions: dict[str, Function | None] = {}

    def requests(self) -> Iterator[tuple[float, float, Function]]:
        """Yield each: when it came, how many seconds it took, and for which function."""
        for path in self._options.logs:
            with _opened(path) as file:
                yield from self._of(file, path)
        if self._with_events:
            yield from self._events.unended()

    def _of(self, file: Iterable[str], path: str) -> Iterator[tuple[float, float, Function]]:
        read, read_line = self._read, LineReader(self._options.stamp, self._options.unit)
        route, known, functions = self._options.route, self._functions, self._read.functions
        for number, line in enumerate(file, 1):
            if line == "\n":
                continue
            read.lines += 1
            try:
                entry = read_line(line)
                if not isinstance(entry, Entry):
                    read.events += 1
                    use = self._events(entry.fields)
                    if use is not None and self._with_events:
                        read.requests += 1
                        yield use
                    continue
            except ValueError as error:
                read.wrong += 1
                read.first_wrong = read.first_wrong or f"line {number} of {path}: {error}"
                continue
            target, came_at, duration, status = entry
            if not target.startswith(route):
                read.others += 1
                continue
            name = target[len(route) :].partition("/")[0].partition("?")[0]
            function = known[name] if name in known else self._function(name)
            if function is None or (status in NOT_A_FUNCTIONS and function not in functions):
                read.unknown += 1
                continue
            if function not in functions:
                if len(functions) >= MOST_FUNCTIONS:
                    read.unknown += 1
                    continue
                functions.add(function)
            read.requests += 1
            yield came_at, duration, function

    def _function(self, name: str) -> Function | None:
        try:
            function = self._names.split(unquote(name))
        except InvalidFunctionName:
            return None
        if len(self._functions) >= 2 * MOST_FUNCTIONS:  # clients may invent names
            self._functions.clear()
        self._functions[name] = function
        return function


def _nothing(options: Options, read: Read) -> str:
    if read.events and not read.requests and options.recorded_with is None:
        return (
            f"{', '.join(options.logs)}: there are only events, which tell of starts and stops; say with"
            " which idle_after they were recorded, such as --recorded-with 15m"
        )
    wrong = f", {read.wrong} of them could not be read ({read.first_wrong})" if read.wrong else ""
    logs = ", ".join(options.logs)
    return f"{logs}: no request for a function below {options.route} in {read.lines} lines{wrong}"


# Writing


def _print(
    options: Options,
    predictions: Sequence[Prediction],
    read: Read,
    calendar: Calendar,
    simulation: Simulation,
    start_is_known: bool,
) -> None:
    span = simulation.last - simulation.first
    first, last = (f"{calendar.at(moment):%Y-%m-%d %H:%M}" for moment in (simulation.first, simulation.last))
    print(
        f"{read.requests} requests for {len(predictions)} functions from {first} to {last} {calendar.zone},"
        f" {span / 3600:.2f} hours"
    )
    for count, what in (
        (read.wrong, f"lines could not be read; the first is {read.first_wrong}"),
        (read.others, f"lines are not below {options.route}"),
        (read.unknown, "requests were for names that are no function's"),
        (read.events, "lines are events"),
    ):
        if count:
            print(f"{count} {what}")
    if not start_is_known:
        print(f"a start is taken to last {ASSUMED_START:g} s; say --start-time, or --events with a JsonLog")
    outcomes = total(predictions)
    print(f"\nall functions\n{table(outcomes, len(predictions) * span)}")
    by_requests = sorted(predictions, key=lambda prediction: -prediction.requests)
    if len(predictions) > 1:
        for prediction in by_requests[:TABLES]:
            told = table(prediction.outcomes, prediction.always_on, prediction.recommended)
            print(f"\n{prediction.function}: {prediction.requests} requests\n{told}")
    print("\nrecommended, where waiting and hours are both low:")
    for prediction in predictions:
        print(f"  {prediction.function}: {_recommendation(prediction)}")


def _recommendation(prediction: Prediction) -> str:
    best, warm = prediction.outcomes[prediction.recommended], prediction.warm
    share = best.up / prediction.always_on if prediction.always_on else 0.0
    text = (
        f"idle_after {as_text(best.idle_after)}: {best.cold_starts} cold starts,"
        f" up for {best.up / 3600:.2f} hours, {share:.0%} of always on"
    )
    if warm is not None:
        text += (
            f"\n    with keep_warm '{warm.hours}' {warm.spared} cold starts fewer, and about"
            f" {warm.more_up / 3600:.2f} hours more"
        )
    return text


def _toml(predictions: Sequence[Prediction]) -> str:
    tables = []
    for prediction in predictions:
        name = str(prediction.function)
        key = f'"{name}"' if "." in name else name
        best = prediction.outcomes[prediction.recommended]
        lines = [f"[functions.{key}]", f'idle_after = "{as_text(best.idle_after)}"']
        if prediction.warm is not None:
            lines.append(f'# keep_warm = "{prediction.warm.hours}"')
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _labels(predictions: Sequence[Prediction]) -> str:
    lines = []
    for prediction in predictions:
        best = prediction.outcomes[prediction.recommended]
        lines.append(f"# {prediction.function}\nscalezero.idle-after={as_text(best.idle_after)}")
        if prediction.warm is not None:
            lines.append(f"# scalezero.keep-warm={prediction.warm.hours}")
    return "\n".join(lines)


def _as_json(predictions: Sequence[Prediction], read: Read) -> dict[str, Any]:
    def told(outcome: Outcome) -> dict[str, float]:
        waits = outcome.waits
        return {
            "idle_after": outcome.idle_after,
            "cold_starts": outcome.cold_starts,
            "waited": waits.count,
            "wait_p50": round(waits.quantile(0.5), 4),
            "wait_p99": round(waits.quantile(0.99), 4),
            "hours_up": round(outcome.up / 3600, 6),
        }

    return {
        "lines": read.lines,
        "wrong_lines": read.wrong,
        "requests": read.requests,
        "total": [told(outcome) for outcome in total(predictions)],
        "functions": [
            {
                "function": str(prediction.function),
                "requests": prediction.requests,
                "hours_always_on": round(prediction.always_on / 3600, 6),
                "outcomes": [told(outcome) for outcome in prediction.outcomes],
                "recommended_idle_after": prediction.outcomes[prediction.recommended].idle_after,
                "keep_warm": None
                if prediction.warm is None
                else {
                    "hours": prediction.warm.hours,
                    "cold_starts_fewer": prediction.warm.spared,
                    "hours_more": round(prediction.warm.more_up / 3600, 6),
                },
            }
            for prediction in predictions
        ],
    }


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"--svg: {path} cannot be written: {error.strerror}") from None
