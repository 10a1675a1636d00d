"""The example projects, as a user starts them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi.providers import ProcessProvider
from tests.servers.harness import ROOT, free_port, gunicorn, serving

pytestmark = pytest.mark.server

EXAMPLES = ROOT / "tests" / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / ".github" / "docs").glob("*.md"))]
DOCUMENTATION = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)


@pytest.fixture
def project(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A copy of an example; the processes of its functions are gone after the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = tmp_path / request.param
    shutil.copytree(EXAMPLES / request.param, directory, ignore=shutil.ignore_patterns("__pycache__"))
    yield directory
    ProcessProvider.from_toml(directory / "functions.toml").stop_all(5)


def environment(project: Path) -> dict[str, str]:
    # Python takes a compiled module for current whose source has the same second and size.
    compiled = {"PYTHONDONTWRITEBYTECODE": "1"}
    return {"PYTHONPATH": f"{project}:{ROOT}", "TMPDIR": str(project.parent), **compiled}


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=project,
        env={**os.environ, **environment(project)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("project", "app"),
    [
        ("flask_project", "flask_app:app"),
        ("django_project", "wsgi:application"),
        pytest.param("others", "bottle_app:application", marks=pytest.mark.soak),
        pytest.param("others", "falcon_app:application", marks=pytest.mark.soak),
        pytest.param("others", "paste_site:application", marks=pytest.mark.soak),
    ],
    indirect=["project"],
    ids=["flask", "django", "bottle", "falcon", "paste"],
)
def test_it_wakes_its_function_under_gunicorn(project: Path, app: str) -> None:
    options = ["--chdir", str(project), "--workers", "2"]
    with gunicorn(app, project / "log", *options, env=environment(project)) as server:
        answer = server.get("/function/hello/functions.toml")
        assert answer.status_code == 200, server.log
        assert "[functions.hello]" in answer.text
        assert "Server-Timing" in answer.headers
        assert server.get("/function/nobody").status_code == 404


@pytest.mark.soak
@pytest.mark.parametrize("project", ["django_project"], indirect=True)
def test_runserver_wakes_its_function(project: Path) -> None:
    port = free_port()
    command = [sys.executable, str(project / "manage.py"), "runserver", "--noreload", f"127.0.0.1:{port}"]
    with serving(command, port, project / "log", env=environment(project)) as server:
        answer = server.get("/function/hello")
        assert answer.status_code == 200, server.log
        assert "Server-Timing" in answer.headers


@pytest.mark.parametrize("project", ["django_project"], indirect=True)
def test_manage_py_check_says_what_is_wrong(project: Path) -> None:
    assert run(project, "manage.py", "check").returncode == 0
    settings = project / "project" / "settings.py"
    settings.write_text(settings.read_text().replace('"max_wait": "20s"', '"max_wiat": "20s"'))
    wrong = run(project, "manage.py", "check")
    assert wrong.returncode == 1
    assert "(scalezero.E001) SCALEZERO: max_wiat is not a setting; did you mean max_wait" in wrong.stderr
    wsgi = project / "wsgi.py"
    wrapped = wsgi.read_text()
    settings.write_text(settings.read_text().replace("max_wiat", "max_wait"))
    wsgi.write_text(wrapped.replace("scalezero_wsgi.integrations.django", "django.core.wsgi"))
    bare = run(project, "manage.py", "check")
    assert bare.returncode == 0
    assert "(scalezero.W001) WSGI_APPLICATION 'wsgi.application' is Django's own" in bare.stderr
    wsgi.write_text(wrapped)
    settings.write_text(settings.read_text() + "\ndel SCALEZERO\n")
    wrong = run(project, "manage.py", "check")
    assert "SCALEZERO in the project's settings is None; it must be a dictionary such as" in wrong.stderr


@pytest.mark.soak
@pytest.mark.parametrize("project", ["flask_project"], indirect=True)
def test_the_flask_commands(project: Path) -> None:
    def flask(*words: str) -> subprocess.CompletedProcess[str]:
        return run(project, "-m", "flask", "--app", "flask_app", "scalezero", *words)

    assert re.search(r"^hello +at zero +0 of 0$", flask("status").stdout, re.MULTILINE)
    assert re.search(r"^hello is available after [0-9.]+ s$", flask("wake", "hello").stdout, re.MULTILINE)
    assert re.search(r"^hello +ready +1 of 1$", flask("status").stdout, re.MULTILINE)
    assert flask("stop", "hello").stdout == "hello is at zero, or on its way\n"
    assert re.search(r"^hello +at zero +0 of 0$", flask("status").stdout, re.MULTILINE)
    for command in ("wake", "stop"):
        unknown = flask(command, "helo")
        assert (unknown.returncode, unknown.stderr) == (
            1,
            "Error: function helo is not known to the provider\n",
        )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("flask_app.py", "flask_project/flask_app.py"),
        ("functions.toml", "flask_project/functions.toml"),
        ("functions.toml", "django_project/functions.toml"),
        ("functions.toml", "others/functions.toml"),
        ("wsgi.py", "django_project/wsgi.py"),
        ("project/settings.py", "django_project/project/settings.py"),
        ("project/urls.py", "django_project/project/urls.py"),
    ],
)
def test_the_documentation_shows_the_examples(name: str, path: str) -> None:
    (block,) = re.findall(rf"```(?:python|toml)\n# {re.escape(name)}\n(.*?)```", DOCUMENTATION, re.DOTALL)
    assert block == (EXAMPLES / path).read_text(encoding="utf-8")
