"""Warn about functions' labels that say what is not allowed."""

from __future__ import annotations

import logging

from ..._lib.bounded import Bounded
from ...model import Function

logger = logging.getLogger("scalezero_wsgi")

WARNED = 1_000
"""Functions and labels about which it is remembered that they were warned about."""


class LabelWarnings:
    """Warns about each value once. Safe for threads and after a fork."""

    def __init__(self) -> None:
        self._warned: Bounded[tuple[Function, str], str] = Bounded(WARNED)

    def __call__(self, function: Function, label: str, text: str, line: str) -> None:
        """Warn, unless it was done for this value.

        :param text: the value.
        :param line: what is wrong with it, and what is done instead.
        """
        if self._warned.get((function, label)) != text:
            self._warned.set((function, label), text)
            logger.warning("%s: its label %s %s", function, label, line)
