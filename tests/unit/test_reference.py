"""The API reference has what the README and the package call public."""

from __future__ import annotations

import re
from pathlib import Path

from scalezero_wsgi.providers import _MODULES

ROOT = Path(__file__).parents[2]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "docs").glob("*.rst")}
README = (ROOT / "README.md").read_text(encoding="utf-8")
PUBLIC = README.partition("\n## What is public\n")[2].partition("\n## ")[0]


def test_every_public_module_has_its_place() -> None:
    modules, _, integrations = PUBLIC.partition("`.integrations` (")
    named = set(re.findall(r"`(?:scalezero_wsgi)?((?:\.\w+)*)`", modules))
    named |= {f".integrations.{name}" for name in re.findall(r"`(\w+)`", integrations.partition(")")[0])}
    assert {"", ".providers", ".integrations.flask"} <= named
    assert named - set(re.findall(r":: scalezero_wsgi(\S*)", "".join(PAGES.values()))) == set()


def test_every_page_is_in_the_index() -> None:
    listed = re.findall(r"^   (\w+)$", PAGES["index"], re.MULTILINE)
    assert sorted(listed) == sorted(PAGES.keys() - {"index"})


def test_every_provider_that_is_made_when_used_has_its_place() -> None:
    """Sphinx finds no name that the module looks up only when somebody asks for it."""
    placed = re.findall(r"autoclass:: scalezero_wsgi\.providers\.(\w+)", PAGES["providers"])
    assert sorted(placed) == sorted(_MODULES)
