"""A Flask app in front of an OpenFaaS gateway; its view hands requests on to the package's proxy."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.providers import make_provider
from scalezero_wsgi.proxy import FunctionProxy

app = Flask(__name__)
proxy: Any = FunctionProxy()


@app.route("/function/<path:_>", methods=["GET", "POST"])
def function(_: str) -> Any:
    return proxy


@app.route("/other")
def other() -> str:
    return "at once"


app.wsgi_app = ScaleZeroMiddleware(  # type: ignore[method-assign]
    app.wsgi_app,
    make_provider(os.environ["PROVIDER_URL"]),
    max_wait=float(os.environ.get("MAX_WAIT", "25")),
    stale_for=float(os.environ.get("STALE_FOR", "5")),
)
