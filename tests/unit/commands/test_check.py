"""What check finds, and what it says to do: each case is a deployment with one mistake in it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scalezero_wsgi.commands.check import ERROR, FINE, WARNING, Finding, check, findings_of

GOOD = f"""
[functions.hello]
command = ["{sys.executable}", "-m", "http.server", "{{port}}"]
idle_after = "15m"
"""
HOOKED = (
    "from scalezero_wsgi.integrations.gunicorn import *\nworker_class = 'gthread'\nworkers = 2\nthreads = 4\n"
)


def found(
    tmp_path: Path, functions: str = GOOD, gunicorn: str | None = HOOKED, **environ: str
) -> list[Finding]:
    (tmp_path / "functions.toml").write_text(functions)
    told = {f"SCALEZERO_{name}": text.replace("TMP", str(tmp_path)) for name, text in environ.items()}
    path = None
    if gunicorn is not None:
        path = str(tmp_path / "gunicorn.conf.py")
        (tmp_path / "gunicorn.conf.py").write_text(gunicorn)
    provider = told.pop("SCALEZERO_PROVIDER", str(tmp_path / "functions.toml"))
    return list(findings_of(provider, told, path))


def test_a_good_deployment_is_fine(tmp_path: Path) -> None:
    findings = found(tmp_path, IDLE_AFTER="15m", COORDINATION="sqlite://TMP/workers.db", ALLOW="hello")
    assert {each.level for each in findings} == {FINE}, findings
    assert len(findings) == 4


MISTAKES = {  # of each: settings, files, and the level, what is said, and the remedy
    "a setting's name": (
        {"MAX_WIAT": "3s"},
        {},
        ERROR,
        "did you mean SCALEZERO_MAX_WAIT",
        "table of all settings",
    ),
    "a setting's value": ({"MAX_WAIT": "3z"}, {}, ERROR, "'3z' is not a duration", "correct it"),
    "no such provider": (
        {"PROVIDER": "dockr://"},
        {},
        ERROR,
        "there is none called 'dockr'",
        "correct its name or URL",
    ),
    "a file that is not there": (
        {"PROVIDER": "nowhere.toml"},
        {},
        ERROR,
        "the file of functions is wrong: nowhere.toml cannot be read",
        "correct nowhere.toml",
    ),
    "a name that the rule does not allow": (
        {},
        {"functions": "[functions.My_Fn]\ncommand = ['true', '{port}']"},
        WARNING,
        "no request reaches My_Fn: the rule 'dns' does not allow such a name",
        "set names to openfaas",
    ),
    "a command without a port": (
        {},
        {"functions": "[functions.hello]\ncommand = ['true']"},
        WARNING,
        "function hello: its command has neither {port} nor $PORT",
        "write {port}",
    ),
    "a budget for nobody": (
        {"MAX_RUNNING_OF": "gpu=1"},
        {},
        WARNING,
        "max_running_of: no function is in the group 'gpu'",
        "scalezero.budget=gpu",
    ),
    "an own time that means nothing": (
        {},
        {},
        WARNING,
        "hello would go to zero by its own settings, and does not",
        "set SCALEZERO_IDLE_AFTER",
    ),
    "a provider that does not answer": (
        {"PROVIDER": "openfaas+http://127.0.0.1:1"},
        {},
        ERROR,
        "OpenFaaSProvider does not answer",
        "is it up",
    ),
    "hours without idle_after": (
        {"KEEP_WARM": "Mon-Fri 08:00-18:00"},
        {},
        ERROR,
        "not allowed without idle_after",
        "change the one",
    ),
    "a program that is not there": (
        {},
        {"functions": "[functions.hello]\ncommand = ['no-such-program']"},
        ERROR,
        "function hello: there is no program 'no-such-program'",
        "install it",
    ),
    "a directory that is not there": (
        {},
        {"functions": "[functions.hello]\ncommand = ['true']\ncwd = 'nowhere'"},
        ERROR,
        "there is no directory",
        "correct its cwd",
    ),
    "a pattern that matches nothing": (
        {"ALLOW": "helo"},
        {},
        WARNING,
        "allow: 'helo' is the name of no function",
        "did you mean 'hello'?",
    ),
    "a deadline for nobody": (
        {"MAX_WAIT_OF": "helo=40s"},
        {},
        WARNING,
        "max_wait_of: 'helo' is the name of no function",
        "'hello'?",
    ),
    "nothing may go to zero": (
        {"IDLE_AFTER": "15m"},
        {"functions": "[functions.hello]\ncommand = ['true']"},
        WARNING,
        "no function may go to zero",
        "give one the key idle_after in its table, or set idle_default to all",
    ),
    "more memory than there is": (
        {"MAX_MEMORY": "1GiB"},
        {"functions": "[functions.hello]\ncommand = ['true']\nmemory = '2GiB'"},
        ERROR,
        "function hello can never start: it needs more than max_memory = 1 GiB",
        "raise the budget",
    ),
    "a floor above the wait": (
        {"MAX_RUNNING": "1"},
        {},
        WARNING,
        "min_uptime (30 s) is longer than max_wait (25 s)",
        "raise max_wait",
    ),
    "a store that does not answer": (
        {"COORDINATION": "redis://127.0.0.1:1"},
        {},
        ERROR,
        "the workers' store does not answer",
        "its URL right",
    ),
    "workers that do not meet": (
        {"COORDINATION": "memory://"},
        {},
        ERROR,
        "the 2 workers do not meet",
        "sqlite:///path",
    ),
    "a worker that is killed": (
        {"MAX_WAIT": "40s"},
        {"gunicorn": "worker_class = 'sync'"},
        ERROR,
        "gunicorn kills a sync worker",
        "set timeout to 45",
    ),
    "a worker for one request": (
        {},
        {"gunicorn": "worker_class = 'sync'"},
        WARNING,
        "one that waits keeps all others out",
        "take gthread",
    ),
    "threads that are taken": (
        {},
        {"gunicorn": "worker_class = 'gthread'\nthreads = 4"},
        WARNING,
        "takes one of the 4 threads",
        "import *",
    ),
    "a worker that is gone": (
        {},
        {"gunicorn": "worker_class = 'eventlet'"},
        ERROR,
        "no eventlet worker since 26",
        "take gthread or gevent",
    ),
    "a reload that cuts": (
        {"MAX_WAIT": "40s"},
        {"gunicorn": "worker_class = 'gevent'"},
        WARNING,
        "a reload cuts requests",
        "graceful_timeout to 45",
    ),
    "idling without a hook": (
        {"IDLE_AFTER": "15m"},
        {"gunicorn": "worker_class = 'gevent'"},
        WARNING,
        "before the first request comes",
        "scalezero-wsgi idle",
    ),
    "workers that end soon": (
        {},
        {"gunicorn": HOOKED + "max_requests = 10"},
        WARNING,
        "ends after 10 requests",
        "some thousands",
    ),
    "a file that ends it": (
        {},
        {"gunicorn": "import sys; sys.exit('no')"},
        ERROR,
        "cannot be read: SystemExit: no",
        "would not start",
    ),
    "a file that is no Python": (
        {},
        {"gunicorn": "workers = = 2"},
        ERROR,
        "cannot be read: SyntaxError",
        "would not start",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_and_its_remedy_named(mistake: str, tmp_path: Path) -> None:
    environ, files, level, what, remedy = MISTAKES[mistake]
    wrong = [each for each in found(tmp_path, **files, **environ) if each.level != FINE]
    ours = [each for each in wrong if what in each.what]
    assert len(ours) == 1, wrong
    assert ours[0].level == level
    assert remedy in ours[0].remedy


def test_it_prints_what_it_finds_and_exits_by_the_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "functions.toml").write_text(GOOD)
    which = str(tmp_path / "functions.toml")
    told = {"SCALEZERO_IDLE_AFTER": "15m", "SCALEZERO_ALLOW": "helo"}
    assert check(which, told, None) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok:      the settings can be read",
        "ok:      ProcessProvider answers; functions: 1",
        "warning: allow: 'helo' is the name of no function",
        "         → did you mean 'hello'?",
    ]
    assert check(which, {"SCALEZERO_MAX_WIAT": "3s"}, None) == 1


def test_all_that_is_wrong_in_a_file_is_found_at_a_time(tmp_path: Path) -> None:
    functions = """
[functions.a]
comand = ["x"]
memory = "much"
sleep = "/sleep"
[functions.b]
command = "x"
idle_after = "soon"
ready = { path = "/", tcp = true }
[functions."c d"]
command = ["true", "{port}"]
[functions.e]
command = ["true", "{port}"]
"""
    faults = [each.what for each in found(tmp_path, functions) if each.level == ERROR]
    start = "the file of functions is wrong: "
    assert [fault.removeprefix(start).partition(" is not ")[0].partition(";")[0] for fault in faults] == [
        "function 'a': command = None",
        "function 'a': function: unknown key 'comand' (['x'])",
        "function 'a': memory: 'much'",
        "function 'a': sleep and wake belong together: set both, or neither",
        "function 'b': command = 'x'",
        "function 'b': idle_after: 'soon'",
        "function 'b': ready.tcp = True",
        "functions = 'c d'",
    ]


def test_an_extra_that_is_missing_is_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.delitem(sys.modules, "scalezero_wsgi.providers.docker", raising=False)
    wrong = [each for each in found(tmp_path, PROVIDER="docker://") if each.level == ERROR]
    assert [each.remedy for each in wrong] == ["install the extra"], wrong


def options(tmp_path: Path, options: str, gunicorn: str | None = None) -> list[Finding]:
    """What is found with GUNICORN_CMD_ARGS, beside a file or not."""
    if gunicorn is not None:
        (tmp_path / "gunicorn.conf.py").write_text(gunicorn)
        gunicorn = str(tmp_path / "gunicorn.conf.py")
    (tmp_path / "functions.toml").write_text(GOOD)
    return list(findings_of(str(tmp_path / "functions.toml"), {"GUNICORN_CMD_ARGS": options}, gunicorn))


def test_the_options_in_gunicorns_variable_win_over_its_file(tmp_path: Path) -> None:
    found = options(tmp_path, "--workers=3 -k gevent", "workers = 2\nworker_class = 'sync'\n")
    assert "gunicorn: 3 workers, gevent" in [each.what for each in found]


def test_they_may_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "of.py").write_text("workers = 5\nworker_class = 'gevent'\n")
    found = options(tmp_path, f"-c {tmp_path}/of.py")
    assert "gunicorn: 5 workers, gevent" in [each.what for each in found]


@pytest.mark.parametrize("given", ["--wokers=3", "--workers=x", "'"])
def test_wrong_ones_are_an_error(given: str, tmp_path: Path) -> None:
    (error,) = [each for each in options(tmp_path, given) if each.level == ERROR]
    assert error.what.startswith(f"GUNICORN_CMD_ARGS: {given!r} is not allowed: ")


def test_without_a_provider_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = [each for each in findings_of(None, {}) if each.level == ERROR]
    assert finding.what == "the provider cannot be made: it is not set"
    assert finding.remedy == "say --provider, or set SCALEZERO_PROVIDER"
