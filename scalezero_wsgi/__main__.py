"""``python -m scalezero_wsgi`` is the command ``scalezero-wsgi``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
