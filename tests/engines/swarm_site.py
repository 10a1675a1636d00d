"""A Flask app whose view proxies to the services of a swarm."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.providers import SwarmProvider
from scalezero_wsgi.proxy import FunctionProxy

app = Flask(__name__)
proxy = FunctionProxy()


@app.route("/other")
def other() -> str:
    return "other"


@app.route("/function/<path:path>")
def function(path: str) -> Any:
    return proxy  # Flask lets a view answer with another application


provider = SwarmProvider(f"unix://{os.environ['SCALEZERO_TEST_SWARM']}/docker.sock", timeout=1)
app.wsgi_app = ScaleZeroMiddleware(  # type: ignore[method-assign]
    app.wsgi_app,
    provider,
    settings=Settings.from_environ(),
    stale_for=float(os.environ.get("STALE_FOR", "5")),
)
