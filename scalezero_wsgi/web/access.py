"""Rules: which functions are served at all, which of them may be woken, and which requests never wake one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from typing import TYPE_CHECKING

from ..model import Function

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    Rule = Callable[[WSGIEnvironment], object]

_KEYS = {"path": "PATH_INFO", "method": "REQUEST_METHOD", "user-agent": "HTTP_USER_AGENT"}


def request_rule(rule: object) -> Rule:
    """Return a rule about requests, made from a callable or a string.

    :param rule: ``"path=/function/*/healthz"``, ``"method=OPTIONS"`` or ``"user-agent=*bot*"``, where ``*``
        stands for any text and case matters in paths only; or a callable that is given ``environ``.
    :raises ValueError: it is neither.
    """
    if callable(rule):
        return rule
    kind, equals, pattern = rule.partition("=") if isinstance(rule, str) else ("", "", "")
    key = _KEYS.get(kind.strip().lower())
    if key is None or not equals or not pattern.strip():
        raise ValueError(
            f"{rule!r} is not a rule; allowed are 'path=…', 'method=…', 'user-agent=…' and callables"
        )
    matches = re.compile(translate(pattern.strip()), re.NOFLAG if key == "PATH_INFO" else re.IGNORECASE).match
    return lambda environ: matches(environ.get(key, ""))


class Rules:
    """Which functions are served, and which requests may wake them.

    :param no_wake: requests that match one of these never wake.
    :param allow: patterns of the functions that are served; ``None``: all.
    :param deny: patterns of the functions that are not served.
    :param wake: patterns of the functions that may be woken; ``None``: all.
    :param default_namespace: the namespace that patterns, like requests, may leave out.
    """

    __slots__ = ("_allowed", "_denied", "_no_wake", "_wake")

    def __init__(
        self,
        no_wake: Iterable[Rule] = (),
        allow: Iterable[str] | None = None,
        deny: Iterable[str] = (),
        wake: Iterable[str] | None = None,
        default_namespace: str = "",
    ) -> None:
        self._no_wake = tuple(no_wake)
        # None: there is no such rule.
        self._allowed = None if allow is None else function_rule(allow, default_namespace)
        self._denied = function_rule(deny, default_namespace) if deny else None
        self._wake = None if wake is None else function_rule(wake, default_namespace)

    def is_served(self, function: Function) -> bool:
        """Return whether clients may see the function. All others are answered as unknown."""
        if self._allowed is not None and not self._allowed(function):
            return False
        return self._denied is None or not self._denied(function)

    def may_be_woken(self, function: Function) -> bool:
        """Return whether any request may wake the function, if it is served."""
        return self._wake is None or self._wake(function)

    def is_ours(self, function: Function) -> bool:
        """Return whether the function may be stopped and started: it is served, and requests may wake it."""
        return self.is_served(function) and self.may_be_woken(function)

    def may_wake(self, function: Function, environ: WSGIEnvironment) -> bool:
        """Return whether this request may wake the function."""
        if self._wake is not None and not self._wake(function):
            return False
        return not any(rule(environ) for rule in self._no_wake)


def function_rule(patterns: Iterable[str], default_namespace: str = "") -> Callable[[Function], bool]:
    """Return a test of functions by patterns such as ``"hello"``, ``"*.prod"`` or ``"job-*"``."""
    matches = re.compile("|".join(translate(pattern) for pattern in patterns) or r"(?!)").match

    def matched(function: Function) -> bool:
        if matches(str(function)):
            return True
        return function.namespace == default_namespace and matches(function.name) is not None

    return matched
