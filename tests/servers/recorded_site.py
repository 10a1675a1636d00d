"""The package's proxy before processes that go to zero.

Its events are in ``$IDLE/events.jsonl``, and what was saved in ``$IDLE/savings.db``. The last argument of a
process is its function's name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.events import Hook
from scalezero_wsgi.integrations.logs import JsonLog
from scalezero_wsgi.integrations.savings import Savings
from scalezero_wsgi.providers.process import ProcessFunction, ProcessProvider
from scalezero_wsgi.proxy import FunctionProxy

IDLE = Path(os.environ["IDLE"])
FUNCTION = Path(__file__).with_name("idle_function.py")

command = [sys.executable, "-I", "-S", str(FUNCTION), "{port}"]
names = [f"f{number}" for number in range(int(os.environ["FUNCTIONS"]))]
functions = {name: ProcessFunction([*command, "0", name]) for name in names}
provider = ProcessProvider(functions, state_dir=IDLE / "state")
savings = Savings(f"sqlite://{IDLE}/savings.db", provider)
hooks: list[Hook] = [JsonLog((IDLE / "events.jsonl").open("a")), savings]
application = savings.wrap(
    ScaleZeroMiddleware(FunctionProxy(), provider, settings=Settings.from_environ(), hooks=hooks)
)
