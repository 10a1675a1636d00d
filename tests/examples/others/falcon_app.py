import falcon
import requests

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.providers import ProcessProvider


class Function:
    def on_get(self, request, response, name, path=""):
        try:
            answer = requests.get(f"{request.env['scalezero_wsgi.endpoint']}/{path}", timeout=30)
        except requests.RequestException as error:
            raise falcon.HTTPBadGateway from error
        response.status = answer.status_code
        response.data = answer.content


app = falcon.App()
app.add_route("/function/{name}", Function())
app.add_route("/function/{name}/{path:path}", Function())

application = ScaleZeroMiddleware(app, ProcessProvider.from_toml("functions.toml"))
