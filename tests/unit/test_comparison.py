"""The comparison with other projects: short, and nothing is said of them without a source."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / ".github" / "docs" / "comparison.md").read_text(encoding="utf-8")
SOURCES = re.findall(r"^\[([\w-]+)\]: https://", TEXT, re.MULTILINE)


def test_what_is_said_of_others_names_its_source() -> None:
    said = re.findall(r"^- \*(?:Does|Costs).*?(?=\n-|\n\n)", TEXT, re.MULTILINE | re.DOTALL)
    assert len(said) == 10
    assert [each for each in said if not re.search(r"\]\[[\w-]+\]", each)] == []


def test_each_source_is_named_and_there() -> None:
    assert sorted(SOURCES) == sorted(set(re.findall(r"\]\[([\w-]+)\]", TEXT)))


def test_it_is_short() -> None:
    assert TEXT.count("\n") <= 100
    assert max(map(len, TEXT.splitlines())) <= 120
