"""Real shells complete the command."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scalezero_wsgi.cli import main
from tests.engines.engine import cannot
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.server

ZSH, FISH = (pytest.param(shell, marks=pytest.mark.engine) for shell in ("zsh", "fish"))


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Path:
    shell: str = request.getfixturevalue("shell")
    if shutil.which(shell) is None:
        cannot(f"there is no {shell}")
    assert main(["completion", shell]) == 0
    path = tmp_path / "_scalezero-wsgi"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


WORDS = {
    "ser": "serve ",
    "serve --wor": "--workers ",
    "status --js": "--json ",
    "serve functi": "functions.toml ",
    "completion f": "fish ",
}


@pytest.mark.parametrize("shell", ["bash", ZSH])
def test_a_terminal_completes_words_options_and_files(shell: str, script: Path, tmp_path: Path) -> None:
    (tmp_path / "functions.toml").touch()
    load = {"bash": f"source {script}", "zsh": "fpath=($PWD $fpath); autoload -U compinit; compinit -u -D"}
    flags = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
    with Terminal([shell, *flags], tmp_path) as terminal:
        terminal.type(f"PS1='>'; {load[shell]}; echo loa''ded\n")
        terminal.reads("loaded")
        for words, ends in WORDS.items():
            terminal.type(f"scalezero-wsgi {words}\t")
            terminal.reads(f"{words.rpartition(' ')[0]} {ends}".strip() if " " in words else ends.strip())
            terminal.type("\x15")  # take the line away


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "TERM": "xterm", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env, start_new_session=True
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def reads(self, text: str) -> None:
        """Wait until the shell has shown the text."""
        shown, deadline = "", time.monotonic() + PATIENCE
        while text not in shown.replace("\r", "").replace("\n", ""):
            assert time.monotonic() < deadline, shown
            if select.select([self._ours], [], [], 0.1)[0]:
                shown += os.read(self._ours, 4096).decode(errors="replace")


@pytest.mark.parametrize("shell", [FISH])
def test_fish_completes_words_options_and_files(shell: str, script: Path, tmp_path: Path) -> None:
    (tmp_path / "functions.toml").touch()
    for words, ends in WORDS.items():
        asked = f"source {script}; complete -C 'scalezero-wsgi {words}'"
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(
            [shell, "--no-config", "-c", asked],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env,
            check=True,
        )
        assert ends.strip() in [line.partition("\t")[0] for line in done.stdout.splitlines()], done


def test_without_shtab_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "scalezero_wsgi[completion]" in capsys.readouterr().err
