"""A gunicorn.conf.py whose master imports all that the site needs: its workers may not be allowed to.

They must be able to read the package's pages all the same.
"""

import scalezero_wsgi.coordination.sqlite  # noqa: F401
from tests.servers.fleet_site import make

make()
