"""``FunctionProxy`` in front of one function, whose URL is in ``FUNCTION``; gunicorn serves ``app``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from scalezero_wsgi.model import Function
from scalezero_wsgi.proxy import FunctionProxy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

proxy = FunctionProxy(body_timeout=float(os.environ.get("BODY_TIMEOUT", "60")))


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    environ["scalezero_wsgi.function"] = Function("hello")
    environ["scalezero_wsgi.endpoint"] = os.environ["FUNCTION"]
    return proxy(environ, start_response)
