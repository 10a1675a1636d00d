from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.providers import OpenFaaSProvider
from scalezero_wsgi.proxy import FunctionProxy

provider = OpenFaaSProvider(
    "http://gateway.openfaas:8080",
    secret_mount_path="/var/secrets/gateway",  # the files basic-auth-user and basic-auth-password
    endpoint="http://{name}.{namespace}.svc:8080",
    ready="/_/ready",  # of of-watchdog; leave it out for another one
)
application = ScaleZeroMiddleware(FunctionProxy(), provider, names="openfaas", idle_after="15m")
