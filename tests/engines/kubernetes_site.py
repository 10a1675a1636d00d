"""A Flask app that proxies to functions in Kubernetes: SITE_PROVIDER is the provider's URL."""

from __future__ import annotations

import json
import os
from typing import Any

from flask import Flask

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.providers import make_provider
from scalezero_wsgi.proxy import FunctionProxy

app = Flask(__name__)
proxy = FunctionProxy()


@app.route("/ping")
def ping() -> str:
    return "pong"


@app.route("/function/<path:path>")
def function(path: str) -> Any:
    return proxy  # Flask answers with what a WSGI app answers


settings = Settings.from_mapping(json.loads(os.environ.get("SITE_SETTINGS", "{}")), prefix="")
app.wsgi_app = ScaleZeroMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, make_provider(os.environ["SITE_PROVIDER"]), settings=settings
)
