import bottle
import requests

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.providers import ProcessProvider

app = bottle.Bottle()


@app.get("/function/<name>")
@app.get("/function/<name>/<path:path>")
def function(name, path=""):
    try:
        answer = requests.get(f"{bottle.request.environ['scalezero_wsgi.endpoint']}/{path}", timeout=30)
    except requests.RequestException:
        bottle.abort(502, "The function cannot be reached.")
    return bottle.HTTPResponse(answer.content, answer.status_code)


application = ScaleZeroMiddleware(app, ProcessProvider.from_toml("functions.toml"))
