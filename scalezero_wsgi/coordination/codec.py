"""What is known of a function, and what a worker does, as JSON.

Hosts may run different versions for a while, so a field that this one does not have is passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..model import Function, ReplicaStatus
from .base import CoordinationError, Failure, ProviderFault, SharedStatus, Start, WorkerReport

_COUNTS = ("in_flight", "waiting", "unused_for")
_PARTS = {"status": ReplicaStatus, "failure": Failure, "start": Start, "trouble": ProviderFault}


def pack(known: SharedStatus) -> str:
    """As text."""
    return json.dumps(_named(known), default=_plain, skipkeys=True)


def unpack(text: str, passed: float) -> SharedStatus | None:
    """From text; ``None`` if it cannot be read.

    :param passed: seconds since it was told, by the store's clock.
    """
    if passed < -1.0:
        return None  # the clock was set back: nobody knows how old it is
    try:
        told = json.loads(text)
        parts = {name: _made(kind, told.get(name)) for name, kind in _PARTS.items()}
        durations = tuple(map(_duration, told.get("durations", ())))
        known = SharedStatus(**parts, age=told["age"], name=told["name"], durations=durations)
        return known.after(max(0.0, passed))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def pack_row(row: WorkerReport) -> str:
    """As text."""
    told = {name: getattr(row, name) for name in _COUNTS}
    return json.dumps(
        {name: [[*function, value] for function, value in values.items()] for name, values in told.items()}
    )


def unpack_row(worker: str, text: str) -> WorkerReport:
    """From text.

    :raises CoordinationError: the text is not such a record.
    """
    try:
        told = json.loads(text)
        return WorkerReport(
            worker,
            **{
                field: {Function(name, namespace): value for name, namespace, value in told[field]}
                for field in _COUNTS
            },
        )
    except (ValueError, LookupError, TypeError) as error:
        raise CoordinationError(f"a worker's row cannot be read: {error!r}") from error


def _named(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _made(kind: Any, told: Mapping[str, Any] | None) -> Any:
    if told is None:
        return None
    return kind(**{field.name: told[field.name] for field in fields(kind) if field.name in told})


def _duration(value: Any) -> float:
    duration = float(value)
    if not (math.isfinite(duration) and duration >= 0):
        raise ValueError(f"{value!r} is not a duration")
    return duration


def _plain(value: object) -> object:
    """A part, a provider's own kind of mapping, or a label that is no text."""
    if is_dataclass(value):
        return _named(value)
    return dict(value) if isinstance(value, Mapping) else str(value)
