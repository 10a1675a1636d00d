"""Functions that are real processes, and start slowly or never."""

from __future__ import annotations

import sys

from scalezero_wsgi.providers.process.provider import ProcessFunction, Ready

DELAY = 4.0
LONG_NAME = "w" * 63
SLOW = ["slow", "plain", "mounted", "by-host", "api", "cut-off", "refused", "calm", "own", LONG_NAME]


def starting(seconds: float, then: str) -> ProcessFunction:
    code = f"import sys, time; time.sleep({seconds}); {then}"
    return ProcessFunction([sys.executable, "-c", code, "{port}"], Ready("/"))


BROKEN = ["broken-light", "broken-dark", "broken-plain", "resting"]

HELLO = "from scalezero_wsgi.demo import main; main('hello', sys.argv[1])"
FUNCTIONS = {
    **{name: starting(DELAY, HELLO) for name in SLOW},
    "known": starting(3.0, HELLO),
    **{name: starting(1.5, "sys.exit(3)") for name in BROKEN},
}
