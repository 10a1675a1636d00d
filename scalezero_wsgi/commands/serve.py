"""``scalezero-wsgi serve``: the middleware and the proxy behind gunicorn."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from ..activation.idling.idleness import wants_to_idle
from ..configuration import check_provider, settings_for
from ..coordination.default import own_coordination
from ..middleware import ScaleZeroMiddleware
from ..model import Function, MissingExtra, ReplicaStatus, SettingError
from ..operate import is_file_of_functions, provider_of
from ..providers.base import Provider
from ..providers.process.files import path_for_file
from ..providers.process.provider import ProcessFunction, ProcessProvider, Ready
from ..providers.process.running import serving
from ..servers.address import check_bind, only_this_host
from ..settings import Settings
from ..web.access import Rules
from .config_file import ConfigFile
from .gateway import Gateway
from .hot import HotFile

if TYPE_CHECKING:
    from ..proxy import FunctionProxy

STOP_TIMEOUT = 10.0
"""Seconds that functions get to end when the server stops."""

IN_VAIN = "{} would go to zero by its own settings, and does not: the setting idle_after is not there"
IDLE_REMEDY = (
    "set SCALEZERO_IDLE_AFTER, such as 15m; a function that says nothing itself stays up all the same"
)

NONE_GOES = "idle_after is set, but no function may go to zero"

_log = logging.getLogger("scalezero_wsgi")


class Options(TypedDict, total=False):
    """Of the command.

    :ivar bind: address and port, or ``unix:`` and a path.
    :ivar workers: processes.
    :ivar threads: of each process.
    :ivar trust_proxy: whether the headers by which a proxy tells of its client are believed.
    :ivar hot: whether a change of the file of functions is taken over meanwhile.
    """

    bind: str
    workers: int
    threads: int
    trust_proxy: bool
    hot: bool


DEFAULTS: dict[str, Any] = {
    "bind": "127.0.0.1:8080",
    "workers": 2,
    "threads": 16,
    "trust_proxy": False,
    "hot": False,
}


def serve(
    which: str | None,
    *,
    config: str | None = None,
    **given: Unpack[Options],
) -> None:
    """Serve until a signal ends it; no function's process is left behind then.

    :param which: a file of functions (``*.toml``), a provider's name or URL, or ``None`` for the built-in
        functions. What an earlier server has left running of the same file is kept, unless its settings have
        changed.
    :param config: the path of a file with options and settings (:mod:`.config_file`), for which the
        environment goes before it.
    :param given: options that go before both.
    :raises ScaleZeroError: the file, the address, a setting of the environment or a missing library
        forbids it.
    """
    try:
        from gunicorn.app.base import BaseApplication

        from ..integrations import gunicorn as hooks
    except ImportError:
        raise MissingExtra("gunicorn", "serve") from None
    # Not at the top: --help must work with a urllib3 that the proxy refuses.
    from ..proxy import FunctionProxy

    file = ConfigFile() if config is None else ConfigFile.read(config)
    chosen = {**DEFAULTS, **file.options, **given}
    bind, workers, threads = chosen["bind"], chosen["workers"], chosen["threads"]
    trust_proxy, hot = chosen["trust_proxy"], chosen["hot"]
    which = which or os.environ.get("SCALEZERO_PROVIDER") or file.options.get("provider")
    if hot and (which is None or not is_file_of_functions(which)):
        named = "no provider" if which is None else repr(which)
        raise SettingError(f"--hot: {named} is not allowed with it; it must be a file of functions (*.toml)")
    provider = ProcessProvider(_built_in()) if which is None else _provider(which)
    check_provider(provider)
    told = Settings.from_environ(defaults={"expose_failures": only_this_host(bind), **file.settings})
    proxy = FunctionProxy(trust_forwarded=trust_proxy, release_slot=True)
    if told.coordination is None and (workers > 1 or hot or must_meet(told)):
        # gunicorn is not under way yet, so that nothing tells of its workers.
        told = replace(told, coordination=own_coordination())
    told = settings_for(provider, told, {})
    processes = provider if isinstance(provider, ProcessProvider) else None
    changes = HotFile(which, processes, told.coordination) if hot and which and processes else None
    app = ScaleZeroMiddleware(_gateway(proxy, provider, told), provider, settings=told)
    check_bind(bind)
    if processes is not None:
        for function in processes.stop_changed(STOP_TIMEOUT):
            _log.info("%s: stopped, for its settings have changed or it is set no longer", function)
        if told.idle_after is None and (own := [str(each) for each in _going(processes)]):
            _log.warning("%s; %s", IN_VAIN.format(", ".join(own)), IDLE_REMEDY)
        elif told.idle_after is not None and told.idle_default != "all" and not _going(processes):
            _log.warning("%s; %s", NONE_GOES, none_goes_remedy(processes))

    def post_worker_init(worker: Any) -> None:
        hooks.post_worker_init(worker)
        if changes is not None:
            changes.start(app)

    options = {
        "bind": bind,
        "workers": workers,
        "threads": threads,
        "worker_class": "scalezero_wsgi.servers.patient.PatientWorker",
        "post_worker_init": post_worker_init,
        "when_ready": lambda _: print(_welcome(provider, bind, told), flush=True),
        "on_exit": lambda _: processes.stop_all(STOP_TIMEOUT) if processes is not None else None,
        **_trust(trust_proxy),
    }

    class Server(BaseApplication):
        def load_config(self) -> None:
            for name, value in options.items():
                self.cfg.set(name, value)
            # From gunicorn 25.1 on. By default all servers of a user share one path, and without a home that
            # can be written an error is logged.
            if "control_socket_disable" in self.cfg.settings:
                self.cfg.set("control_socket_disable", True)

        def load(self) -> Any:
            return app

    is_of_file = which is not None and is_file_of_functions(which)
    with serving(path_for_file(str(which))) if is_of_file else contextlib.nullcontext():
        Server().run()


def _provider(which: str) -> Provider:
    if is_file_of_functions(which):
        # The default directory is another one whenever the file changes, and what runs would be forgotten.
        return provider_of(which, path_for_file(which))
    return provider_of(which)


def none_goes_remedy(provider: Provider) -> str:
    """Return what is to be done for functions to go to zero."""
    own = "label one, such as scalezero.idle-after=15m"
    if isinstance(provider, ProcessProvider):
        own = "give one the key idle_after in its table"
    return f"{own}, or set idle_default to all"


def _going(provider: ProcessProvider) -> list[Function]:
    """Return the functions that say themselves that they go to zero."""
    settings = provider.functions.items()
    return [function for function, each in settings if wants_to_idle(ReplicaStatus(0, 0, labels=each.labels))]


def _rules(told: Settings) -> Rules:
    return Rules(told.no_wake, told.allow, told.deny, told.wake, told.default_namespace)


def must_meet(told: Settings) -> bool:
    """Return whether even the workers of a server with one need a store: at a reload there are two."""
    return told.idle_after is not None or told.has_budget


def _gateway(proxy: FunctionProxy, provider: Provider, told: Settings) -> Gateway:
    route = told.route if isinstance(told.route, str) else "/"
    return Gateway(
        proxy, provider, route=route, is_served=_rules(told).is_served, expose=told.expose_failures
    )


def _trust(proxy: bool) -> dict[str, Any]:
    """Return gunicorn's settings of whose headers it believes.

    By default it believes ``X-Forwarded-Proto``, ``SCRIPT_NAME`` and ``PATH_INFO`` of every client on
    loopback or a Unix socket.
    """
    if proxy:
        return {"forwarded_allow_ips": "*", "forwarder_headers": "SCRIPT_NAME"}
    return {"forwarded_allow_ips": "", "secure_scheme_headers": {}, "forwarder_headers": ""}


def _built_in() -> dict[str, ProcessFunction]:
    def function(name: str) -> ProcessFunction:
        return ProcessFunction([sys.executable, "-m", "scalezero_wsgi.demo", name, "{port}"], Ready("/"))

    return {name: function(name) for name in ("hello", "echo")}


def _welcome(provider: Provider, bind: str, told: Settings) -> str:
    """Return what runs, what to try and how it ends."""
    name, names = "NAME", "those of " + type(provider).__name__
    if isinstance(provider, ProcessProvider):  # another would be asked, in the master and before it forks
        found, is_served = provider.list_functions(), _rules(told).is_served
        served = [str(each) for each in found if is_served(each)]
        name, names = (served[0], ", ".join(served)) if served else ("NAME", "none")
        if others := [str(each) for each in found if not is_served(each)]:
            names += f"\nNot served, by allow and deny: {', '.join(others)}"
    route = told.route if isinstance(told.route, str) else "/"
    host, _, port = bind.rpartition(":")
    curl, at = ("curl", f"http://{host or '127.0.0.1'}:{port}")
    if bind.startswith("unix:"):
        curl, at = f"curl --unix-socket {bind.removeprefix('unix:')}", "http://localhost"
    return f"""Functions: {names}

    {curl} -i {at}{route}{name}   # starts it, and answers
    {curl} {at}/   # lists them; /healthz and /readyz answer probes

Ctrl-C ends it."""
