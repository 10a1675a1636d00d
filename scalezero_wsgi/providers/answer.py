"""Read what an engine answers, and no more than that may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..model import ProviderError

MAX_ANSWER = 16 * 2**20
"""Bytes of a whole answer, or of one line of a stream, that are held at most."""


def read_whole(pieces: Iterable[bytes], who: str) -> bytes:
    """Return an answer's body.

    :param pieces: the body, as it comes from the connection: not decoded, for a few bytes of gzip unpack to a
        thousand times as many.
    :param who: answers, such as ``"the gateway"``.
    :raises ProviderError: it is longer than ``MAX_ANSWER``; what follows was not read.
    """
    body = bytearray()
    for piece in pieces:
        body += piece
        _check(len(body), f"{who}'s answer")
    return bytes(body)


def read_lines(pieces: Iterable[bytes], who: str) -> Iterator[bytes]:
    """Yield the lines of a stream as they come, without their ends; the last one may have none.

    :param pieces: as for :func:`read_whole`.
    :param who: sends the stream.
    :raises ProviderError: a line is longer than ``MAX_ANSWER``.
    """
    begun = bytearray()
    for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for line in ended:
            yield bytes(begun + line)
            begun.clear()
        begun += rest
        _check(len(begun), f"a line of {who}'s stream")
    if begun:
        yield bytes(begun)


def _check(length: int, what: str) -> None:
    if length > MAX_ANSWER:
        raise ProviderError(f"{what} is longer than {MAX_ANSWER} bytes")
