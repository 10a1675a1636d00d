"""``scalezero-wsgi idle``: the idler in a process of its own, beside the workers and without any traffic.

It meets the workers in their store, as one that serves nothing, and decides whenever none of them does.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from ..activation.function_cache import FunctionCache
from ..activation.idling.idler import Idler
from ..activation.idling.make import make_idler
from ..activation.request_queue import RequestQueue
from ..activation.scaler import FunctionScaler
from ..configuration import check_provider, settings_for
from ..coordination.memory import MemoryCoordination
from ..coordination.peers import Peers
from ..events import EventLog, Reporter
from ..model import SettingError
from ..operate import provider_of
from ..providers import ListingProvider, Provider
from ..settings import Settings
from ..web.access import Rules

FINISH = 5.0
"""Seconds for which the command waits, when it is told to end, for what is on its way to zero."""

_log = logging.getLogger("scalezero_wsgi")


def idle(which: str, told: Mapping[str, str], state_dir: Path | None = None) -> None:
    """Bring idle functions to zero until SIGTERM or SIGINT. Of the main thread.

    :param which: a file of functions (``*.toml``), or a provider's name or URL.
    :param told: settings by their names in the environment, which win over those that are there.
    :param state_dir: of the functions of a file; by default where ``scalezero-wsgi serve`` has them.
    :raises ScaleZeroError: the provider, a setting or the store is not as it must be.
    """
    provider = provider_of(which, state_dir)
    check_provider(provider)
    settings = settings_for(provider, Settings.from_environ({**os.environ, **told}), {})
    if settings.idle_after is None:
        raise SettingError("idle_after: it is not set, so nothing is idle; say --idle-after 15m")
    store = settings.coordination
    where = "the store of the workers, as their coordination says: sqlite:///path/of/file or redis://host"
    if store is None:
        raise SettingError(f"coordination: it is not set; it must be {where}")
    if isinstance(store, MemoryCoordination):
        raise SettingError(
            "coordination: 'memory://' is not allowed here, for only one process can use it; it must be"
            f" {where}"
        )
    try:
        workers = len(list(store.workers()))
    except Exception as error:  # somebody else's store may raise anything
        raise SettingError(f"coordination: the workers' store does not answer: {error}") from error
    peers, idler = _make(provider, settings)
    if idler is None:
        raise SettingError(f"coordination: {type(store).__name__} is not allowed here; it must be {where}")
    told_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_end.set())
    if not isinstance(provider, ListingProvider):
        _log.warning("%s cannot list its functions: only those are seen that workers use", which)
    if not workers:
        _log.warning("coordination: no worker has reported to this store yet; is it that of the workers?")
    idler.start(multiprocess=True)
    _log.info("functions are idle after %g s without use; worker %s", settings.idle_after, peers.worker)
    told_to_end.wait()
    idler.stop(os.getpid(), FINISH)
    peers.close()


def _make(provider: Provider, settings: Settings) -> tuple[Peers, Idler | None]:
    clock = time.monotonic
    report = Reporter([EventLog(clock), *settings.hooks])
    cache = FunctionCache(
        settings.cache_expiry,
        stale_for=settings.stale_for,
        maxsize=settings.cache_size,
        missing_expiry=settings.missing_expiry,
        clock=clock,
    )
    peers = Peers(settings.coordination, report, clock, serves=False)
    scaler = FunctionScaler(provider, cache, report=report, peers=peers, linger=settings.linger, clock=clock)
    queue = RequestQueue(scaler, cache, settings, clock, report)
    rules = Rules(settings.no_wake, settings.allow, settings.deny, settings.wake, settings.default_namespace)
    return peers, make_idler(settings, settings.coordination, scaler, queue, rules.is_ours)
