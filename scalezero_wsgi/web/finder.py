"""Which function a request is for, and the short way to what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._lib.bounded import Bounded
from ..activation.function_cache import FunctionCache
from ..activation.state import FunctionState
from ..model import Function, FunctionNotFound
from .access import Rules
from .routing import Names

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..settings import Settings


class Finder:
    """Finds functions. Safe for threads; :attr:`known` takes no lock.

    :param cut: how long the prefix of functions' paths is.
    :ivar segments: what is known of functions, by the part of a path that names them.
    :ivar known: looks into them, unless each request has to be looked at.
    """

    known: Callable[[str], FunctionState | None]

    def __init__(
        self, settings: Settings, names: Names, rules: Rules, cache: FunctionCache, cut: int
    ) -> None:
        self._route = settings.route
        self._names = names
        self._rules = rules
        self._cache = cache
        self._cut = cut
        self.segments: Bounded[str, FunctionState] = Bounded(settings.cache_size)
        # With rules about requests each has to be looked at: the short way is closed then.
        self.known = _nothing if settings.no_wake else self.segments.get

    def find(self, environ: WSGIEnvironment, path: str) -> Function | None:
        """Return the function that a request is for; ``None`` if it is not for one.

        :raises InvalidFunctionName: it is for something that cannot be a function's name.
        :raises FunctionNotFound: the function is not served.
        """
        route, segment = self._route, ""
        if callable(route):
            found = route(environ)
            if found is None:
                return None
            function = self._names.check(*found)
        else:
            segment = path[self._cut :].partition("/")[0]
            if not segment:
                return None
            function = self._names.split(segment)
        if not self._rules.is_served(function):
            raise FunctionNotFound(*function)
        state = self._cache.find_state(function)
        # The short way asks no rule, and may end in a replay, which activates.
        new = segment and state is not None and self.segments.get(segment) is not state
        if state is not None and new and self._rules.may_be_woken(function):
            self.segments.set(segment, state)
        return function


def _nothing(_: str) -> None:
    return None
