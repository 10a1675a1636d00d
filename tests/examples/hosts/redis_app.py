from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.proxy import FunctionProxy

# SCALEZERO_COORDINATION has the password in it, so it stands in the environment.
settings = Settings.from_environ()
application = ScaleZeroMiddleware(FunctionProxy(), "swarm://", settings=settings, idle_after="15m")
