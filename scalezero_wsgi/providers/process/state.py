"""The states of a function's process, the ways from one to the next, and their form on disk.

::

                      launched             answered
    STOPPED ───────────────▶ STARTING ───────────────▶ READY
       ▲  ▲                   │    │                   │  │
       │  └───── exited ──────┘    │                   │  │
       ├──────── exited ───────────│───────────────────┘  │
       │                           │ stopping             │ stopping
       │         gone              ▼                      │
       └─────────────────────── STOPPING ◀────────────────┘

    STARTING, READY ── paused ──▶ PAUSED ── resumed ──▶ STARTING
                                    │ └──── stopping ─▶ STOPPING
                                    └────── exited ───▶ STOPPED

A process that is not ready in time is stopped, as one that nobody needs any more is. A launch that fails
stays STOPPED, with the reason as its failure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

from ...model import ReplicaStatus
from .group import NO_PROCESS, ProcessId

HOST = "127.0.0.1"
"""Where every process listens."""


class Phase(Enum):
    """What a function's process is at."""

    STOPPED = "stopped"
    """There is no process."""
    STARTING = "starting"
    """It runs and has not answered yet."""
    READY = "ready"
    """It has answered."""
    PAUSED = "paused"
    """It has been halted, with all its children, and keeps its memory."""
    STOPPING = "stopping"
    """It was asked to end, and is killed if it does not."""


TRANSITIONS = {
    Phase.STOPPED: frozenset({Phase.STOPPED, Phase.STARTING}),
    Phase.STARTING: frozenset({Phase.READY, Phase.PAUSED, Phase.STOPPING, Phase.STOPPED}),
    Phase.READY: frozenset({Phase.PAUSED, Phase.STOPPING, Phase.STOPPED}),
    Phase.PAUSED: frozenset({Phase.STARTING, Phase.STOPPING, Phase.STOPPED}),
    Phase.STOPPING: frozenset({Phase.STOPPING, Phase.STOPPED}),
}
"""Which phases may follow each. STOPPING follows itself when its kill is brought forward."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the workers tell each other of a function's process.

    Times are ``time.monotonic()`` in seconds, which all processes of one host have in common.

    :param process: the process; ``NO_PROCESS`` while STOPPED.
    :param started_at: when it was launched, or resumed.
    :param kill_at: while STOPPING, when it is killed if it still runs.
    :param failure: why it does not run, or is being stopped; fit for the operator, not for clients.
    """

    phase: Phase = Phase.STOPPED
    process: ProcessId = NO_PROCESS
    port: int = 0
    started_at: float = 0.0
    kill_at: float = math.inf
    failure: str | None = None

    # -- the ways from one phase to the next

    def launched(self, process: ProcessId, port: int, now: float) -> Self:
        """Return the state of a process that has just been started."""
        return self._to(Phase.STARTING, process=process, port=port, started_at=now, failure=None)

    def not_launched(self, failure: str) -> Self:
        """Return the state after a command that could not be started."""
        return self._stopped(failure)

    def answered(self) -> Self:
        """Return the state of a process that has answered."""
        return self._to(Phase.READY)

    def paused(self) -> Self:
        """Return the state of a process that is halted."""
        return self._to(Phase.PAUSED)

    def resumed(self, now: float) -> Self:
        """Return the state of a process that goes on: it is to answer once more, for much may have gone on
        without it."""
        return self._to(Phase.STARTING, started_at=now)

    def exited(self, failure: str) -> Self:
        """Return the state after a process that ended although nobody asked it to."""
        return self._stopped(failure)

    def stopping(self, kill_at: float, failure: str | None = None) -> Self:
        """Return the state of a process that was asked to end.

        :param kill_at: when it is killed; one that is set already is brought forward, never put off.
        :param failure: why, if not at a user's wish; otherwise a failure from before stays.
        """
        kill_at = min(kill_at, self.kill_at)
        return self._to(Phase.STOPPING, kill_at=kill_at, failure=failure or self.failure)

    def gone(self) -> Self:
        """Return the state after a process that was asked to end, and has with all its children."""
        return self._stopped(self.failure)

    def _stopped(self, failure: str | None) -> Self:
        return self._to(
            Phase.STOPPED, process=NO_PROCESS, port=0, started_at=0.0, kill_at=math.inf, failure=failure
        )

    def _to(self, phase: Phase, **changes: Any) -> Self:
        if phase not in TRANSITIONS[self.phase]:
            raise ValueError(f"a process that is {self.phase.value} cannot become {phase.value}")
        return replace(self, phase=phase, **changes)

    # -- what follows from a state

    @property
    def runs(self) -> bool:
        """Whether there is a process, be it one that is being stopped."""
        return self.phase is not Phase.STOPPED

    def due(self, ready_timeout: float) -> float:
        """Return when something has to happen even if the process does nothing.

        :param ready_timeout: seconds within which it must answer.
        """
        match self.phase:
            case Phase.STARTING:
                return self.started_at + ready_timeout
            case Phase.STOPPING:
                return self.kill_at
            case _:
                return math.inf

    def status(self) -> ReplicaStatus:
        """Return what the provider tells of it."""
        if self.phase in (Phase.STARTING, Phase.READY):
            available = int(self.phase is Phase.READY)
            return ReplicaStatus(1, available, max_replicas=1, endpoint=f"http://{HOST}:{self.port}")
        paused = self.phase is Phase.PAUSED
        return ReplicaStatus(0, 0, max_replicas=1, failure=self.failure, paused=paused)

    # -- on disk, as earlier releases have it: their workers may share the directory during an upgrade

    def to_file(self) -> dict[str, Any]:
        """Return the content of the state's file."""
        # Not "false" of the others: an earlier release reads no file with a key that it does not know.
        paused = {"paused": True} if self.phase is Phase.PAUSED else {}
        return paused | {
            "pid": self.process.pid,
            "started": self.process.started,
            "port": self.port,
            "since": self.started_at,
            "ready": self.phase is Phase.READY,
            "stop_by": self.kill_at if self.phase is Phase.STOPPING else None,
            "failure": self.failure,
        }

    @classmethod
    def from_file(cls, content: dict[str, Any]) -> Self:
        """Read the content of the state's file.

        :raises TypeError: it is none.
        """
        return cls._of(**content)

    @classmethod
    def _of(
        cls,
        *,
        pid: int = 0,
        started: str = "",
        port: int = 0,
        since: float = 0.0,
        ready: bool = False,
        stop_by: float | None = None,
        failure: str | None = None,
        paused: bool = False,
    ) -> Self:
        if not pid:
            return cls(failure=failure)
        running = Phase.PAUSED if paused else Phase.READY if ready else Phase.STARTING
        phase = running if stop_by is None else Phase.STOPPING
        return cls(
            phase, ProcessId(pid, started), port, since, math.inf if stop_by is None else stop_by, failure
        )
