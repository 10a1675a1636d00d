from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.providers import ProcessProvider
from scalezero_wsgi.proxy import FunctionProxy

application = ScaleZeroMiddleware(
    FunctionProxy(head_timeout=600),  # a long answer that is not streamed has no head for that long
    ProcessProvider.from_toml("functions.toml"),
    idle_after="15m",
    max_wait="10m",
)
