"""A site with functions by path, below mounts, and by host name."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from werkzeug.middleware.dispatcher import DispatcherMiddleware

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.events import Event, FunctionReady
from scalezero_wsgi.providers import ProcessProvider
from scalezero_wsgi.proxy import FunctionProxy
from scalezero_wsgi.web.routing import by_host
from tests.browser.functions import FUNCTIONS

ready_at: dict[str, float] = {}


def note_ready(event: Event) -> None:
    if isinstance(event, FunctionReady):
        ready_at[event.function.name] = time.time()


proxy = FunctionProxy()


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] != "/ready":
        return proxy(environ, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(ready_at).encode()]


provider = ProcessProvider(FUNCTIONS, state_dir=os.environ["STATE_DIR"])
by_path = ScaleZeroMiddleware(app, provider, page_after="500ms", hooks=(note_ready,))
with_own_page = ScaleZeroMiddleware(
    app,
    provider,
    page_after="500ms",
    page_template=str(Path(__file__).with_name("own.html")),
    hooks=(note_ready,),
)
mounted = DispatcherMiddleware(by_path, {"/moun ted": by_path, "/own": with_own_page})
application = ScaleZeroMiddleware(
    mounted, provider, route=by_host("{name}.localhost"), page_after="500ms", hooks=(note_ready,)
)
