"""Where requests wait, and how many do. A place is given back however its request ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ..model import Function

EMPTY = 16
"""Functions that are kept though nobody waits for them any more, before they are looked for."""


@dataclass(eq=False, slots=True)
class Token:
    """A request that waits.

    :ivar beside: the tokens of all that wait for its function.
    """

    beside: dict[Token, None] = field(default_factory=dict)


class Places:
    """The places in which this process's requests wait.

    :ivar tokens: one for each request that waits. Whoever takes a place pops its token from here and from
        ``beside`` in a ``finally`` each: that is one call of C code, so no exception from outside can come
        before it.
    """

    __slots__ = ("_lock", "_of", "tokens")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[Function, dict[Token, None]] = {}
        self.tokens: dict[Token, Function] = {}

    def take(
        self, token: Token, function: Function, room: int | Callable[[], int], of_function: int | None
    ) -> bool:
        """Take a place, if one is free, and return whether one was.

        :param room: how many places there are, at least one. A callable inspects the server: it is called
            only if somebody waits.
        :param of_function: how many places there are for the function; ``None`` for no limit.
        """
        with self._lock:
            taken = len(self.tokens)
            if taken and taken >= (room() if callable(room) else room):
                return False
            if len(self._of) > 2 * taken + EMPTY:
                self._of = {each: tokens for each, tokens in self._of.items() if tokens}
            beside = self._of.get(function)
            if beside is None:
                beside = self._of[function] = {}
            if of_function is not None and len(beside) >= of_function:
                return False
            token.beside = beside
            self.tokens[token] = function
            beside[token] = None
            return True

    def count(self, function: Function) -> int:
        """Return how many requests wait for the function."""
        return len(self._of.get(function, ()))
