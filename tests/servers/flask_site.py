"""A Flask app that proxies to functions with requests."""

from __future__ import annotations

import requests
from flask import Flask, Response, request

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from tests.servers.site import provider as make_provider
from tests.servers.site import settings

provider = make_provider()
app = Flask(__name__)


@app.route("/counts")
def counts() -> dict[str, int]:
    return {"queries": provider.queries, "starts": provider.starts}


@app.route("/function/<name>", defaults={"path": ""}, methods=["GET", "POST"])
@app.route("/function/<name>/<path:path>", methods=["GET", "POST"])
def proxy(name: str, path: str) -> Response:
    answer = requests.request(
        request.method,
        f"{request.environ['scalezero_wsgi.endpoint']}/{path}",
        params=request.args.to_dict(),
        data=request.get_data(),
        headers={"X-From": name},
        timeout=10,
    )
    return Response(answer.content, answer.status_code, content_type=answer.headers["Content-Type"])


app.wsgi_app = ScaleZeroMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, provider, settings=Settings.from_mapping(settings, prefix="")
)
