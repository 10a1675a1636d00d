from flask import Flask

from scalezero_wsgi.integrations.flask import ScaleZero
from scalezero_wsgi.proxy import FunctionProxy

app = Flask(__name__)
proxy = FunctionProxy()


@app.route("/function/<path:_>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def function(_):
    return proxy  # Flask answers with what a WSGI app answers


ScaleZero(app, "docker://?network=functions", allow=["hello"], idle_after="15m")
