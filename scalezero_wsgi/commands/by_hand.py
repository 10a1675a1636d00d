"""``scalezero-wsgi status``, ``wake`` and ``stop``: what an operator does by hand, from anywhere.

They ask the provider, and for who uses a function the workers' store.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

from ..activation.idling.fleet_uses import one_each
from ..configuration import check_provider, settings_for
from ..coordination import Coordination
from ..model import Function, ProviderError, SettingError
from ..operate import Row, Seen, functions_of, going_up, provider_of, row_of, table
from ..providers.base import Provider
from ..settings import Settings
from ..web.routing import Names

EVERY = 2.0
"""Seconds between two tables of ``--watch``."""


def status(which: str | None, coordination: str | None, as_json: bool, watch: bool) -> None:
    """Print what there is: a table, or JSON.

    :param which: a file of functions, or a provider's name or URL; ``None``: ``SCALEZERO_PROVIDER``.
    :param coordination: the URL of the workers' store; ``None``: ``SCALEZERO_COORDINATION``, if that is set.
    :param watch: whether to go on, every two seconds, until a signal.
    :raises ScaleZeroError: the provider or the store is not as it must be, or does not answer.
    """
    provider, settings = _reached(which, coordination)
    while True:
        rows = rows_of(provider, settings.coordination)
        print(json.dumps({"functions": rows}) if as_json else table(rows), flush=True)
        if not watch:
            return
        time.sleep(EVERY)
        if not as_json:
            print()


def wake(name: str, which: str | None, timeout: float) -> None:
    """Start a function, and wait until it is available, with a line that tells how far it is.

    :param timeout: seconds.
    :raises ScaleZeroError: it is not known, cannot start, or is not available in time.
    """
    provider, settings = _reached(which, None)
    function, begun = _function(name, settings), time.monotonic()
    for seen in going_up(provider, function, timeout):
        passed = time.monotonic() - begun
        print(f"{function}: {Seen(function, seen).state}, {passed:.1f} s", file=sys.stderr, flush=True)
    print(f"{function} is available after {time.monotonic() - begun:.1f} s")


def stop(names: Sequence[str], which: str) -> None:
    """Scale functions to zero, whoever uses them; the next request starts each again.

    :raises ScaleZeroError: one is not known, or is not stopped. Those before it are.
    """
    provider, settings = _reached(which, None)
    for function in [_function(name, settings) for name in names]:
        provider.get_replicas(*function)  # raises for one that is not known, which set_replicas need not
        provider.set_replicas(*function, 0)
        print(f"stopped {function}")


def _reached(which: str | None, coordination: str | None) -> tuple[Provider, Settings]:
    which = which or os.environ.get("SCALEZERO_PROVIDER")
    if which is None:
        raise SettingError(
            "provider: it is not set; say --provider, with a file of functions or a provider's name or URL"
        )
    provider = provider_of(which)
    check_provider(provider)
    told = (
        dict(os.environ) if coordination is None else {**os.environ, "SCALEZERO_COORDINATION": coordination}
    )
    return provider, settings_for(provider, Settings.from_environ(told), {})


def _function(name: str, settings: Settings) -> Function:
    return Names(settings.names, settings.default_namespace).split(name)


def rows_of(provider: Provider, store: Coordination | None) -> list[Row]:
    """Return what is known of each function that the provider lists.

    :param store: where the workers meet; ``None``: nobody tells who uses a function.
    :raises ScaleZeroError: the provider cannot list them; one of the two does not answer.
    """
    seen = functions_of(provider)
    if store is None:
        return [row_of(each) for each in seen]
    in_flight: Counter[Function] = Counter()
    waiting: Counter[Function] = Counter()
    unused_for: dict[Function, float] = {}
    try:
        reports = one_each(store.workers())
    except Exception as error:
        raise ProviderError(f"the workers' store does not answer: {error}") from error
    for report in reports:
        in_flight.update(report.in_flight)
        waiting.update(report.waiting)
        for function, seconds in report.unused_for.items():
            unused_for[function] = min(seconds, unused_for.get(function, seconds))
    return [
        row_of(each) | {
            "in_flight": in_flight[each.function],
            "waiting": waiting[each.function],
            "unused_for": unused_for.get(each.function),
        }
        for each in seen
    ]  # fmt: skip
