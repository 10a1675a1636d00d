"""``scalezero-wsgi check``: what is wrong with a deployment before it starts, and how to mend it."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from ..activation.budget.limits import BUDGET, Limits
from ..activation.idling.idleness import Idleness, wants_to_idle
from ..configuration import check_provider, settings_for
from ..coordination.base import DrainingCoordination
from ..coordination.memory import MemoryCoordination
from ..model import InvalidFunctionName, MissingExtra, ScaleZeroError, SettingError
from ..operate import Seen, functions_of, is_file_of_functions, provider_of
from ..providers.base import ListingProvider, Provider
from ..providers.process import ProcessFunction, ProcessProvider
from ..providers.process.config import faults_of
from ..settings import Settings
from ..web.routing import Names
from .serve import IDLE_REMEDY, IN_VAIN, NONE_GOES, none_goes_remedy

ERROR, WARNING, FINE = "error", "warning", "ok"

HOOKS = "from scalezero_wsgi.integrations.gunicorn import *"
OUR_WORKERS = (
    "scalezero_wsgi.integrations.gunicorn.ThreadWorker",
    "scalezero_wsgi.servers.patient.PatientWorker",
)
GONE = {"eventlet": "gunicorn has had no eventlet worker since 26"}


class Finding(NamedTuple):
    """What was found.

    :ivar level: ``"error"``: it will not work; ``"warning"``: it will hurt; ``"ok"``.
    :ivar remedy: what to do about it.
    """

    level: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return it as the command prints it."""
        text = f"{self.level + ':':9}{self.what}"
        return f"{text}\n{'':9}→ {self.remedy}" if self.remedy else text


def check(which: str | None, told: Mapping[str, str], gunicorn: str | None) -> int:
    """Print what is wrong; return 1 if something will not work, else 0.

    :param which: a file of functions, or a provider's name or URL; ``None``: ``SCALEZERO_PROVIDER``.
    :param told: settings by their names in the environment, which win over those that are there.
    :param gunicorn: the path of gunicorn's configuration, which is run.
    """
    findings = list(findings_of(which, {**os.environ, **told}, gunicorn))
    print("\n".join(map(str, findings)))
    return int(any(each.level == ERROR for each in findings))


def findings_of(
    which: str | None, environ: Mapping[str, str], gunicorn: str | None = None
) -> Iterator[Finding]:
    """Find what is wrong; arguments as of :func:`check`."""
    settings = provider = None
    try:
        settings = Settings.from_environ(environ)
    except ScaleZeroError as error:
        yield Finding(
            ERROR, f"a setting is wrong: {error}", "correct it; the README has a table of all settings"
        )
    which = which or environ.get("SCALEZERO_PROVIDER")
    faults = faults_of(which) if which is not None and is_file_of_functions(which) else []
    for fault in faults:
        yield Finding(ERROR, f"the file of functions is wrong: {fault}", f"correct {which}")
    if not faults:
        try:
            provider = _provider(which)
        except ScaleZeroError as error:
            yield Finding(ERROR, f"the provider cannot be made: {error}", _remedy(which, error))
    if settings is not None and provider is not None:
        try:
            settings = settings_for(provider, settings, {})
        except ScaleZeroError as error:
            yield Finding(ERROR, f"settings and provider do not fit: {error}", "change the one that it names")
        else:
            yield Finding(FINE, "the settings can be read")
    config = None
    options = environ.get("GUNICORN_CMD_ARGS", "")
    if gunicorn is not None or options:
        try:
            config = gunicorn_config(gunicorn, options)
        except SettingError as error:
            yield Finding(ERROR, str(error), "gunicorn would not start with it either")
    if provider is not None:
        yield from _about_functions(provider, settings or Settings())
    if settings is not None:
        yield from _about_store(settings, config)
        if config is not None:
            yield from _about_gunicorn(config, settings)


def _remedy(which: str | None, error: ScaleZeroError) -> str:
    if which is None:
        return "say --provider, or set SCALEZERO_PROVIDER"
    if isinstance(error, MissingExtra):
        return "install the extra"
    return "correct its name or URL, or what that names; the README has a table of all providers"


def _provider(which: str | None) -> Provider:
    if which is None:
        raise SettingError("it is not set")
    provider = provider_of(which)
    check_provider(provider)
    return provider


# The functions


def _about_functions(provider: Provider, settings: Settings) -> Iterator[Finding]:
    name = type(provider).__name__
    if isinstance(provider, ProcessProvider):
        yield from _about_commands(provider)
    if not isinstance(provider, ListingProvider):
        yield Finding(FINE, f"{name} cannot list its functions, so nothing is said of them")
        return
    try:
        seen = functions_of(provider)
    except ScaleZeroError as error:
        yield Finding(ERROR, f"{name} does not answer: {error}", "is it up, and may this user reach it?")
        return
    if not seen:
        yield Finding(WARNING, f"{name} knows no function", "create one, or look at its namespace and labels")
        return
    yield Finding(FINE, f"{name} answers; functions: {len(seen)}")
    yield from _about_patterns(seen, settings)
    yield from _about_names(seen, settings)
    yield from _about_own_idling(seen, settings)
    with _warnings() as lines:
        may_go = [each for each in seen if _may_go(each, settings)]
        if settings.has_budget:
            yield from _about_budget(seen, settings)
    for line in lines:
        yield Finding(WARNING, f"a label is wrong: {line}", "correct the label")
    if settings.idle_after is not None and not may_go:
        yield Finding(
            WARNING,
            NONE_GOES,
            none_goes_remedy(provider),
        )


def _about_names(seen: list[Seen], settings: Settings) -> Iterator[Finding]:
    names, wrong = Names(settings.names, settings.default_namespace), []
    for each in seen:
        try:
            names.check(*each.function)
        except InvalidFunctionName:
            wrong.append(str(each.function))
    if wrong:
        yield Finding(
            WARNING,
            f"no request reaches {', '.join(wrong)}: the rule {settings.names!r} does not allow such a name",
            "rename it, or set names to openfaas, which allows capitals, '_' and '.'",
        )


def _about_own_idling(seen: list[Seen], settings: Settings) -> Iterator[Finding]:
    own = [str(each.function) for each in seen if each.status is not None and wants_to_idle(each.status)]
    if own and settings.idle_after is None:
        yield Finding(WARNING, IN_VAIN.format(", ".join(own)), IDLE_REMEDY)


def _may_go(seen: Seen, settings: Settings) -> bool:
    idleness = Idleness(settings.idle_after or math.inf, settings.idle_default == "all")
    return seen.status is not None and idleness(seen.function, seen.status) is not None


def _about_commands(provider: ProcessProvider) -> Iterator[Finding]:
    for function, settings in provider.functions.items():
        program, where = settings.command[0], Path(settings.cwd or ".")
        path = settings.env.get("PATH")
        if not where.is_dir():
            yield Finding(
                ERROR, f"function {function}: there is no directory {str(where)!r}", "correct its cwd"
            )
        elif not (where / program).exists() if "/" in program else shutil.which(program, path=path) is None:
            yield Finding(
                ERROR,
                f"function {function}: there is no program {program!r}",
                "install it, or write its path; it is looked for in PATH",
            )
        if not _has_port(settings):
            yield Finding(
                WARNING,
                f"function {function}: its command has neither {{port}} nor $PORT",
                "write {port} where it takes the port to listen on, unless the program itself reads PORT",
            )


def _has_port(settings: ProcessFunction) -> bool:
    words = [*settings.command, *settings.env.values()]
    return any(form in word for word in words for form in ("{port}", "$PORT", "${PORT"))


def _about_patterns(seen: list[Seen], settings: Settings) -> Iterator[Finding]:
    known = [text for each in seen for text in (each.function.name, str(each.function))]
    for setting in ("allow", "deny", "wake"):
        for pattern in getattr(settings, setting) or ():
            if not any(fnmatchcase(text, pattern) for text in known):
                near = get_close_matches(pattern, known)
                remedy = (
                    f"did you mean {near[0]!r}?" if near else "correct it; `scalezero-wsgi status` lists them"
                )
                yield Finding(WARNING, f"{setting}: {pattern!r} is the name of no function", remedy)
    for text in settings.max_wait_of:
        if text not in known:
            near = get_close_matches(text, known)
            remedy = (
                f"did you mean {near[0]!r}?" if near else "correct it; `scalezero-wsgi status` lists them"
            )
            yield Finding(WARNING, f"max_wait_of: {text!r} is the name of no function", remedy)


def _about_budget(seen: list[Seen], settings: Settings) -> Iterator[Finding]:
    limits = Limits(
        settings.max_running, settings.max_memory, settings.max_running_of, settings.max_memory_of
    )
    for each in seen:
        if each.status is not None:
            beyond = limits.beyond(limits.need(each.function, each.status, each.status.first_replicas))
            if beyond is not None:
                yield Finding(
                    ERROR,
                    f"function {each.function} can never start: it needs more than {beyond}",
                    "raise the budget, or lower what its label scalezero.memory says",
                )
    texts = [{**each.status.annotations, **each.status.labels} for each in seen if each.status is not None]
    said = {labels.get(BUDGET, "").strip() for labels in texts}
    for setting in ("max_running_of", "max_memory_of"):
        for group in getattr(settings, setting):
            if group not in said:
                yield Finding(
                    WARNING,
                    f"{setting}: no function is in the group {group!r}",
                    f"label one scalezero.budget={group}, or leave the group out",
                )
    if settings.min_uptime > settings.max_wait:
        yield Finding(
            WARNING,
            f"min_uptime ({settings.min_uptime:g} s) is longer than max_wait ({settings.max_wait:g} s): a"
            " request that needs the room of a function just started gets 503",
            "raise max_wait, or lower min_uptime",
        )


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what is warned about in the log meanwhile, and keep it out of there."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, collector = logging.getLogger("scalezero_wsgi"), Collector(logging.WARNING)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield lines
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagates


# The store and the server


def _about_store(settings: Settings, config: Any) -> Iterator[Finding]:
    store = settings.coordination
    if store is None:
        return
    name = type(store).__name__
    if isinstance(store, MemoryCoordination):
        if config is not None and config.workers > 1:
            yield Finding(
                ERROR,
                f"coordination is memory://, in which the {config.workers} workers do not meet",
                "leave coordination out, or set sqlite:///path/of/file or redis://host",
            )
        return
    try:
        workers = len(list(store.workers()))
    except Exception as error:  # noqa: BLE001  a store of somebody else may raise anything
        yield Finding(ERROR, f"the workers' store does not answer: {error}", "is it up, and its URL right?")
        return
    yield Finding(FINE, f"{name} answers; workers that have reported: {workers}")
    if settings.idle_after is not None and not isinstance(store, DrainingCoordination):
        yield Finding(
            ERROR,
            f"idle_after is set, but {name} has no drains() and change_drain(), so nothing goes to zero",
            "take sqlite:/// or redis://, or add the two methods to the store",
        )


def gunicorn_config(path: str | None, options: str = "") -> Any:
    """Return gunicorn's configuration as a file sets it, and its options in the environment, which win.

    :param path: of the file, which is run; ``None``: the one that the options name, if they do.
    :param options: as ``GUNICORN_CMD_ARGS`` has them.
    :raises SettingError: the file cannot be run, or a value is not allowed; or gunicorn is not installed.
    """
    try:
        from gunicorn.config import Config
    except ImportError:
        raise SettingError("gunicorn is not installed, and so cannot read its configuration") from None
    config = Config()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given = vars(config.parser().parse_args(shlex.split(options)))
    except (ValueError, SystemExit):
        why = said.getvalue().strip().rpartition("\n")[2] or "a quotation mark is not closed"
        raise SettingError(f"GUNICORN_CMD_ARGS: {options!r} is not allowed: {why}") from None
    path = path or given.get("config")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as gunicorn does, so that the file can import what lies beside it
    try:
        for name, value in runpy.run_path(path).items() if path is not None else ():
            if name in config.settings:
                config.set(name, value)
    except (Exception, SystemExit) as error:  # noqa: BLE001  the file is the user's code
        raise SettingError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    try:
        for name, value in given.items():
            if name in config.settings and value is not None:
                config.set(name, value)
    except Exception as error:  # noqa: BLE001  gunicorn's validators raise several
        raise SettingError(f"GUNICORN_CMD_ARGS: {options!r} is not allowed: {error}") from None
    return config


def _about_gunicorn(config: Any, settings: Settings) -> Iterator[Finding]:
    kind, wait = config.worker_class_str, max([settings.max_wait, *settings.max_wait_of.values()])
    worker = str(config.settings["worker_class"].get())
    hooked = worker in OUR_WORKERS or _is_ours(config.settings["post_worker_init"].get())
    if worker in GONE:
        yield Finding(ERROR, f"worker_class is {worker}: {GONE[worker]}", "take gthread or gevent")
        return
    if kind in ("sync", "tornado") and not hooked:
        if 0 < config.timeout <= wait:
            yield Finding(
                ERROR,
                f"gunicorn kills a {kind} worker whose request waits for {config.timeout} s, and max_wait is"
                f" {wait:g} s",
                f"take gthread, put `{HOOKS}` into gunicorn.conf.py, or set timeout to {math.ceil(wait) + 5}",
            )
        if kind == "sync":
            yield Finding(
                WARNING,
                "a sync worker serves one request at a time: one that waits keeps all others out",
                "take gthread",
            )
    if kind in ("gthread", "threads") and not hooked:
        yield Finding(
            WARNING,
            f"a request that waits takes one of the {config.threads} threads of its worker",
            f"put `{HOOKS}` into gunicorn.conf.py: then it takes none",
        )
    if not hooked and config.graceful_timeout < wait:
        yield Finding(
            WARNING,
            f"a reload cuts requests after {config.graceful_timeout} s, and max_wait is {wait:g} s",
            f"put `{HOOKS}` into gunicorn.conf.py, or set graceful_timeout to {math.ceil(wait) + 5}",
        )
    if settings.idle_after is not None and not hooked:
        yield Finding(
            WARNING,
            "no function goes to zero before the first request comes",
            f"put `{HOOKS}` into gunicorn.conf.py, or run `scalezero-wsgi idle`",
        )
    if 0 < config.max_requests < 100:
        yield Finding(
            WARNING,
            f"each worker ends after {config.max_requests} requests, and those who wait in it are cut",
            "set max_requests to some thousands, or to 0",
        )
    yield Finding(FINE, f"gunicorn: {config.workers} workers, {kind}")


def _is_ours(hook: Any) -> bool:
    return getattr(hook, "__module__", "") == "scalezero_wsgi.integrations.gunicorn"
