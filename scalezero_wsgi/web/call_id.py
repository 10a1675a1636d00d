"""The id by which a client, the log and the events tell one request: ``X-Call-Id``."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

CALL_ID = "scalezero_wsgi.call_id"

_CALL_ID = re.compile(r"[!-~]{1,128}", re.ASCII)


def call_id_of(environ: WSGIEnvironment) -> str:
    """Return the request's own id, if it is fit for a header, a page and a log line; else one of ours.

    The id stays the same for the whole request.
    """
    call_id: str | None = environ.get(CALL_ID)
    if call_id is None:
        given: str = environ.get("HTTP_X_CALL_ID", "")
        call_id = environ[CALL_ID] = given if _CALL_ID.fullmatch(given) else str(uuid.uuid4())
    return call_id
