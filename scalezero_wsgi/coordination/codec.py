"""The JSON form of shared statuses and workers' reports.

Hosts may run different versions during an upgrade, so fields that this version does not know are ignored.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..model import Function, ReplicaStatus
from .base import (
    CoordinationError,
    Drain,
    DrainPhase,
    Failure,
    ProviderFault,
    SharedStatus,
    Start,
    WorkerReport,
)

_REPORT_FIELDS = ("in_flight", "waiting", "unused_for", "acknowledged", "kept_for")
_LATER_FIELDS = frozenset({"acknowledged", "kept_for"})  # which reports of 0.1's first release do not have
_PARTS = {"status": ReplicaStatus, "failure": Failure, "start": Start, "trouble": ProviderFault}


def pack(shared: SharedStatus) -> str:
    """Return a shared status as JSON."""
    return json.dumps(_fields(shared), default=_plain, skipkeys=True)


def unpack(text: str, passed: float) -> SharedStatus | None:
    """Return the shared status that JSON holds, as it is by now; ``None`` if it cannot be read.

    :param passed: seconds since it was published, by the store's clock.
    """
    if passed < -1.0:
        return None  # the clock was set back, so its age is unknown
    try:
        values = json.loads(text)
        parts = {name: _make(kind, values.get(name)) for name, kind in _PARTS.items()}
        durations = tuple(map(_duration, values.get("durations", ())))
        told = values.get("paused_for")
        paused_for = None if told is None else _duration(told)
        shared = SharedStatus(
            **parts, age=values["age"], name=values["name"], durations=durations, paused_for=paused_for
        )
        return shared.after(max(0.0, passed))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def pack_row(row: WorkerReport) -> str:
    """Return a worker's report as JSON, without the worker's name."""
    return json.dumps(
        {
            field: [[*function, value] for function, value in getattr(row, field).items()]
            for field in _REPORT_FIELDS
        }
    )


@functools.lru_cache(
    maxsize=32
)  # they are read more often than written, and with many functions they are long
def unpack_row(worker: str, text: str) -> WorkerReport:
    """Return the report that JSON holds.

    :raises CoordinationError: the text is not a report.
    """
    try:
        values = json.loads(text)
        return WorkerReport(
            worker,
            **{
                field: {Function(name, namespace): value for name, namespace, value in values[field]}
                for field in _REPORT_FIELDS
                if field in values or field not in _LATER_FIELDS
            },
        )
    except (ValueError, LookupError, TypeError) as error:
        raise CoordinationError(f"a worker's row cannot be read: {error!r}") from error


def read_drain(phase: str, epoch: int | str) -> Drain:
    """Return the drain that a store holds.

    :raises CoordinationError: this version does not know the phase.
    """
    try:
        return Drain(DrainPhase(phase), int(epoch))
    except ValueError as error:
        raise CoordinationError(f"a drain cannot be read: {error}") from error


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _make(kind: Any, values: Mapping[str, Any] | None) -> Any:
    if values is None:
        return None
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


def _duration(value: Any) -> float:
    duration = float(value)
    if not (math.isfinite(duration) and duration >= 0):
        raise ValueError(f"{value!r} is not a duration")
    return duration


def _plain(value: object) -> object:
    """Convert a value that ``json`` cannot write.

    That is a dataclass, a mapping of a provider's own type, or the value of a label that is not a string.
    """
    if is_dataclass(value):
        return _fields(value)
    return dict(value) if isinstance(value, Mapping) else str(value)
