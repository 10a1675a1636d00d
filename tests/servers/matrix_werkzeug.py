"""The werkzeug development server around the matrix's site: ``matrix_werkzeug.py PORT``."""

import sys

from werkzeug.serving import run_simple

from tests.servers.matrix_site import application

run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)
