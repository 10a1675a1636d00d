"""Find the gunicorn that runs this code, without a hook in its configuration.

gunicorn does not pass its configuration on: it is not in ``environ``, a module or an environment variable,
and a setting may come from a file, an option, a framework or ``GUNICORN_CMD_ARGS``. Only gunicorn's own
objects have it, as ``cfg``: the worker, the arbiter and the application object. Their methods are on the call
stack while an application is loaded, and while a request is served in a worker's own thread. So this module,
and no other, searches the call stack.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from types import FrameType


@final
@dataclass(frozen=True, slots=True)
class Gunicorn:
    """A gunicorn, as its configuration describes it.

    :param config: gunicorn's own configuration object.
    :param is_loading: whether it is about to load its application: in a worker, or in the master with
        ``--preload``.
    :param master: the master's process id.
    """

    config: Any
    is_loading: bool
    master: int

    @property
    def workers(self) -> int:
        """Return how many workers gunicorn starts."""
        count: int = self.config.workers
        return count

    @property
    def uid(self) -> int:
        """Return the user id of its workers, which may differ from that of the master."""
        uid: int = self.config.uid
        return uid


def gunicorn_on_stack() -> Gunicorn | None:
    """Return the gunicorn whose methods are on the call stack of the current thread, if there is one.

    If gunicorn was never imported, this costs one look-up in a dictionary.
    """
    if "gunicorn.arbiter" not in sys.modules:
        return None
    config: Any = None
    is_loading = False
    master: int | None = None
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("gunicorn."):
            caller = frame.f_locals.get("self")
            found = getattr(caller, "cfg", None)
            if config is None and hasattr(found, "worker_class_str"):
                config = found
            if module == "gunicorn.app.base" and frame.f_code.co_name == "wsgi":
                is_loading = True
            if master is None:
                master = getattr(caller, "ppid", None)  # only a worker has it, not the arbiter
        frame = frame.f_back
    return None if config is None else Gunicorn(config, is_loading, master or os.getpid())


def loading_gunicorn() -> Gunicorn | None:
    """Return the gunicorn that is about to load its application on this thread, if there is one."""
    found = gunicorn_on_stack()
    return found if found is not None and found.is_loading else None
