"""Splits runs of Hangul into morphemes. Nothing but Hangul is sent to the analyser: it tears Latin words before a period."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Protocol

SYLLABLES = re.compile(r"[가-힣]+")


class _Token(Protocol):
    start: int
    len: int


class _Analyser(Protocol):
    def tokenize(self, text: str) -> list[_Token]: ...


@cache
def _analyser() -> _Analyser:
    """The one Kiwi of this process. Loading it takes a second and 300 MB, so only a text with Hangul does it."""
    from kiwipiepy import Kiwi

    analyser: _Analyser = Kiwi(num_workers=1)
    return analyser


def analyser_version() -> str:
    """Version of the analyser's model, to the minor number. Another one may split otherwise, so tokenizer files carry it."""
    return "kiwi " + ".".join(version("kiwipiepy-model").split(".")[:2])


@lru_cache(maxsize=65536)
def morphemes(run: str) -> tuple[str, ...]:
    """Morphemes of a run of Hangul; they join to the run exactly.

    Kiwi restores contracted forms (했 is 하 + 었), whose pieces overlap in the text: overlapping pieces stay one. A run with jamo,
    or one that Kiwi's offsets do not tile, comes back whole.
    """
    if len(run) < 2 or not SYLLABLES.fullmatch(run):
        return (run,)
    pieces: list[tuple[int, int]] = []
    for token in _analyser().tokenize(run):
        start, end = token.start, token.start + token.len
        if start == end:  # a restored form that has no character of its own
            continue
        if pieces and start < pieces[-1][1]:
            start, end = pieces[-1][0], max(end, pieces[-1][1])
            pieces.pop()
        pieces.append((start, end))
    split = tuple(run[start:end] for start, end in pieces)
    return split if "".join(split) == run else (run,)
