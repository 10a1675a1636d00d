"""The file of ``serve --config``: settings by their names, and options of the command, as TOML.

It is a file of its own and no table in the file of functions: there are settings for any provider, and they
are read at the start alone, while functions may change under a server (``--hot``).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..model import SettingError
from ..settings import Settings


def _text(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"{value!r} is not allowed; it must be a string")


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError(f"{value!r} is not allowed; it must be an integer of 1 or more")


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is not allowed; it must be true or false")


OPTIONS: dict[str, Callable[[object], Any]] = {
    "provider": _text,
    "bind": _text,
    "workers": _count,
    "threads": _count,
    "trust_proxy": _switch,
    "hot": _switch,
}


@dataclass(frozen=True)
class ConfigFile:
    """What such a file says.

    :ivar options: of the command.
    :ivar settings: of the middleware, as they stand there.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ConfigFile:
        """Read it.

        :raises SettingError: it cannot be read, or a key or a value is not allowed; the file is named.
        :raises MissingExtra: a setting needs a library that is not installed.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingError(f"{os.fspath(path)} cannot be read: {error}") from error
        allowed = [*OPTIONS, *(setting.name for setting in fields(Settings))]
        options: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        for key, value in content.items():
            if key not in allowed:
                near = difflib.get_close_matches(key.lower().removeprefix("scalezero_"), allowed)
                hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(allowed)}"
                raise SettingError(f"{os.fspath(path)}: unknown key {key!r} ({value!r}); {hint}")
            if key not in OPTIONS:
                settings[key] = value
                continue
            try:
                options[key] = OPTIONS[key](value)
            except ValueError as error:
                raise SettingError(f"{os.fspath(path)}: {key}: {error}") from None
        try:
            Settings(**settings)
        except SettingError as error:
            raise SettingError(f"{os.fspath(path)}: {error}") from None
        return cls(options, settings)
