"""Cleans a report for the encoder and keeps the way back: every cleaned character knows its characters in the text as given."""

from __future__ import annotations

import unicodedata
from array import array
from dataclasses import dataclass

from configs.contracts import Span

PUNCTUATION = frozenset(".,:;?!()[]{}/\\-+=<>%#&*'\"~^@_")
# One character each, so that the offsets stay one to one.
VARIANTS = {
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys("‘’‚′", "'"),
    **dict.fromkeys("“”„″", '"'),
    **dict.fromkeys("∼～〜", "~"),
    **dict.fromkeys("→➔⇒⟶", ">"),
    **dict.fromkeys("≤≦", "<"),
    **dict.fromkeys("≥≧", ">"),
    "×": "x",
}
# Zero-width characters inside a word: dropping them must not part the word. U+200B is a word boundary and is not among them.
INVISIBLE = frozenset("\u00ad\u200c\u200d\u2060\ufeff") | frozenset(map(chr, range(0xFE00, 0xFE10)))


@dataclass(frozen=True, slots=True)
class CleanText:
    """A cleaned text. Cleaned character i stands for characters `[starts[i], ends[i])` of the text as given."""

    text: str
    starts: array[int]
    ends: array[int]

    def given(self, start: int, end: int) -> Span:
        """The span in the text as given of cleaned characters `[start, end)`."""
        return Span(self.starts[start], self.ends[end - 1])


def clean(text: str) -> CleanText:
    """White space runs, newlines among them, to one space; letters, marks, digits and common punctuation stay; the rest goes.

    A symbol that goes leaves a space behind where words would join. Cleaning a cleaned text changes nothing.
    """
    kept: list[str] = []
    starts, ends = array("I"), array("I")
    gap_start = -1
    for position, given in enumerate(text):
        if given in INVISIBLE:
            continue
        character = VARIANTS.get(given, given)
        if character.isalnum() or character in PUNCTUATION or (_is_mark(character) and _takes_mark(kept, gap_start)):
            if gap_start >= 0 and kept:
                kept.append(" ")
                starts.append(gap_start)
                ends.append(position)
            gap_start = -1
            kept.append(character)
            starts.append(position)
            ends.append(position + 1)
        elif gap_start < 0:
            gap_start = position
    return CleanText("".join(kept), starts, ends)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _takes_mark(kept: list[str], gap_start: int) -> bool:
    """A combining mark stays only on a letter or on a further mark that stands right before it."""
    return gap_start < 0 and bool(kept) and (kept[-1].isalnum() or _is_mark(kept[-1]))
