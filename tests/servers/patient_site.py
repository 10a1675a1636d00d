"""A small app under the patient worker, with time-outs that a test can wait for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from scalezero_wsgi.servers import patient


class QuickWorker(patient.PatientWorker):
    head_timeout = body_timeout = 1.0


if "QUICK" in os.environ:
    patient.ClientSocket.body_timeout = 1.0
    patient.ClientSocket.answer_timeout = 1.0


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Tell the body's length; ``/big`` answers with 64 MiB, ``/unread`` reads nothing."""
    path = environ["PATH_INFO"]
    if path == "/big":
        start_response("200 OK", [("Content-Length", str(2**26))])
        return (b"x" * 2**20 for _ in range(2**6))
    length = "unread"
    if path != "/unread":
        try:
            length = str(len(environ["wsgi.input"].read()))
        except OSError as error:
            length = type(error).__name__
    body = f"{length} {environ.get('HTTP_EXPECT', '-')}\n".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
