"""Answers that come in pieces, and bounds of what is held of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scalezero_wsgi import ProviderError
from scalezero_wsgi.providers import answer
from scalezero_wsgi.providers.answer import read_lines, read_whole


@pytest.fixture(autouse=True)
def _limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_ANSWER", 5)


def test_a_whole_answer() -> None:
    assert read_whole([], "it") == b""
    assert read_whole([b"a", b"", b"bcde"], "it") == b"abcde"


def test_no_more_is_read_than_may_be() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"abc"
        yield b"def"
        raise AssertionError("too much was read")

    with pytest.raises(ProviderError, match="the gateway's answer is longer than 5 bytes"):
        read_whole(pieces(), "the gateway")
    with pytest.raises(ProviderError, match="a line of the gateway's stream is longer than 5 bytes"):
        list(read_lines(pieces(), "the gateway"))


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        ([b"a\n", b"b\n"], [b"a", b"b"]),
        ([b"a", b"b\nc", b"", b"\n"], [b"ab", b"c"]),
        ([b"a\nb\nc"], [b"a", b"b", b"c"]),
        ([b"12345\n", b"12345\n123", b"45"], [b"12345", b"12345", b"12345"]),
        ([b"a\n\nb\n"], [b"a", b"", b"b"]),
    ],
)
def test_lines(pieces: list[bytes], lines: list[bytes]) -> None:
    assert list(read_lines(pieces, "it")) == lines


def test_a_line_is_given_before_the_next_piece_comes() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a\nb"
        raise AssertionError("too much was read")

    assert next(read_lines(pieces(), "it")) == b"a"
