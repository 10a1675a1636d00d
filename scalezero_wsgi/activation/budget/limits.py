"""What there is, and what a function needs of it: by the settings, and by its labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..._lib.sizes import memory, shown
from ...model import Function, ReplicaStatus
from ..idling.labels import LabelWarnings

BUDGET = "scalezero.budget"
"""The label with the group whose budget a function counts in, besides that of all."""

MEMORY = "scalezero.memory"
"""The label with the memory that each replica of a function needs."""


class Need(NamedTuple):
    """What a function needs while it is up or paused.

    :ivar group: of functions; empty: none.
    :ivar memory: bytes, of all its replicas; 0: it does not say.
    """

    group: str = ""
    memory: int = 0


class Limit(NamedTuple):
    """How much there is of one thing.

    :ivar setting: ``"max_running"`` or ``"max_memory"``.
    :ivar group: for which functions; empty: for all.
    :ivar most: functions, or bytes.
    """

    setting: str
    group: str
    most: int

    def amount(self, need: Need) -> int:
        """Return how much of it a function takes."""
        if self.group not in ("", need.group):
            return 0
        return 1 if self.setting == "max_running" else need.memory

    def __str__(self) -> str:
        """Return it as it stands in the settings."""
        most = str(self.most) if self.setting == "max_running" else shown(self.most)
        return f"{self.setting}_of[{self.group!r}] = {most}" if self.group else f"{self.setting} = {most}"


Shortage = Mapping[Limit, int]
"""How much is missing of what."""


class Limits:
    """All limits. Safe for threads and after a fork.

    :param running: how many functions at once; ``None``: as many as like.
    :param memory: bytes; ``None``: it does not matter.
    :param running_of: the first for groups.
    :param memory_of: the second for groups.
    """

    def __init__(
        self,
        running: int | None = None,
        memory: int | None = None,
        running_of: Mapping[str, int] | None = None,
        memory_of: Mapping[str, int] | None = None,
    ) -> None:
        told = [
            *(("max_running", group, most) for group, most in {"": running, **(running_of or {})}.items()),
            *(("max_memory", group, most) for group, most in {"": memory, **(memory_of or {})}.items()),
        ]
        self.limits = [Limit(setting, group, most) for setting, group, most in told if most is not None]
        self._groups = sorted({limit.group for limit in self.limits} - {""})
        self._warnings = LabelWarnings()

    def need(self, function: Function, status: ReplicaStatus, replicas: int) -> Need:
        """Return what so many replicas of a function need. A wrong label is warned about, and not heeded."""
        texts: Mapping[str, str] = {**status.annotations, **status.labels}
        group = texts.get(BUDGET, "").strip()
        if group and group not in self._groups:
            allowed = (
                f"one of {', '.join(self._groups)}" if self._groups else "left out, for there are no groups"
            )
            self._warn(function, BUDGET, group, f"{allowed}; it counts in no group")
            group = ""
        text = texts.get(MEMORY)
        if text is None:
            return Need(group)
        try:
            return Need(group, memory(text) * max(1, replicas))
        except ValueError:
            self._warn(function, MEMORY, text, "an amount such as 512MiB or 8GiB; it counts as not said")
            return Need(group)

    def beyond(self, need: Need) -> Limit | None:
        """Return a limit that a function exceeds all by itself; ``None``: there is none."""
        return next((limit for limit in self.limits if limit.amount(need) > limit.most), None)

    def shortage(self, held: Iterable[Need], need: Need) -> dict[Limit, int]:
        """Return what is missing for a function beside others; empty: it fits."""
        return self.missing(self.taken(held), need)

    def taken(self, held: Iterable[Need]) -> dict[Limit, int]:
        """Return how much of each limit functions take together."""
        held = list(held)
        return {limit: sum(map(limit.amount, held)) for limit in self.limits}

    def missing(self, taken: Mapping[Limit, int], need: Need, own: Need | None = None) -> dict[Limit, int]:
        """Return what is missing for a function beside what is taken; empty: it fits.

        :param own: what of that it has taken itself.
        """
        short = {}
        for limit, sum_ in taken.items():
            amount = limit.amount(need)
            missing = sum_ - (0 if own is None else limit.amount(own)) + amount - limit.most
            if amount and missing > 0:
                short[limit] = missing
        return short

    def _warn(self, function: Function, label: str, text: str, line: str) -> None:
        self._warnings(function, label, text, f"is {text!r}; it must be {line}")
