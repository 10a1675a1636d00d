import requests
from flask import Flask, Response, request

from scalezero_wsgi.integrations.flask import ScaleZero
from scalezero_wsgi.providers import ProcessProvider

app = Flask(__name__)
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@app.route("/function/<name>", defaults={"path": ""}, methods=METHODS)
@app.route("/function/<name>/<path:path>", methods=METHODS)
def function(name, path):
    url = f"{request.environ['scalezero_wsgi.endpoint']}/{path}"
    try:
        answer = requests.request(
            request.method,
            url,
            params=request.query_string,
            data=request.get_data(),
            headers={"Content-Type": request.content_type},
            timeout=30,
        )
    except requests.RequestException:
        return Response("The function cannot be reached.\n", 502, content_type="text/plain")
    return Response(answer.content, answer.status_code, content_type=answer.headers.get("Content-Type"))


ScaleZero(app, ProcessProvider.from_toml("functions.toml"), max_wait="20s")
