"""One function's life: since when it is up, paused or at zero, and how it goes on with what is told of it.

Nothing here looks at a clock or a file. Times are seconds since the epoch; one that lies before what is known
already counts as that.

Of a life that ended without a word (the function crashed, or somebody else scaled it) it is known until when
it was last seen; from there to the moment at which its end was noticed it is *not known*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

RACE = 2.0
"""Seconds by which somebody may see that a function is up before its start is told."""


class State(StrEnum):
    """What a function is."""

    AT_ZERO = "at zero"
    UP = "up"
    PAUSED = "paused"
    UNKNOWN = "not known"


class Span(NamedTuple):
    """A time that a function was something other than at zero.

    :ivar replicas: how many were up, or may have been.
    """

    state: State
    begin: float
    end: float
    replicas: int


class Life(NamedTuple):
    """What is known of a function now.

    :ivar since: when this state began.
    :ivar seen_at: when it was last known to be in it.
    """

    state: State
    since: float
    seen_at: float
    replicas: int = 1

    def spans(self, until: float) -> list[Span]:
        """Return what the state was up to a moment: beyond the one at which it was seen it is not known."""
        if self.state is State.AT_ZERO:
            return []
        seen_at = min(max(self.since, self.seen_at), until)
        parts = [
            Span(self.state, self.since, seen_at, self.replicas),
            Span(State.UNKNOWN, seen_at, until, self.replicas),
        ]
        return [part for part in parts if part.begin < part.end]


class Change(NamedTuple):
    """How a life goes on.

    :ivar spans: what has ended by it.
    :ivar starts: when functions were started, of which there was not yet a word.
    """

    life: Life
    spans: Sequence[Span] = ()
    starts: Sequence[float] = ()


def requested(life: Life, at: float, took: float, replicas: int) -> Change:
    """A function that was at zero, or paused, was started.

    :param took: seconds for which the provider was called.
    """
    begin = max(life.since, at - took)
    if life.state is State.UP and life.since >= at - took - RACE:
        return Change(life._replace(seen_at=at, replicas=replicas))  # it was seen before it was told
    after = Life(State.UP, begin, at, replicas)
    if life.state is State.PAUSED:  # it was still paused, or the provider would have said so
        life = life._replace(seen_at=begin)
    return Change(after, life.spans(begin), [begin])


def ready(life: Life, at: float, after: float, led: bool) -> Change:
    """A function became available.

    :param after: seconds after its activation began.
    :param led: whether this is said by the worker that started it.
    """
    if life.state is State.UP:
        return Change(life._replace(seen_at=max(life.seen_at, at)))
    if not led:
        return Change(life)
    # Who has started it has died before it could tell.
    return requested(life, at, after, max(1, life.replicas))


def stopped(life: Life, at: float) -> Change:
    """A function that was up, or paused, is at zero."""
    return _ended(life, at, Life(State.AT_ZERO, max(at, life.since), at, life.replicas))


def paused(life: Life, at: float) -> Change:
    """A function that was up is paused."""
    return _ended(life, at, Life(State.PAUSED, max(at, life.since), at, life.replicas))


def _ended(life: Life, at: float, after: Life) -> Change:
    """It was stopped by us, so it was what it was up to then."""
    return Change(after, life._replace(seen_at=max(at, life.since)).spans(max(at, life.since)))


def is_news(life: Life, state: State, replicas: int) -> bool:
    """Return whether what the provider says of a function is not known yet."""
    return life.state is not state or (state is State.UP and replicas != life.replicas)


def seen(life: Life, at: float, state: State, replicas: int) -> Change:
    """The provider was asked, and answered so."""
    if at <= life.since:
        return Change(life)
    if not is_news(life, state, replicas):
        return Change(life._replace(seen_at=at))
    after = Life(state, at, at, max(1, replicas))
    if life.state is State.AT_ZERO:
        unknown = Span(State.UNKNOWN, max(life.since, life.seen_at), at, max(1, replicas))
        starts = [at] if state is State.UP else []
        return Change(after, [unknown] if unknown.begin > -math.inf else [], starts)
    if life.state is state:  # another count
        return Change(after, life._replace(seen_at=at).spans(at))
    return Change(after, life.spans(at), [at] if state is State.UP else [])


UNHEARD = Life(State.AT_ZERO, -math.inf, -math.inf)
"""The life of a function of which nothing was heard before."""
