"""What is set for a process: which command, when it is ready, how it is stopped; from Python or TOML."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from types import MappingProxyType
from typing import Any

from ..._lib.idle_action import idle_action
from ..._lib.sizes import memory
from ...model import Function, ScaleZeroError, SettingError
from ...schedule import schedule
from ..checks import URL_PATH, duration, not_allowed, positive_duration

IDLE_AFTER, IDLE_ACTION = "scalezero.idle-after", "scalezero.idle-action"
KEEP_WARM = "scalezero.keep-warm"
BUDGET, MEMORY = "scalezero.budget", "scalezero.memory"

OUTDATED = "scalezero.outdated"
"""The label of a function whose process was started with other settings than it has now."""

_KEYS = (
    *("command", "ready", "env", "cwd", "stop", "idle_after", "idle_action", "keep_warm", "sleep", "wake"),
    *("memory", "budget"),
)

_NAME_PART = re.compile(r"[a-zA-Z0-9_]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9_])?", re.ASCII)


def _table(name: str, value: object, allowed: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise not_allowed(name, value, f"a table with the keys {', '.join(allowed)}")
    for key in value:
        if key not in allowed:
            raise SettingError(f"{name}: unknown key {key!r} ({value[key]!r}); allowed: {', '.join(allowed)}")
    return dict(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


@dataclass(frozen=True, slots=True)
class Ready:
    """When a process counts as available.

    :param path: the path that answers a GET with 2xx or 3xx; ``None``: the port accepts a connection.
    :param timeout: seconds (or a string such as ``"30s"``) within which it must; else it is stopped.
    :raises SettingError: a value is not allowed.
    """

    path: str | None = None
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.path is not None and not (_is_text(self.path) and URL_PATH.fullmatch(self.path)):
            raise not_allowed("ready.path", self.path, "a path such as '/' or '/healthz', percent-encoded")
        object.__setattr__(self, "timeout", duration("ready.timeout", self.timeout))
        if not self.timeout:
            raise not_allowed("ready.timeout", self.timeout, "more than 0 seconds")


@dataclass(frozen=True, slots=True)
class Stop:
    """How a process is stopped.

    :param signal: the name of the signal that asks it to end, such as ``"TERM"`` or ``"INT"``.
    :param grace: seconds (or a string such as ``"10s"``) after which it is killed.
    :raises SettingError: a value is not allowed.
    """

    signal: str = "TERM"
    grace: float = 10.0

    def __post_init__(self) -> None:
        if f"SIG{self.signal}" not in Signals.__members__:
            raise not_allowed("stop.signal", self.signal, "a signal's name such as 'TERM', 'INT' or 'QUIT'")
        object.__setattr__(self, "grace", duration("stop.grace", self.grace))

    @property
    def signum(self) -> Signals:
        """The signal itself."""
        return Signals[f"SIG{self.signal}"]


@dataclass(frozen=True, slots=True)
class ProcessFunction:
    """One function: a command that serves HTTP on a port of 127.0.0.1 that it is told.

    :param command: program (found by ``PATH``) and arguments; ``{port}`` in a word becomes the port.
    :param ready: when it counts as available.
    :param env: added to the worker's environment, ``{port}`` replaced likewise; ``PORT`` is set anyway.
    :param cwd: the directory to run in; ``None``: the worker's.
    :param stop: how it is stopped.
    :param idle_after: seconds (or a string such as ``"15m"``) without use after which the middleware stops
        it, or ``"never"``; ``None``: the middleware's settings say that.
    :param idle_action: what it does then: ``"stop"``, ``"pause"``, or both such as ``"pause after 5m, stop
        after 1h"``; ``None``: the middleware's settings say that.
    :param keep_warm: hours such as ``"Mon-Fri 08:00-18:00 Europe/Berlin"`` in which the middleware keeps it
        up, see :mod:`scalezero_wsgi.schedule`, or ``"never"``; ``None``: as above.
    :param sleep: the path to which it is sent a POST when it is paused, such as vLLM's ``/sleep?level=1``,
        instead of being halted; with ``wake`` only. Each is to be answered with 2xx within ``ready.timeout``.
    :param wake: the path to which it is sent a POST when it is to go on, such as vLLM's ``/wake_up``.
    :param memory: how much it needs, in bytes or as a string such as ``"4GiB"``, for the middleware's
        ``max_memory``; ``None``: it does not count there.
    :param budget: the group in whose budget it counts (``max_running_of``, ``max_memory_of``); ``None``: in
        none.
    :raises SettingError: a value is not allowed.
    :raises MissingExtra: the hours need a library that is not installed.
    """

    command: Sequence[str]
    ready: Ready = Ready()
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    cwd: str | Path | None = None
    stop: Stop = Stop()
    idle_after: float | str | None = None
    idle_action: str | None = None
    keep_warm: str | None = None
    sleep: str | None = None
    wake: str | None = None
    memory: int | str | None = None
    budget: str | None = None

    def __post_init__(self) -> None:
        command: object = self.command
        env: object = self.env
        cwd: object = self.cwd
        if not (isinstance(command, list | tuple) and command and all(map(_is_text, command)) and command[0]):
            raise not_allowed("command", command, "a list of strings that begins with the program")
        if not isinstance(env, Mapping) or not all(map(_is_text, env.values())):
            raise not_allowed("env", env, "a table of strings")
        if not all(_is_text(name) and name and "=" not in name for name in env):
            raise not_allowed("env", env, "a table whose keys are names without '='")
        if cwd is not None and not (isinstance(cwd, str | Path) and _is_text(str(cwd))):
            raise not_allowed("cwd", cwd, "the path of a directory")
        if not isinstance(self.ready, Ready):
            raise not_allowed("ready", self.ready, "a Ready")
        if not isinstance(self.stop, Stop):
            raise not_allowed("stop", self.stop, "a Stop")
        if self.idle_after is not None and self.idle_after != "never":
            object.__setattr__(self, "idle_after", positive_duration("idle_after", self.idle_after))
        if self.idle_action is not None:
            try:
                idle_action(self.idle_action)
            except ValueError as error:
                raise SettingError(f"idle_action: {error}") from None
        if self.keep_warm is not None and self.keep_warm != "never":
            try:
                schedule(self.keep_warm)
            except ValueError as error:
                raise SettingError(f"keep_warm: {error}") from None
        for name, path in (("sleep", self.sleep), ("wake", self.wake)):
            if path is not None and not (_is_text(path) and URL_PATH.fullmatch(path)):
                raise not_allowed(
                    name, path, "a path such as '/sleep?level=1' or '/wake_up', percent-encoded"
                )
        if (self.sleep is None) is not (self.wake is None):
            raise SettingError("sleep and wake belong together: set both, or neither")
        if self.memory is not None:
            try:
                object.__setattr__(self, "memory", memory(self.memory))
            except ValueError as error:
                raise SettingError(f"memory: {error}") from None
        if self.budget is not None and not (_is_text(self.budget) and self.budget.strip()):
            raise not_allowed("budget", self.budget, "the name of a group")
        object.__setattr__(self, "command", tuple(self.command))
        object.__setattr__(self, "env", MappingProxyType(dict(self.env)))

    @property
    def labels(self) -> Mapping[str, str]:
        """What the middleware reads from a function's labels, as the provider tells it."""
        told = {
            IDLE_AFTER: self.idle_after,
            IDLE_ACTION: self.idle_action,
            KEEP_WARM: self.keep_warm,
            MEMORY: self.memory,
            BUDGET: self.budget,
        }
        return {label: str(value) for label, value in told.items() if value is not None}


def functions_from_toml(path: str | os.PathLike[str]) -> dict[str, ProcessFunction]:
    """Read a file's ``[functions.<name>]`` tables.

    :param path: the file. A relative ``cwd`` in it counts from the directory that it lies in.
    :raises SettingError: it cannot be read, or a key or a value in it is not allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingError(f"{os.fspath(path)} cannot be read: {error}") from error
    return functions_from_text(text, path)


def functions_from_text(text: str, path: str | os.PathLike[str]) -> dict[str, ProcessFunction]:
    """Read what stood in a file, as :func:`functions_from_toml` does.

    :param path: the file; it need not be there any more.
    :raises SettingError: as there.
    """
    base = Path(path).parent
    return {key: _from_table(key, table, base) for key, table in _tables(text, path).items()}


def faults_of(path: str | os.PathLike[str]) -> list[ScaleZeroError]:
    """Return all that is wrong in a file of functions; nothing: it can be read."""
    try:
        tables = _tables(Path(path).read_text(encoding="utf-8"), path)
    except OSError as error:
        return [SettingError(f"{os.fspath(path)} cannot be read: {error}")]
    except SettingError as error:
        return [error]
    faults: list[ScaleZeroError] = []
    for key, table in tables.items():
        try:
            checked_name(key)
        except SettingError as error:
            faults.append(error)
        for part in _parts(table):
            try:
                _from_table(key, part, Path(path).parent)
            except ScaleZeroError as error:
                faults.append(error)
    return faults


def _parts(table: object) -> Iterator[object]:
    """Yield a function's table key by key, each with what it cannot be without."""
    if not isinstance(table, Mapping):
        yield table
        return
    together = {key: table[key] for key in ("sleep", "wake") if key in table}
    yield {"command": table.get("command")}
    for part in ({key: table[key]} for key in table if key not in ("command", *together)):
        yield {"command": ["true"], **part}
    yield {"command": ["true"], **together}


def _tables(text: str, path: str | os.PathLike[str]) -> Mapping[str, object]:
    try:
        content = tomllib.loads(text)
    except ValueError as error:
        raise SettingError(f"{os.fspath(path)} cannot be read: {error}") from error
    tables = _table("the file", content, ("functions",)).get("functions")
    if not isinstance(tables, Mapping) or not tables:
        raise not_allowed("functions", tables, "one table [functions.<name>] or more")
    return tables


def _from_table(key: str, table: object, base: Path) -> ProcessFunction:
    try:
        values = _table("function", table, _KEYS)
        if isinstance(values.get("cwd"), str):
            values["cwd"] = base / values["cwd"]
        if "ready" in values:
            values["ready"] = _ready(values["ready"])
        if "stop" in values:
            values["stop"] = Stop(**_table("stop", values["stop"], ("signal", "grace")))
        return ProcessFunction(**{"command": None, **values})
    except SettingError as error:
        raise SettingError(f"function {key!r}: {error}") from error


def _ready(value: object) -> Ready:
    table = _table("ready", value, ("path", "tcp", "timeout"))
    tcp = table.pop("tcp", "path" not in table)
    if tcp is not ("path" not in table):
        raise not_allowed("ready.tcp", tcp, "true, or left out when there is a path")
    return Ready(**table)


def checked_name(key: str) -> Function:
    """Return the function that is called ``"name"`` or ``"name.namespace"`` in the settings.

    :raises SettingError: it cannot be called so.
    """
    function = split_name(key)
    if not all(map(_NAME_PART.fullmatch, function if "." in key else function[:1])):
        raise not_allowed(
            "functions", key, "'name' or 'name.namespace', of letters, digits, '-', '_' and '.'"
        )
    return function


def split_name(key: str) -> Function:
    """Undo ``str(function)``."""
    name, dot, namespace = key.rpartition(".")
    return Function(name, namespace) if dot else Function(key)


def digest(functions: Mapping[Function, ProcessFunction]) -> str:
    """Return a short text that equal functions have in common, in whatever order they are given."""
    # A relative command means another program in another directory, so the latter counts as well.
    content = sorted(
        repr((key, f.command, f.ready, sorted(f.env.items()), Path(f.cwd or ".").absolute(), f.stop))
        for key, f in functions.items()
    )
    return hashlib.sha256("\n".join(content).encode(errors="surrogateescape")).hexdigest()[:16]
