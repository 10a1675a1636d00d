"""``scalezero-wsgi idle``, as far as it refuses; what it does is in ``tests/servers/test_idle_apart.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalezero_wsgi.cli import main

SQLITE = "sqlite://{}/store/workers.db"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "functions.toml"
    path.write_text("[functions.hello]\ncommand = ['true']\n")
    return str(path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "coordination: it is not set; it must be the store of the workers"),
        (
            ["--coordination", "memory://"],
            "coordination: 'memory://' is not allowed here, for only one process can use it; it must be",
        ),
        (["--coordination", "nowhere://"], "coordination: 'nowhere://' is not allowed"),
        (["--coordination", "redis://127.0.0.1:1"], "coordination: the workers' store does not answer: "),
        (["--coordination", SQLITE, "--idle-after", "soon"], "idle_after: 'soon' is not a duration"),
        (["--coordination", SQLITE, "--idle-default", "some"], "idle_default: 'some' is not allowed"),
    ],
)
def test_what_it_refuses(
    options: list[str], told: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.format(tmp_path) for option in options]
    assert main(["idle", file, "--idle-after", "15m", "--state-dir", str(tmp_path / "state"), *given]) == 2
    assert capsys.readouterr().err.startswith(f"scalezero-wsgi: {told}")


def test_it_must_be_told_when_functions_are_idle(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--coordination", SQLITE.format(tmp_path), "--state-dir", str(tmp_path / "state")]
    assert main(["idle", file, *options]) == 2
    assert "idle_after: it is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("provider", "told"),
    [
        ("none", "provider: there is none called 'none'"),
        ("missing.toml", "missing.toml"),
        ("docker", "--state-dir: 'docker' has none"),
    ],
)
def test_it_needs_a_provider(
    provider: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--state-dir", str(tmp_path / "state")] if provider != "none" else []
    assert main(["idle", provider, *options]) == 2
    assert told in capsys.readouterr().err


def test_an_option_wins_over_the_environment(
    file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCALEZERO_COORDINATION", SQLITE.format(tmp_path))
    monkeypatch.setenv("SCALEZERO_IDLE_AFTER", "15m")
    options = ["--coordination", "memory://", "--state-dir", str(tmp_path / "state")]
    assert main(["idle", file, *options]) == 2
    assert "'memory://'" in capsys.readouterr().err
