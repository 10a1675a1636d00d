"""How each setting is read, as Python, a mapping or the environment has it.

Each reader returns the value as it is to be, or raises a ``ValueError`` that says what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from ._lib.durations import seconds
from ._lib.idle_action import idle_action
from ._lib.readers import count, file, http_status, one_of, optional, positive_duration, rate, switch
from ._lib.sizes import memory
from .coordination import make_coordination
from .events import Hook
from .schedule import schedule
from .web.access import request_rule
from .web.routing import NAME_RULES

if TYPE_CHECKING:
    from .web.access import Rule

T = TypeVar("T")

# A segment that begins with a colon is another router's placeholder. In PATH_INFO there is no query, and
# nothing is percent-encoded; what is not ASCII is there as bytes of UTF-8, read as latin-1 (PEP 3333).
_ROUTE = re.compile(r"(?:/(?!\.{1,2}(?:/|$))(?!:)[-\w.~!$&'()+,;=:@\x80-\xff]+)*/?", re.ASCII)


def _route(value: object) -> object:
    if callable(value):
        return value
    if isinstance(value, str) and value.startswith("/") and _ROUTE.fullmatch(value):
        try:
            value.encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:
            meant = value.encode().decode("latin-1")
            raise ValueError(f"{value!r} is not allowed; as a server passes it on it is {meant!r}") from None
        return value if value.endswith("/") else value + "/"
    raise ValueError(
        f"{value!r} is not allowed; it must be a path such as '/function/', which begins with '/' and after"
        " which the function's name follows by itself (no '<name>', '{name}', ':name', '*', '?', '%' or"
        " space), or a callable"
    )


def _namespace(value: object) -> object:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not allowed; it must be a string")


def _each(read: Callable[[object], T], what: str, example: str) -> Callable[[object], Mapping[str, T]]:
    """Return a reader of a mapping, or of pairs with commas between as the environment has them."""

    def read_all(value: object) -> Mapping[str, T]:
        pairs: object = value
        if isinstance(value, str):
            pairs = dict(part.partition("=")[::2] for part in value.split(",") if part.strip())
        if isinstance(pairs, Mapping) and all(isinstance(name, str) for name in pairs):
            return {name.strip(): _part(read, pairs[name], value) for name in pairs}
        raise ValueError(f"{value!r} is not allowed; it must hold {what}, as a mapping or as {example!r}")

    return read_all


def _groups(read: Callable[[object], T], what: str, example: str) -> Callable[[object], Mapping[str, T]]:
    read_all = _each(read, f"{what} for each group", example)

    def read_groups(value: object) -> Mapping[str, T]:
        groups = read_all(value)
        if "" in groups:
            raise ValueError(f"{value!r} is not allowed; a group must have a name, such as in {example!r}")
        return groups

    return read_groups


def _words(value: object) -> Sequence[object]:
    """Read a list, or a string of words with commas between, as the environment has it."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    if isinstance(value, (list, tuple)):
        return value
    raise ValueError(f"{value!r} is not allowed; it must be a list, or words with commas between")


def _part(read: Callable[[object], T], part: object, whole: object) -> T:
    """Read a part of a value; the error names the whole as well, as it stands in the configuration."""
    try:
        return read(part)
    except ValueError as error:
        raise ValueError(f"{whole!r} is not allowed: {error}") from None


def _rules(value: object) -> tuple[Rule, ...]:
    rules = [value] if callable(value) else _words(value)
    return tuple(_part(request_rule, rule, value) for rule in rules)


def _patterns(value: object) -> tuple[str, ...]:
    return tuple(_part(_pattern, pattern, value) for pattern in _words(value))


def _fence(value: object) -> tuple[str, ...] | None:
    if value == "":  # an empty variable must not open what was meant to be closed
        raise ValueError("'' is not allowed; it must be patterns of functions, or left out for all of them")
    return None if value is None else _patterns(value)


def _pattern(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError(f"{value!r} is not a function's name, perhaps with '*' for any text")


def _coordination(value: object) -> object:
    if isinstance(value, str):
        return make_coordination(value)
    missing = [method for method in _STORE if not callable(getattr(value, method, None))]
    if not missing:
        return value
    raise ValueError(
        f"{value!r} is not allowed; it must be a URL or a Coordination: it has no {missing[0]}()"
    )


_STORE = ("acquire", "renew", "release", "publish", "known", "changes", "report", "leave", "workers")


def _hours(value: object) -> object:
    schedule(value)
    return value


def _busy(value: object) -> object:
    if callable(value):
        return value
    raise ValueError(f"{value!r} is not allowed; it must be a callable of (name, namespace)")


def _hooks(value: object) -> tuple[Hook, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(_part(_hook, hook, value) for hook in value)
    raise ValueError(f"{value!r} is not allowed; it must be a list of callables that take an event")


def _hook(value: object) -> Hook:
    if callable(value):
        return value
    raise ValueError(f"{value!r} is not a callable that takes an event")


READERS: dict[str, Callable[[object], object]] = {
    "route": _route,
    "default_namespace": _namespace,
    "names": one_of(*NAME_RULES),
    "cache_expiry": seconds,
    "stale_for": seconds,
    "stale_if_error": seconds,
    "missing_expiry": seconds,
    "cache_size": count,
    "max_wait": positive_duration,
    "max_wait_of": _each(positive_duration, "a duration for each function", "hello=40s,slow.dev=2m"),
    "linger": seconds,
    "max_waiting": optional(count),
    "max_waiting_per_function": optional(count),
    "release_rate": optional(rate),
    "page_after": optional(seconds),
    "page_template": optional(file),
    "no_wake": _rules,
    "no_wake_status": http_status,
    "allow": _fence,
    "deny": _patterns,
    "wake": _fence,
    "replay": switch,
    "idle_after": optional(positive_duration),
    "idle_default": one_of("labelled", "all"),
    "idle_action": idle_action,
    "keep_warm": optional(_hours),
    "stream_idle_after": optional(positive_duration),
    "keep_alive_max": seconds,
    "busy": optional(_busy),
    "busy_cap": seconds,
    "dry_run": switch,
    "max_running": optional(count),
    "max_running_of": _groups(count, "a number", "gpu=1,cpu=4"),
    "max_memory": optional(memory),
    "max_memory_of": _groups(memory, "an amount of memory", "gpu=24GiB,cpu=8GiB"),
    "min_uptime": seconds,
    "expose_failures": switch,
    "coordination": optional(_coordination),
    "hooks": _hooks,
}
