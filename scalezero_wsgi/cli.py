"""The command ``scalezero-wsgi``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

from ._lib.readers import positive_duration
from .commands import by_hand
from .commands.completion import SHELLS, completion
from .commands.serve import DEFAULTS, Options, serve
from .model import ScaleZeroError, SettingError
from .operate import aligned
from .providers.process import running as processes

_EXAMPLES = {
    "serve": """
examples:
  scalezero-wsgi serve                        two built-in functions, on 127.0.0.1:8080
  scalezero-wsgi serve functions.toml         your own commands
  scalezero-wsgi serve --hot functions.toml   and those that are in the file later on
  SCALEZERO_ALLOW='job-*' scalezero-wsgi serve docker://
  scalezero-wsgi serve 'kubernetes://?namespace=fn'
  scalezero-wsgi serve --bind 0.0.0.0:80 --workers 4 functions.toml
  SCALEZERO_MAX_WAIT=2m scalezero-wsgi serve functions.toml
  scalezero-wsgi serve --config serve.toml    provider, settings and these options in a file

functions.toml:
  [functions.hello]
  command = ["python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
  ready = { path = "/" }
""",
    "idle": """
examples:
  scalezero-wsgi idle openfaas+http://gateway:8080 --coordination redis://redis/0 --idle-after 15m
  scalezero-wsgi idle functions.toml --coordination sqlite:///var/lib/app/scalezero/workers.db
""",
    "check": """
examples:
  scalezero-wsgi check functions.toml --gunicorn gunicorn.conf.py
  SCALEZERO_IDLE_AFTER=15m scalezero-wsgi check docker:// --coordination redis://redis/0
""",
    "status": """
examples:
  scalezero-wsgi status docker://
  scalezero-wsgi status functions.toml --coordination redis://redis/0 --watch
""",
    "wake": """
examples:
  scalezero-wsgi wake --provider docker:// hello
""",
    "report": """
examples:
  scalezero-wsgi report sqlite:///var/lib/app/scalezero/savings.db
  scalezero-wsgi report sqlite:///var/lib/app/scalezero/savings.db --since 7d --cost-per-hour model=2.40

The workers write the file with the hook scalezero_wsgi.integrations.savings.Savings. With --since it begins
with the hour in which that lies.
""",
    "simulate": """
examples:
  scalezero-wsgi simulate access.log --start-time 3s
  scalezero-wsgi simulate access.log.1 access.log --events events.jsonl --zone Europe/Berlin
  scalezero-wsgi simulate access.log --start-time model=40s --idle-after 5m,15m,1h --svg plot.svg
  scalezero-wsgi simulate access.log --start-time 3s --toml
  scalezero-wsgi simulate events.jsonl --events events.jsonl --recorded-with 5m

Logs that know how long requests took tell more: nginx's $request_time, %(L)s or %(D)s of gunicorn at the end
of a line, or lines of JSON. Apache's times are those at which requests came: --stamp start.
""",
    "completion": """
examples:
  scalezero-wsgi completion bash > ~/.local/share/bash-completion/completions/scalezero-wsgi
  scalezero-wsgi completion zsh > /usr/local/share/zsh/site-functions/_scalezero-wsgi
  scalezero-wsgi completion fish > ~/.config/fish/completions/scalezero-wsgi.fish
""",
    "ps": """
examples:
  scalezero-wsgi ps
  scalezero-wsgi ps --state-dir /var/lib/app/functions
""",
    "stop": """
examples:
  scalezero-wsgi stop hello hello.staging
  scalezero-wsgi stop --all                   all that `scalezero-wsgi ps` lists
  scalezero-wsgi stop --provider docker:// hello
""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: the command line; by default the process's own.
    :return: the exit status: 0; 1 if ``check`` has found an error; 2 if something given is not allowed or
        cannot be done; 130 after Ctrl-C; 141 if whoever reads the output has had enough.
    """
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        status: int = chosen.run(chosen) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has had enough
        # What is still to be written is not to fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as shells have it: 128 and SIGPIPE
    except ScaleZeroError as error:
        print(f"scalezero-wsgi: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # as shells have it: 128 and the signal
    return status


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
            "serve functions, each started by its first request",
            "Serve the functions of a file or of a provider below /function/, behind gunicorn, and a list of"
            " them at /. SCALEZERO_* set the middleware.",
        )
    )
    _add_idle(
        command(
            "idle",
            "bring idle functions to zero, beside the workers",
            "Bring the functions to zero that nobody uses, also where no request comes. It serves nothing,"
            " and is told what is in use by the workers. SCALEZERO_* set it, as they set those.",
        )
    )
    _add_check(
        command(
            "check",
            "find what is wrong before the start",
            "Read the settings, ask the provider and the workers' store, and look at gunicorn's settings."
            " Says what is wrong and what to do; the exit status is 1 if something will not work.",
        )
    )
    _add_by_hand(
        command("status", "list functions, and who uses them", "List the functions that a provider knows."),
        command("wake", "start a function", "Start a function, and wait until it is available."),
    )
    _add_report(
        command(
            "report",
            "tell what scaling to zero saved",
            "Tell for how long functions were up against always on, and how long requests waited.",
        )
    )
    _add_simulate(
        command(
            "simulate",
            "find out what idle_after should be",
            "Replay the requests of an access log with a range of idle_after: cold starts and waiting against"
            " hours up, for each function and in all. Recommends one of them for each function.",
        )
    )
    lists = command("ps", "list the processes of functions", "List the processes of local functions.")
    lists.set_defaults(run=lambda chosen: ps(chosen.state_dir))
    stops = command(
        "stop",
        "end the processes of functions, or scale to zero",
        "End the processes of local functions; with --provider scale those that are named to zero. The next"
        " request starts one again.",
    )
    stops.set_defaults(run=_stop)
    _add_provider(stops)
    stops.add_argument("names", nargs="*", metavar="NAME", help="a function, or name.namespace")
    stops.add_argument("--all", action="store_true", help="all that `scalezero-wsgi ps` lists")
    for one in (lists, stops):
        one.add_argument(
            "--state-dir",
            type=Path,
            metavar="DIR",
            help="of a ProcessProvider that was given one; by default all that this user has in the directory"
            " for temporary files",
        )
    completes = command(
        "completion",
        "have a shell complete this command",
        "Print what a shell reads to complete this command.",
    )
    completes.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    completes.set_defaults(run=lambda chosen: completion(parser, chosen.shell))
    return parser


def _add_check(command: argparse.ArgumentParser) -> None:
    def run(chosen: argparse.Namespace) -> int:
        from .commands.check import check  # late: the others do without it

        told = {} if chosen.coordination is None else {"SCALEZERO_COORDINATION": chosen.coordination}
        return check(_provider_of(chosen), told, chosen.gunicorn)

    command.set_defaults(run=run)
    _add_provider(command, positional=True)
    command.add_argument(
        "--coordination", metavar="URL", help="the workers' store; by default SCALEZERO_COORDINATION"
    )
    command.add_argument("--gunicorn", metavar="FILE", help="gunicorn's configuration, which is run")


def _add_provider(command: argparse.ArgumentParser, positional: bool = False) -> None:
    if positional:
        command.add_argument("which", nargs="?", metavar="PROVIDER", help="the same as --provider PROVIDER")
    command.add_argument(
        "--provider",
        metavar="PROVIDER",
        help="a file of functions (*.toml), or a provider's name or URL such as docker or kubernetes://; by"
        " default SCALEZERO_PROVIDER",
    )


def _provider_of(chosen: argparse.Namespace) -> str | None:
    if chosen.which is not None and chosen.provider is not None:
        raise SettingError(
            f"provider: {chosen.which!r} and --provider {chosen.provider!r}: say one of the two"
        )
    provider: str | None = chosen.which or chosen.provider
    return provider


def _add_by_hand(status: argparse.ArgumentParser, wake: argparse.ArgumentParser) -> None:
    _add_provider(status, positional=True)
    status.add_argument(
        "--coordination",
        metavar="URL",
        help="the workers' store, which tells who uses a function; by default SCALEZERO_COORDINATION",
    )
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument("--watch", action="store_true", help="again every two seconds")
    status.set_defaults(
        run=lambda chosen: by_hand.status(
            _provider_of(chosen), chosen.coordination, chosen.json, chosen.watch
        )
    )
    _add_provider(wake)
    wake.add_argument("name", metavar="NAME", help="a function, or name.namespace")
    wake.add_argument("--timeout", default="60s", metavar="DURATION", help="for how long (%(default)s)")
    wake.set_defaults(
        run=lambda chosen: by_hand.wake(chosen.name, chosen.provider, _duration(chosen.timeout))
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    def run(chosen: argparse.Namespace) -> None:
        from .commands.report import report  # late: the others do without it

        report(chosen.file, chosen.since, chosen.cost_per_hour, chosen.json)

    command.set_defaults(run=run)
    command.add_argument(
        "file", metavar="URL", help="the file that the workers write: sqlite:///path/of/file"
    )
    command.add_argument("--since", metavar="DURATION", help="only the last such time, such as 7d")
    command.add_argument(
        "--cost-per-hour",
        action="append",
        default=[],
        metavar="[NAME=]PRICE",
        help="what an instance costs in an hour, of a function or of all",
    )
    command.add_argument("--json", action="store_true", help="as JSON")


_SIMULATE_OPTIONS = {
    "events": ("FILE", "a JsonLog, by which starts and stops are measured"),
    "idle-afters": ("DURATIONS", "those to try, such as 5m,15m,1h"),
    "route": ("PATH", "what the paths of functions begin with (%(default)s)"),
    "zone": ("ZONE", "whose hours count for keep_warm, such as Europe/Berlin (%(default)s)"),
    "recorded-with": ("DURATION", "the idle_after with which a log was recorded that has only events"),
    "svg": ("FILE", "write a plot"),
}
"""Options of ``simulate`` with a value, with what the help says of them."""


def _add_simulate(command: argparse.ArgumentParser) -> None:
    def run(chosen: argparse.Namespace) -> None:
        from .commands.simulate import Options, simulate  # late: the others do without it

        given = {name: value for name, value in vars(chosen).items() if name != "run" and value is not None}
        simulate(Options(**given))

    command.set_defaults(run=run)
    command.add_argument(
        "logs", nargs="+", metavar="LOG", help="access logs in their order, *.gz too; - reads a pipe"
    )
    command.add_argument(
        "--start-time",
        dest="start_times",
        action="append",
        metavar="[NAME=]DURATION",
        help="how long a start takes, of a function or of all; by default as --events tells, else 1s",
    )
    for name, (shown, text) in _SIMULATE_OPTIONS.items():
        option = "--idle-after" if name == "idle-afters" else f"--{name}"
        default = {"route": "/function/", "zone": "UTC"}.get(name)
        command.add_argument(option, dest=name.replace("-", "_"), metavar=shown, default=default, help=text)
    command.add_argument(
        "--names", choices=("dns", "openfaas"), help="the rule for names, as the setting of it"
    )
    command.add_argument("--stamp", choices=("end", "start"), help="what a line's time is (end)")
    command.add_argument(
        "--duration-unit", dest="unit", choices=("s", "ms", "us"), help="of durations without any"
    )
    command.add_argument("--workers", type=_count, help="of the fleet (1); matters for seconds of idle_after")
    command.add_argument("--json", dest="as_json", action="store_true", help="as JSON")
    command.add_argument(
        "--toml", action="store_true", help="only what is recommended, for a file of functions"
    )
    command.add_argument("--labels", action="store_true", help="only what is recommended, as labels")


def _stop(chosen: argparse.Namespace) -> None:
    if chosen.provider is None:
        stop(chosen.names, chosen.state_dir, chosen.all)
    elif chosen.all:
        raise SettingError("--all: it is of local processes, and not allowed with --provider")
    elif chosen.state_dir is not None:
        raise SettingError("--state-dir: it is of local processes, and not allowed with --provider")
    elif not chosen.names:
        raise SettingError("stop: with --provider it must be said which functions")
    else:
        by_hand.stop(chosen.names, chosen.provider)


def _duration(text: str) -> float:
    try:
        return positive_duration(text)
    except ValueError as error:
        raise SettingError(f"--timeout: {error}") from None


def _add_serve(command: argparse.ArgumentParser) -> None:
    def run(chosen: argparse.Namespace) -> None:
        given = {name: getattr(chosen, name) for name in DEFAULTS}
        options = {name: value for name, value in given.items() if value is not None}
        serve(chosen.which, config=chosen.config, **cast(Options, options))

    command.set_defaults(run=run)
    command.add_argument(
        "which",
        nargs="?",
        metavar="PROVIDER",
        help="a file of functions (*.toml), or a provider's name or URL such as docker or kubernetes://;"
        " without it, two small built-in functions",
    )
    command.add_argument(
        "--config",
        metavar="FILE",
        help='settings (max_wait = "2m") and these options (workers = 4), as TOML; the environment goes'
        " before it, and what is said here before both",
    )
    command.add_argument("--bind", help=f"address and port ({DEFAULTS['bind']})")
    command.add_argument("--workers", type=_count, help=f"processes ({DEFAULTS['workers']})")
    command.add_argument("--threads", type=_count, help=f"threads of each ({DEFAULTS['threads']})")
    command.add_argument(
        "--hot",
        action=argparse.BooleanOptionalAction,
        help="take a changed file of functions over within about a second, without a restart; a wrong one is"
        " refused, which the log says",
    )
    command.add_argument(
        "--trust-proxy",
        action=argparse.BooleanOptionalAction,
        help="believe X-Forwarded-* and SCRIPT_NAME of whoever connects; only behind a proxy that sets them,"
        " on an address that nobody else reaches",
    )


_IDLE_OPTIONS = {
    "coordination": ("URL", "the workers' store: sqlite:///path/of/file or redis://host"),
    "idle-after": ("DURATION", "such as 15m"),
    "idle-default": ("WHICH", "which functions go to zero: labelled, or all that do not say otherwise"),
    "idle-action": ("ACTION", "stop, pause, or 'pause after 5m, stop after 1h'"),
    "keep-warm": ("HOURS", "in which functions stay up, such as 'Mon-Fri 08:00-18:00 Europe/Berlin'"),
}
"""Settings that are options of ``idle``, with what the help says of them."""


def _add_idle(command: argparse.ArgumentParser) -> None:
    def run(chosen: argparse.Namespace) -> None:
        from .commands.idle import idle  # late: the others do without it

        given = {name.replace("-", "_"): getattr(chosen, name.replace("-", "_")) for name in _IDLE_OPTIONS}
        told = {f"SCALEZERO_{name.upper()}": text for name, text in given.items() if text is not None}
        if chosen.dry_run:
            told["SCALEZERO_DRY_RUN"] = "true"
        idle(chosen.provider, told, chosen.state_dir)

    command.set_defaults(run=run)
    command.add_argument(
        "provider",
        metavar="PROVIDER",
        help="a file of functions (*.toml), or a provider's name or URL such as docker or kubernetes://",
    )
    for name, (shown, text) in _IDLE_OPTIONS.items():
        command.add_argument(f"--{name}", metavar=shown, help=text)
    command.add_argument("--dry-run", action="store_true", help="only say what would go to zero")
    command.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="of the functions of a file; by default where `scalezero-wsgi serve` has them",
    )


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be an integer of 1 or more")


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
    print(_processes(found))


def _processes(found: Sequence[processes.Running]) -> str:
    rows = [("NAME", "STATE", "PID", "PORT", "AGE", "FROM", "LOG")]
    for each in found:
        numbers = str(each.pid), str(each.port), _age(each.age)
        rows.append((str(each.function), each.phase.value, *numbers, each.source, str(each.log)))
    return aligned(rows)


def _age(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{int(seconds % 60):02}s" if minutes else f"{seconds:.0f}s"


def stop(names: Sequence[str], state_dir: Path | None = None, everything: bool = False) -> None:
    """Stop processes, and wait until they and their children are gone; print each.

    :param names: ``"name"`` or ``"name.namespace"``.
    :param state_dir: as for :func:`ps`.
    :param everything: whether all that run are stopped, instead of those that are named.
    :raises ScaleZeroError: as :func:`ps`; or neither names nor everything is said, or none of a name runs,
        and then nothing is stopped; or a process cannot be killed.
    """
    if names and everything:
        raise SettingError(f"stop: {' '.join(names)} and --all: say one of the two")
    found = processes.running(state_dir)
    if found and not names and not everything:
        print(_processes(found))
        raise SettingError("stop: nothing was stopped; name functions, or say --all for all of these")
    known = {str(each.function) for each in found}
    if missing := [name for name in names if name not in known]:
        runs = f"what runs is {', '.join(sorted(known))}" if known else "nothing runs"
        raise SettingError(f"no function {missing[0]!r} runs; {runs}")
    chosen = [each for each in found if not names or str(each.function) in names]
    processes.stop(chosen)
    print("\n".join(f"stopped {each.function} (process {each.pid})" for each in chosen) or "nothing runs")
