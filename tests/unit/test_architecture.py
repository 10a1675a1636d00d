"""ARCHITECTURE.md names files, tests and phases: they must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import scalezero_wsgi
from scalezero_wsgi.activation.activation import Phase
from scalezero_wsgi.activation.function_cache import Freshness

PACKAGE = Path(scalezero_wsgi.__file__).parent
ROOT = Path(__file__).parents[2]
TEXT = (PACKAGE / "ARCHITECTURE.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+(?:\.py|/)(?:::[\w:]+)?)`", TEXT)))


@pytest.mark.parametrize("named", NAMED)
def test_what_it_names_is_there(named: str) -> None:
    path, _, test = named.partition("::")
    places = [PACKAGE / path, ROOT / path, PACKAGE / "activation" / path]
    found = [place for place in places if place.exists()]
    assert found, named
    source = found[0].read_text(encoding="utf-8") if test else ""
    for part in filter(None, test.split("::")):
        assert re.search(rf"(class|def) {part}\b", source), named


def test_its_diagrams_have_every_state() -> None:
    assert [name for name in [*Phase.__members__, *Freshness.__members__] if name not in TEXT] == []


def test_its_glossary_is_in_order() -> None:
    terms = re.findall(r"^- \*\*([^*]+)\*\*", TEXT.partition("## Glossary")[2], re.MULTILINE)
    assert terms == sorted(terms)
