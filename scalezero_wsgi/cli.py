"""The command ``scalezero-wsgi``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .middleware import ScaleZeroMiddleware
from .model import MissingExtra, ScaleZeroError, SettingError
from .providers.process import running as processes
from .providers.process.files import path_for_file
from .providers.process.provider import ProcessFunction, ProcessProvider, Ready
from .servers.address import check_bind, only_this_host
from .settings import Settings

STOP_TIMEOUT = 10.0
"""Seconds that functions get to end when the server stops."""

_log = logging.getLogger("scalezero_wsgi")

_EXAMPLES = {
    "serve": """
examples:
  scalezero-wsgi serve                        two built-in functions, on 127.0.0.1:8080
  scalezero-wsgi serve functions.toml         your own
  scalezero-wsgi serve --bind 0.0.0.0:80 --workers 4 functions.toml
  SCALEZERO_MAX_WAIT=2m scalezero-wsgi serve functions.toml

functions.toml:
  [functions.hello]
  command = ["python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
  ready = { path = "/" }
""",
    "ps": """
examples:
  scalezero-wsgi ps
  scalezero-wsgi ps --state-dir /var/lib/app/functions
""",
    "stop": """
examples:
  scalezero-wsgi stop                         all that `scalezero-wsgi ps` lists
  scalezero-wsgi stop hello hello.staging
""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: the command line; by default the process's own.
    :return: the exit status: 0, or 2 if something given is not allowed or cannot be done.
    """
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        chosen.run(chosen)
    except ScaleZeroError as error:
        print(f"scalezero-wsgi: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scalezero-wsgi", description="Wake functions scaled to zero when a request comes for them."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('scalezero_wsgi')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=does,
            description=description,
            epilog=_EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_serve(
        command(
            "serve",
            "run local commands as functions, each started by its first request",
            "Run local commands as functions behind gunicorn. SCALEZERO_* set the middleware.",
        )
    )
    lists = command("ps", "list the processes of functions", "List the processes of local functions.")
    lists.set_defaults(run=lambda chosen: ps(chosen.state_dir))
    stops = command(
        "stop",
        "end the processes of functions",
        "End the processes of local functions. The next request starts one again.",
    )
    stops.set_defaults(run=lambda chosen: stop(chosen.names, chosen.state_dir))
    stops.add_argument("names", nargs="*", metavar="NAME", help="a function, or name.namespace; default: all")
    for one in (lists, stops):
        one.add_argument(
            "--state-dir",
            type=Path,
            metavar="DIR",
            help="of a ProcessProvider that was given one; by default all that this user has in the directory"
            " for temporary files",
        )
    return parser


def _add_serve(command: argparse.ArgumentParser) -> None:
    def run(chosen: argparse.Namespace) -> None:
        options = {name: getattr(chosen, name) for name in ("bind", "workers", "threads", "trust_proxy")}
        serve(chosen.functions, **options)

    command.set_defaults(run=run)
    command.add_argument(
        "functions",
        nargs="?",
        metavar="functions.toml",
        help="what to run; without it, two small built-in functions",
    )
    command.add_argument("--bind", default="127.0.0.1:8080", help="address and port (%(default)s)")
    command.add_argument("--workers", type=_count, default=2, help="processes (%(default)s)")
    command.add_argument("--threads", type=_count, default=16, help="threads of each (%(default)s)")
    command.add_argument(
        "--trust-proxy",
        action="store_true",
        help="believe X-Forwarded-* and SCRIPT_NAME of whoever connects; only behind a proxy that sets them,"
        " on an address that nobody else reaches",
    )


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be an integer of 1 or more")


def serve(functions: str | None, *, bind: str, workers: int, threads: int, trust_proxy: bool = False) -> None:
    """Serve until a signal ends it; no function's process is left behind then.

    :param functions: the path of a TOML file, or ``None`` for the built-in functions. What an earlier
        server has left running of the same file is kept, unless its settings have changed.
    :param trust_proxy: whether the headers by which a proxy tells of its client are believed.
    :raises ScaleZeroError: the file, the address, a setting of the environment or a missing library
        forbids it.
    """
    try:
        from gunicorn.app.base import BaseApplication

        from .integrations.gunicorn import post_worker_init
    except ImportError:
        raise MissingExtra("gunicorn", "serve") from None
    # Not at the top: --help must work with a urllib3 that the proxy refuses.
    from .proxy import FunctionProxy

    provider = _provider(functions)
    # What is said in the environment wins.
    told = Settings.from_environ({"SCALEZERO_EXPOSE_FAILURES": str(only_this_host(bind)), **os.environ})
    proxy = FunctionProxy(trust_forwarded=trust_proxy, release_slot=True)
    app = ScaleZeroMiddleware(proxy, provider, settings=told)
    check_bind(bind)
    for function in provider.stop_changed(STOP_TIMEOUT):
        _log.info("%s: stopped, for its settings have changed or it is set no longer", function)
    options = {
        "bind": bind,
        "workers": workers,
        "threads": threads,
        "worker_class": "scalezero_wsgi.servers.patient.PatientWorker",
        "post_worker_init": post_worker_init,
        "when_ready": lambda _: print(_welcome(provider, bind), flush=True),
        "on_exit": lambda _: provider.stop_all(STOP_TIMEOUT),
        **_trust(trust_proxy),
    }

    class Server(BaseApplication):
        def load_config(self) -> None:
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return app

    Server().run()


def _provider(functions: str | None) -> ProcessProvider:
    if functions is None:
        return ProcessProvider(_built_in())
    # The default directory is another one whenever the file changes, and what runs would be forgotten.
    return ProcessProvider.from_toml(functions, state_dir=path_for_file(functions))


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


def _welcome(provider: ProcessProvider, bind: str) -> str:
    names = [str(function) for function in provider.list_functions()]
    return (
        f"Functions, all at zero: {', '.join(names)}. Try:\n\n    curl -i http://{bind}/function/{names[0]}\n"
    )


def ps(state_dir: Path | None = None) -> None:
    """Print what runs.

    :param state_dir: of a ``ProcessProvider``; ``None``: all that this user has in the directory for
        temporary files.
    :raises ScaleZeroError: the directory is not there or not this user's, or a state cannot be read.
    """
    found = processes.running(state_dir)
    if not found:
        print("nothing runs")
        return
    rows = [("NAME", "STATE", "PID", "PORT", "AGE", "LOG")]
    for each in found:
        numbers = str(each.pid), str(each.port), _age(each.age)
        rows.append((str(each.function), each.phase.value, *numbers, str(each.log)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _age(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{int(seconds % 60):02}s" if minutes else f"{seconds:.0f}s"


def stop(names: Sequence[str], state_dir: Path | None = None) -> None:
    """Stop processes, and wait until they and their children are gone; print each.

    :param names: ``"name"`` or ``"name.namespace"``; none: all that run.
    :param state_dir: as for :func:`ps`.
    :raises ScaleZeroError: as :func:`ps`; or none of a name runs, and then nothing is stopped; or a process
        cannot be killed.
    """
    found = processes.running(state_dir)
    known = {str(each.function) for each in found}
    if missing := [name for name in names if name not in known]:
        runs = f"what runs is {', '.join(sorted(known))}" if known else "nothing runs"
        raise SettingError(f"no function {missing[0]!r} runs; {runs}")
    chosen = [each for each in found if not names or str(each.function) in names]
    processes.stop(chosen)
    print("\n".join(f"stopped {each.function} (process {each.pid})" for each in chosen) or "nothing runs")
