"""``idle_function`` with some MiB of memory: ``python -I -S budget_function.py PORT MIB MARK``. By the mark
its processes are found."""

import runpy
import sys

taken = b"\x01" * (int(sys.argv[2]) << 20)
del sys.argv[2:]
runpy.run_path(__file__.replace("budget_function", "idle_function"))
