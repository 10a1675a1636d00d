"""A site that is nothing but the package's own proxy."""

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.proxy import FunctionProxy
from tests.servers.site import provider as make_provider
from tests.servers.site import settings

application = ScaleZeroMiddleware(
    FunctionProxy(), make_provider(), settings=Settings.from_mapping(settings, prefix="")
)
