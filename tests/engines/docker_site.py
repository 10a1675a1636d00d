"""A Flask app whose view passes requests on to containers."""

from __future__ import annotations

import os

from flask import Flask, request
from werkzeug.wrappers import Response

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.providers import make_provider
from scalezero_wsgi.proxy import FunctionProxy

app = Flask(__name__)
proxy = FunctionProxy()


@app.get("/other")
def other() -> str:
    return "here"


@app.get("/function/<path:_>")
def function(_: str) -> Response:
    return Response.from_app(proxy, request.environ)


app.wsgi_app = ScaleZeroMiddleware(  # type: ignore[method-assign]
    app.wsgi_app,
    make_provider(os.environ["PROVIDER"]),
    settings=Settings.from_environ(),
    stale_for=float(os.environ.get("STALE_FOR", "5")),
)
