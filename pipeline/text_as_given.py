"""The text as given: which texts are refused, and how spans in the text the stages read lead back to it.

The stages read Unicode NFC with control characters as spaces; records speak of the text as given.
"""

from __future__ import annotations

import unicodedata
from array import array
from dataclasses import dataclass
from functools import cache

from configs.contracts import Report, Span

DEFAULT_MAX_REPORT_CHARS = 100_000

_WHITE_CONTROLS = frozenset("\t\n\v\f\r\x85")
_CONTROL_TO_SPACE = {c: " " for c in (*range(0x01, 0x20), *range(0x7F, 0xA0)) if chr(c) not in _WHITE_CONTROLS}


@dataclass(frozen=True, slots=True)
class UnusableRow(Report):
    """An input row with an id but without a usable text. `problem` says why; it becomes a rejected record."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class StageText:
    """A text as the stages read it.

    Character i of `text` stands for characters `[starts[i], ends[i])` of the text as given; both are None when each character
    stands for itself.
    """

    text: str
    starts: array[int] | None = None
    ends: array[int] | None = None

    def as_given(self, span: Span) -> Span:
        """The smallest span of the text as given that holds all of `span`. Raises ValueError when `span` leaves the text."""
        if span.end > len(self.text):
            raise ValueError(f"span [{span.start}, {span.end}) leaves a text of {len(self.text)} characters")
        if self.starts is None or self.ends is None:
            return span
        return Span(self.starts[span.start], self.ends[span.end - 1])


def text_problem(text: object, *, max_chars: int = DEFAULT_MAX_REPORT_CHARS) -> str | None:
    """Why `text` is refused, or None when it can be read. Positions count from 0; the text itself is never quoted."""
    if not isinstance(text, str):
        return f"text is {'null' if text is None else 'a ' + type(text).__name__}; a string is expected"
    if len(text) > max_chars:
        return f"text has {len(text)} characters; at most {max_chars} are read"
    nul = text.find("\0")
    if nul >= 0:
        return f"text holds NUL at character {nul}"
    if (surrogate := _undecodable(text)) is not None:
        return surrogate
    if not any(character.isprintable() and not character.isspace() for character in text):
        return "text is empty" if not text else "text holds nothing but white space and control characters"
    return None


def stage_text(text: str) -> StageText:
    """`text` in NFC with control characters as spaces, and the way back."""
    spaced = text.translate(_CONTROL_TO_SPACE)
    if unicodedata.is_normalized("NFC", spaced):
        return StageText(spaced)
    parts: list[str] = []
    starts, ends = array("L"), array("L")
    for start, end in _segments(spaced):
        given = spaced[start:end]
        composed = unicodedata.normalize("NFC", given)
        parts.append(composed)
        if composed == given:
            starts.extend(range(start, end))
            ends.extend(range(start + 1, end + 1))
        else:
            starts.extend([start] * len(composed))
            ends.extend([end] * len(composed))
    return StageText("".join(parts), starts, ends)


def _undecodable(text: str) -> str | None:
    """Sources decode with surrogateescape, so a byte that is not UTF-8 arrives as U+DC80 to U+DCFF."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = text[error.start]
        if "\udc80" <= character <= "\udcff":
            return f"text is not UTF-8 at byte {len(text[: error.start].encode())}"
        return f"text holds half of a surrogate pair at character {error.start}"
    return None


def _segments(text: str) -> list[tuple[int, int]]:
    """Cuts before every character that normalisation cannot join to what stands before it: NFC works inside each piece alone."""
    cuts = [i for i, character in enumerate(text) if i == 0 or not _may_join(character)]
    return list(zip(cuts, [*cuts[1:], len(text)], strict=True))


def _may_join(character: str) -> bool:
    if character < "\u0300":
        return False
    if unicodedata.combining(character):
        return True
    return character in _joining_starters()


@cache
def _joining_starters() -> frozenset[str]:
    """Characters of combining class 0 that can be joined to the character before them.

    They are the Hangul vowel and final jamo, the second halves of canonical compositions (Unicode Standard Annex 15,
    NFC_QC=Maybe), and characters whose own decomposition begins with one of these or with a combining mark.
    """
    halves = {chr(c) for c in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    decomposed: dict[str, str] = {}
    for code in range(0x300, 0x30000):  # no canonical decomposition stands beyond plane 2
        character = chr(code)
        mapping = unicodedata.decomposition(character)
        if mapping and not mapping.startswith("<"):
            decomposed[character] = unicodedata.normalize("NFD", character)
            pair = mapping.split()
            if len(pair) == 2:
                halves.add(chr(int(pair[1], 16)))
    begins_inside = {c for c, whole in decomposed.items() if whole[0] in halves or unicodedata.combining(whole[0])}
    return frozenset(c for c in halves | begins_inside if not unicodedata.combining(c))
