"""Two sizes that a report may compare: what the course of a tumour is told by where no word tells it.

Read loosely: "12 -> 5", "6 mm (14)", "9 mm thick; it was 5 mm in October". An arrow goes forward in time, brackets hold what was.
Elsewhere the older size is often told by words that no pattern knows, so two different sizes may tell growth as well as shrinkage.
The encoders see such places and stage 2 may be asked about them; rules read the stricter patterns of stage2_relations/course.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.contracts import Span
from configs.mentions import Mention

_SIZE = re.compile(
    r"(?<![\d./#-])(?P<number>\d{1,3}(?:\.\d+)?)(?:\s?[x×*]\s?\d{1,3}(?:\.\d+)?){0,2}(?:\s?-?(?P<unit>cm|mm)\b)?"
    r"(?!\d|[./-]\d|\s?[월일년])",
    re.I,
)
_ARROW = re.compile(r"[^.;\n]{0,12}?(?:\([^()\n]{0,16}\))?[^.;\n]{0,12}?(?:-+>+|=>|→|>>+|\s>\s)\s*", re.I)
_BRACKET = re.compile(
    r"[,\s]*\(\s*(?:(?:it|was|were|previously|previous|prev|prior|before|formerly|from|then|last|on|in|vs|이전|기존|전)\.?:?\s+){0,3}",
    re.I,
)
_BRACKET_END = re.compile(r"(?:,?\s*(?:before|previously|prior|then|last \w+|in \w+|earlier))?\s*\)", re.I)
_COMPARED = re.compile(
    r"\b(?:was|were|had been|having been|formerly|previous(?:ly)?|prior|before|then|ago|last|used to|against|versus|vs|instead|once"
    r"|now|today|currently|at present|again|still|remain(?:s|ed)?|stay(?:s|ed)?|always|both"
    r"|in (?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\w*)\b"
    r"|지난|이전|전에|였|던|올해|현재|이번|금번",
    re.I,
)
_APART_CHARS = 70
_AFTER_CHARS = 30
_EQUAL_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class _Size:
    number: float
    unit: str | None
    start: int
    end: int


def compared_sizes(text: str, measured: Mapping[str, str]) -> list[Mention]:
    """A mention of each value that two neighbouring sizes may tell, by position; its span holds both.

    Args:
        measured: Values of what is `larger`, `smaller` and `equal`, of the task's course.
    """
    sizes = [
        _Size(float(match["number"]), match["unit"] and match["unit"].lower(), match.start(), match.end())
        for match in _SIZE.finditer(text)
    ]
    found = [
        Mention(measured[kind], Span(first.start, second.end))
        for first, second in itertools.pairwise(sizes)
        for kind in _kinds(text, first, second)
        if kind in measured
    ]
    return sorted(found, key=lambda mention: (mention.span, mention.name))


def _kinds(text: str, first: _Size, second: _Size) -> Sequence[str]:
    """What the second size may be to the first, as larger, smaller or equal; none where they are not compared."""
    if second.start - first.end > _APART_CHARS:
        return ()
    gap = text[first.end : second.start]
    if _ARROW.fullmatch(gap):
        return _direction(first, second)
    if first.unit and _BRACKET.fullmatch(gap) and _BRACKET_END.match(text, second.end):
        return _direction(second, first)
    if not (first.unit and second.unit) or "\n" in gap:
        return ()
    if not _COMPARED.search(text, first.end, min(len(text), second.end + _AFTER_CHARS)):
        return ()
    kinds = _direction(first, second)
    return kinds if kinds == ("equal",) else ("larger", "smaller")


def _direction(before: _Size, now: _Size) -> tuple[str]:
    before_mm, now_mm = _mm(before, now), _mm(now, before)
    if abs(before_mm - now_mm) <= _EQUAL_SHARE * max(before_mm, now_mm):
        return ("equal",)
    return ("larger",) if now_mm > before_mm else ("smaller",)


def _mm(size: _Size, other: _Size) -> float:
    """A bare number takes the unit of the other."""
    return size.number * (10 if (size.unit or other.unit) == "cm" else 1)
