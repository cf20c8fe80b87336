"""Which parts of a report are history: indication, clinical information, comparison, technique."""

from __future__ import annotations

import re
from collections.abc import Sequence

from configs.contracts import Span
from configs.cues import Cues

_HEAD = re.compile(
    r"[ \t]*[-*•■□#<(\[]*[ \t]*(?P<name>[A-Za-z가-힣][A-Za-z가-힣./& ]{0,40}?)[ \t]*(?P<end>[\])>]+[ \t]*[:：]?|[:：])"
)
_BARE_HEAD = re.compile(r"[ \t]*(?P<name>[A-Z][A-Z/& ]{2,40})[ \t]*")
_INLINE_HEAD = re.compile(r"(?:(?<=[.;?!])|(?<=\s\s)) *(?P<name>[A-Z][A-Za-z./& ]{2,30}?)(?P<end>:)")
_ITEM = re.compile(r"[ \t]*(?:[-*•>#]|\(?\d{1,2}[.)])")


def history_spans(text: str, sentences: Sequence[Span], cues: Cues) -> list[Span]:
    """Spans of the history sections; empty when nothing else would be left of the report.

    A heading holds until the next heading. One that has words on its own line holds to the end of that line, or further while the
    following lines are neither blank nor items of a list.
    """
    marks = _headings(text, cues)
    spans: list[Span] = []
    for position, (start, end, is_history) in enumerate(marks):
        if not is_history:
            continue
        following = marks[position + 1][0] if position + 1 < len(marks) else len(text)
        stop = _section_end(text, end, following)
        if stop > start:
            spans.append(Span(start, stop))
    left = [s for s in sentences if not any(span.start <= s.start < span.end for span in spans)]
    return spans if any(_WORDS.search(text[s.start : s.end]) for s in left) else []


_WORDS = re.compile(r"[A-Za-z가-힣]{3,}")


def _headings(text: str, cues: Cues) -> list[tuple[int, int, bool]]:
    marks: list[tuple[int, int, bool]] = []
    position = 0
    for line in text.splitlines(keepends=True):
        body = line.rstrip()
        match = _HEAD.match(body) or _BARE_HEAD.fullmatch(body)
        kind = None if match is None else _kind(match["name"], cues)
        if match is not None and kind is not None:
            marks.append((position + match.start("name"), position + match.end(), kind))
        for inline in _INLINE_HEAD.finditer(body):
            kind = _kind(inline["name"], cues)
            if kind is not None:
                marks.append((position + inline.start("name"), position + inline.end(), kind))
        position += len(line)
    return sorted(set(marks))


def _kind(name: str, cues: Cues) -> bool | None:
    name = name.strip()
    if cues.history_sections.fullmatch(name):
        return True
    return False if cues.report_sections.fullmatch(name) else None


def _section_end(text: str, start: int, limit: int) -> int:
    line_end = text.find("\n", start)
    if line_end < 0 or line_end >= limit:
        return limit
    if not text[start:line_end].strip():
        while line_end < limit and text[line_end] in "\n\r \t":
            line_end += 1
        start = line_end
    while True:
        line_end = text.find("\n", start)
        if line_end < 0 or line_end >= limit:
            return limit
        next_end = text.find("\n", line_end + 1)
        following = text[line_end + 1 : next_end if next_end >= 0 else len(text)]
        if not following.strip() or _ITEM.match(following):
            return line_end
        start = line_end + 1
