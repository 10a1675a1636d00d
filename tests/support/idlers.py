"""The idlers that middlewares have started in this process."""

from __future__ import annotations

import os

from scalezero_wsgi.activation.idling import idler


def end_idlers() -> None:
    """End all of them: none is to outlive its test."""
    for each in list(idler._idlers):
        each.stop(os.getpid())
