"""``scalezero-wsgi completion``: what has a shell complete the command's words and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ..model import MissingExtra

SHELLS = ("bash", "zsh", "fish")

FILES, DIRECTORIES = ("FILE", "PROVIDER"), ("DIR",)
"""The arguments, by their names in the help, of which the shell is to complete files and directories."""


def completion(parser: argparse.ArgumentParser, shell: str) -> None:
    """Print a script for a shell.

    :param parser: of the whole command. Its arguments are marked with what they are completed by.
    :param shell: one of ``SHELLS``.
    :raises MissingExtra: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise MissingExtra("shtab", "completion") from None
    for action in _actions(parser):
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # argparse has no other way to look at them
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
