"""The command ``scalezero-wsgi``."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from .middleware import ScaleZeroMiddleware
from .model import MissingExtra, ScaleZeroError
from .providers.process.provider import ProcessFunction, ProcessProvider, Ready
from .settings import Settings

STOP_TIMEOUT = 10.0
"""Seconds that functions get to end when the server stops."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: the command line; by default the process's own.
    :return: the exit status: 0, or 2 if something given is not allowed.
    """
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(chosen.functions, bind=chosen.bind, workers=chosen.workers, threads=chosen.threads)
    except ScaleZeroError as error:
        print(f"scalezero-wsgi: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scalezero-wsgi", description="Wake functions scaled to zero when a request comes for them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "serve",
        help="run local commands as functions, each started by its first request",
        description="Run local commands as functions behind gunicorn. SCALEZERO_* set the middleware.",
    )
    command.add_argument(
        "functions",
        nargs="?",
        metavar="functions.toml",
        help="what to run; without it, two small built-in functions",
    )
    command.add_argument("--bind", default="127.0.0.1:8080", help="address and port (%(default)s)")
    command.add_argument("--workers", type=_count, default=2, help="processes (%(default)s)")
    command.add_argument("--threads", type=_count, default=16, help="threads of each (%(default)s)")
    return parser


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be an integer of 1 or more")


def serve(functions: str | None, *, bind: str, workers: int, threads: int) -> None:
    """Serve until a signal ends it; no function's process is left behind then.

    :param functions: the path of a TOML file, or ``None`` for the built-in functions.
    :raises ScaleZeroError: the file, a setting of the environment or a missing library forbids it.
    """
    try:
        from gunicorn.app.base import BaseApplication

        from .integrations.gunicorn import post_worker_init
    except ImportError:
        raise MissingExtra("gunicorn", "serve") from None
    # Not at the top: --help must work with a urllib3 that the proxy refuses.
    from .proxy import FunctionProxy

    provider = ProcessProvider(_built_in()) if functions is None else ProcessProvider.from_toml(functions)
    # What is said in the environment wins.
    told = Settings.from_environ({"SCALEZERO_EXPOSE_FAILURES": str(only_this_host(bind)), **os.environ})
    app = ScaleZeroMiddleware(FunctionProxy(), provider, settings=told)
    options = {
        "bind": bind,
        "workers": workers,
        "threads": threads,
        "worker_class": "gthread",
        "post_worker_init": post_worker_init,
        "when_ready": lambda _: print(_welcome(provider, bind), flush=True),
        "on_exit": lambda _: provider.stop_all(STOP_TIMEOUT),
    }

    class Server(BaseApplication):
        def load_config(self) -> None:
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return app

    Server().run()


def only_this_host(bind: str) -> bool:
    """Return whether nobody but this host can reach a server.

    :param bind: where it listens, as gunicorn takes it: addresses with commas between.
    """

    def is_here(address: str) -> bool:
        if address.startswith("unix:"):
            return True
        host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]").lower()
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    return all(is_here(address.strip()) for address in bind.split(","))


def _built_in() -> dict[str, ProcessFunction]:
    def function(name: str) -> ProcessFunction:
        return ProcessFunction([sys.executable, "-m", "scalezero_wsgi.demo", name, "{port}"], Ready("/"))

    return {name: function(name) for name in ("hello", "echo")}


def _welcome(provider: ProcessProvider, bind: str) -> str:
    names = [str(function) for function in provider.list_functions()]
    return (
        f"Functions, all at zero: {', '.join(names)}. Try:\n\n    curl -i http://{bind}/function/{names[0]}\n"
    )
