"""What the package's modules import of each other, read from their source: no circles, and only downwards."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scalezero_wsgi

PACKAGE = Path(scalezero_wsgi.__file__).parent
NAME = "scalezero_wsgi"

MAY_IMPORT: dict[str, set[str]] = {
    "_lib": set(),
    "model": set(),
    "schedule": {"_lib", "model"},
    "events": {"_lib", "model"},
    "servers": {"_lib", "model"},
    "providers": {"_lib", "model", "schedule"},
    "coordination": {"_lib", "model", "events", "servers"},
    "activation": {"_lib", "model", "schedule", "events", "servers", "providers", "coordination"},
    "pages": {"_lib", "model"},
    "web": {"_lib", "model", "events", "servers", "activation", "pages"},
    "savings": {"_lib", "model", "coordination"},
    "simulation": {"_lib", "model", "activation"},
    "setting_readers": {"_lib", "model", "schedule", "events", "coordination", "web"},
    "settings": {"_lib", "model", "events", "coordination", "activation", "setting_readers", "web"},
    "proxy": {"_lib", "model", "servers"},
    "operate": {"model", "providers"},
    "integrations": {
        *("_lib", "model", "events", "servers", "providers", "coordination", "activation", "pages", "web"),
        *("savings", "settings", "middleware", "operate"),
    },
}
"""The rooms, and the modules beside them, each with those below it. What is not named here stands at the top
and may import everything: the middleware, the command, the public names and the contracts for tests."""

EXPECTED = {
    # as_text(), a function's name in a URL, belongs to routing, which imports nothing but model.
    ("pages", "web.routing"),
}
"""Imports of a room that do not go downwards and may stay for now."""


def modules() -> dict[str, Path]:
    """Return the package's modules by their names, without the package's own in front; ``""`` is itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        *rooms, last = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(rooms if last == "__init__" else [*rooms, last])] = path
    return found


MODULES = modules()


def imports_of(source: str, package: list[str]) -> Iterator[str]:
    """Yield the package's modules that a source imports when it runs; one in a function counts as well.

    :param package: the package that the source is in, from ``scalezero_wsgi`` downwards but without it.
    """
    for node in without_type_checking(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [NAME, *package][: len(package) + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == NAME:
                yield rest if rest in MODULES else rest.rpartition(".")[0]


def without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those that only a type checker comes to."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from without_type_checking(node)


def package_of(module: str) -> list[str]:
    parts = module.split(".") if module else []
    return parts if MODULES[module].name == "__init__.py" else parts[:-1]


IMPORTS = {
    module: set(imports_of(path.read_text(encoding="utf-8"), package_of(module))) - {module}
    for module, path in MODULES.items()
}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def upward() -> set[tuple[str, str]]:
    """Return each room's imports of a module that is not below it."""
    return {
        (room_of(module), imported)
        for module, all_imported in IMPORTS.items()
        for imported in all_imported
        if room_of(module) in MAY_IMPORT
        and room_of(imported) not in MAY_IMPORT[room_of(module)] | {room_of(module)}
    }


def test_no_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()  # else it raises a CycleError, which names the circle


def test_rooms_import_downwards() -> None:
    assert upward() == EXPECTED


def test_the_table_names_what_there_is_and_has_no_circle() -> None:
    assert set(MAY_IMPORT) <= {room_of(module) for module in MODULES}
    TopologicalSorter(MAY_IMPORT).prepare()


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("from ..model import Function", {"model"}),
        ("from .. import events, model", {"events", "model"}),
        ("from . import access", {"web.access"}),
        ("from .access import Rule", {"web.access"}),
        ("import scalezero_wsgi.web.access", {"web.access"}),
        ("from scalezero_wsgi import model", {"model"}),
        ("from scalezero_wsgi import Function", {""}),
        ("def late():\n    from ..model import Function", {"model"}),
        ("if TYPE_CHECKING:\n    from ..model import Function\nelse:\n    from ..events import Event", set()),
        ("import json, requests.adapters", set()),
    ],
)
def test_every_form_of_import_is_seen(line: str, imported: set[str]) -> None:
    assert set(imports_of(line, ["web"])) == imported
