"""The file of ``serve --config``."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalezero_wsgi import SettingError
from scalezero_wsgi.cli import _parser
from scalezero_wsgi.commands.config_file import OPTIONS, ConfigFile
from scalezero_wsgi.commands.serve import DEFAULTS
from scalezero_wsgi.settings import Settings


def test_it_has_options_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        "provider = 'docker://'\nbind = '0.0.0.0:80'\nworkers = 4\nhot = false\n"
        "max_wait = '2m'\nallow = ['job-*']\nmax_wait_of = { slow = '5m' }\n",
        encoding="utf-8",
    )
    read = ConfigFile.read(file)
    assert read.options == {"provider": "docker://", "bind": "0.0.0.0:80", "workers": 4, "hot": False}
    settings = Settings.from_environ({"SCALEZERO_MAX_WAIT": "3m"}, read.settings)
    assert (settings.max_wait, settings.allow) == (180.0, ("job-*",))
    assert settings.max_wait_of == {"slow": 300.0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("max_wait = 'soon'", "max_wait: 'soon' is not a duration"),
        ("max_wiat = '2m'", "unknown key 'max_wiat' ('2m'); did you mean max_wait"),
        ("SCALEZERO_MAX_WAIT = '2m'", "unknown key 'SCALEZERO_MAX_WAIT' ('2m'); did you mean max_wait"),
        ("wokers = 2", "unknown key 'wokers' (2); did you mean workers"),
        ("colour = 1", "unknown key 'colour' (1); allowed: provider, bind, workers,"),
        ("workers = 0", "workers: 0 is not allowed; it must be an integer of 1 or more"),
        ("threads = true", "threads: True is not allowed; it must be an integer of 1 or more"),
        ("hot = 'yes'", "hot: 'yes' is not allowed; it must be true or false"),
        ("bind = 8080", "bind: 8080 is not allowed; it must be a string"),
        ("[functions.a]\ncommand = ['x']", "unknown key 'functions'"),
        ("bind", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingError) as raised:
        ConfigFile.read(file)
    assert str(raised.value).startswith(str(file))
    assert said in str(raised.value)


def test_its_options_are_those_of_the_command() -> None:
    assert set(OPTIONS) == {*DEFAULTS, "provider"}
    assert set(vars(_parser().parse_args(["serve"]))) == {*DEFAULTS, "which", "config", "run"}
