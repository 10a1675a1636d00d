"""The recipes show files that are there and can be read; tests/servers and tests/engines run them."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalezero_wsgi import ScaleZeroMiddleware, Settings
from scalezero_wsgi.cli import _parser
from scalezero_wsgi.providers import OpenFaaSProvider, ProcessProvider, make_provider
from scalezero_wsgi.schedule import schedule

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tests" / "examples"
PAGES = {path.stem: path for path in sorted((ROOT / ".github" / "docs" / "recipes").glob("*.md"))}
LINKED_ONLY = {"compose/Dockerfile"}
"""Files that a page links, for it would be too long with them."""

every_page = pytest.mark.parametrize("page", PAGES)


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def example(path: str) -> str:
    return (EXAMPLES / path).read_text(encoding="utf-8")


def every_yaml(path: str) -> list[Any]:
    return list(yaml.safe_load_all(example(path)))


@every_page
def test_a_page_shows_its_files_as_they_are(page: str) -> None:
    shown = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", text_of(page), re.DOTALL))
    files = {
        path.name: path.read_text(encoding="utf-8") for path in (EXAMPLES / page).iterdir() if path.is_file()
    }
    assert shown == {name: text for name, text in files.items() if f"{page}/{name}" not in LINKED_ONLY}


@every_page
def test_a_page_is_short_and_says_what_was_tested(page: str) -> None:
    text = text_of(page)
    assert text.count("\n") <= 60
    assert max(map(len, text.splitlines())) <= 120
    assert "\nTested: " in text


@every_page
def test_what_a_page_links_is_there(page: str) -> None:
    for target in re.findall(r"\]\((?!https://)([^)#]+)\)", text_of(page)):
        assert (PAGES[page].parent / target).is_file(), target


def commands_of(page: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", text_of(page), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@every_page
def test_the_shell_can_read_the_commands(page: str) -> None:
    for block in re.findall(r"```sh\n(.*?)```", text_of(page), re.DOTALL):
        subprocess.run(["/bin/sh", "-n"], input=block.encode(), check=True)


@every_page
def test_the_commands_of_this_package_have_these_options(page: str) -> None:
    for name, *arguments in commands_of(page):
        if name.rpartition("/")[2] == "scalezero-wsgi":
            _parser().parse_args(arguments)


@every_page
def test_gunicorn_serves_an_app_that_the_page_shows(page: str) -> None:
    for name, *arguments in commands_of(page):
        if name == "gunicorn":
            module, _, app = arguments[-1].partition(":")
            assert re.search(rf"^{app} = ", example(f"{page}/{module}.py"), re.MULTILINE)


@every_page
def test_what_is_installed_are_extras_that_exist(page: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    everything = "".join(
        path.read_text(encoding="utf-8") for path in (EXAMPLES / page).iterdir() if path.is_file()
    )
    named = re.findall(r"(?:'\.|\.whl\)|\.whl)\[([\w,]+)\]", text_of(page) + everything)
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()


@every_page
def test_what_is_set_in_the_environment_are_settings(page: str) -> None:
    everything = "".join(
        path.read_text(encoding="utf-8") for path in (EXAMPLES / page).iterdir() if path.is_file()
    )
    found = re.findall(r"\bSCALEZERO_(\w+)(?:=|, value: )([^\s}`]+)", text_of(page) + everything)
    for name, value in found:
        if name != "COORDINATION":  # which may connect; the tests of that recipe do
            Settings.from_mapping({f"SCALEZERO_{name}": value})


class TestCompose:
    """No Compose is at hand: the file is checked for what the recipe needs of it."""

    (compose,) = every_yaml("compose/compose.yaml")

    def test_it_has_the_keys_of_the_compose_specification(self) -> None:
        assert self.compose.keys() == {"services", "networks"}
        known = {"build", "image", "command", "ports", "expose", "volumes", "networks", "labels"}
        for service in self.compose["services"].values():
            assert service.keys() <= known
            assert ("build" in service) != ("image" in service)
            assert set(service["networks"]) == set(self.compose["networks"])

    def test_app_and_function_agree(self) -> None:
        app = example("compose/flask_app.py")
        (function,) = self.compose["services"].keys() - {"web"}
        assert self.compose["services"][function]["labels"]["scalezero.function"] == function
        assert f'allow=["{function}"]' in app
        (network,) = re.findall(r"docker://\?network=(\w+)", app)
        assert self.compose["networks"][network]["name"] == network
        bind = re.findall(r'"-b", "0\.0\.0\.0:(\d+)"', example("compose/Dockerfile"))
        assert [port.rpartition(":")[2] for port in self.compose["services"]["web"]["ports"]] == bind


class TestContainer:
    INSTRUCTIONS = ("FROM", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD", "WORKDIR")

    @pytest.mark.parametrize("path", ["compose/Dockerfile", "container/Dockerfile"])
    def test_every_line_is_an_instruction(self, path: str) -> None:
        lines = example(path).replace("\\\n", "").splitlines()
        assert [line for line in lines if line.split()[0] not in self.INSTRUCTIONS] == []
        assert lines[0].startswith("FROM ")

    def test_the_command_listens_where_the_image_says(self) -> None:
        lines = dict(line.split(" ", 1) for line in example("container/Dockerfile").splitlines())
        entry, command = (yaml.safe_load(lines[name]) for name in ("ENTRYPOINT", "CMD"))
        chosen = _parser().parse_args([*entry[1:], *command])
        assert chosen.bind == f"0.0.0.0:{lines['EXPOSE']}"
        assert f":{lines['EXPOSE']}/healthz" in lines["HEALTHCHECK"]
        make_provider(chosen.which)


class TestNight:
    def test_the_file_is_read_as_the_page_says(self) -> None:
        provider = ProcessProvider.from_toml(EXAMPLES / "night" / "functions.toml")
        (model,) = provider.functions.values()
        schedule(model.keep_warm)
        assert (model.sleep, model.wake) == ("/sleep?level=1", "/wake_up")


class TestOpenFaaS:
    def test_the_app_is_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("basic-auth-user", "basic-auth-password"):
            (tmp_path / name).write_text("admin\n", encoding="utf-8")
        code = example("openfaas/openfaas_app.py").replace("/var/secrets/gateway", str(tmp_path))
        made: dict[str, Any] = {}
        exec(code, made)
        assert isinstance(made["application"], ScaleZeroMiddleware)
        assert isinstance(made["provider"], OpenFaaSProvider)

    def test_the_stack_has_labels_that_are_text(self) -> None:
        (stack,) = every_yaml("openfaas/stack.yaml")
        for function in stack["functions"].values():
            assert all(isinstance(label, str) for label in function["labels"].values())


class TestKubernetes:
    things = every_yaml("kubernetes/scalezero.yaml")

    def test_the_binding_joins_the_account_and_the_role_that_the_tests_run_with(self) -> None:
        role = yaml.safe_load(
            (ROOT / "tests" / "engines" / "kubernetes_role.yaml").read_text(encoding="utf-8")
        )
        of_kind = {thing["kind"]: thing for thing in self.things}
        binding = of_kind["RoleBinding"]
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        account = of_kind["ServiceAccount"]["metadata"]["name"]
        assert [subject["name"] for subject in binding["subjects"]] == [account]
        assert of_kind["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == account

    def test_the_container_is_that_of_its_recipe(self) -> None:
        deployment = next(thing for thing in self.things if thing["kind"] == "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        _parser().parse_args(["serve", *container["args"]])
        assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in example("container/Dockerfile")


class TestSystemd:
    def test_the_unit_has_its_sections_and_a_command_of_this_package(self) -> None:
        unit = configparser.ConfigParser(interpolation=None)
        unit.read_string(example("systemd/scalezero.service"))
        assert unit.sections() == ["Unit", "Service", "Install"]
        program, *arguments = shlex.split(unit["Service"]["ExecStart"])
        assert program.endswith("/scalezero-wsgi")
        _parser().parse_args(arguments)
