"""How far the cues of a sentence reach: which of its mentions they negate, resolve or place in the past.

A cue reaches inside its clause. Before a mention it runs through the list that follows ("no effusion, consolidation or nodule"),
after a mention through the list before ("흉수, 무기폐 없음"), and it stops where a new finding is stated.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from configs.contracts import Span
from configs.cues import Cues, TaskCues

Assertion = Literal["present", "negated", "historical", "resolved", "elsewhere"]
Reach = Literal["list", "segment", "nearest"]

_FILL = "_"
_COMPARISON_GAP_CHARS = 12
_PARENTHESIS = re.compile(r"\([^()]*\d[^()]*\)")
_DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d)")
_HANGUL = re.compile(r"[가-힣]")
_WORD = re.compile(r"[A-Za-z가-힣]{2,}")
_LOCATIVE = re.compile(r"에(?:는|도)?(?![가-힣])|\s*:")
_LIST_START = re.compile(r"(?:or|nor|is|are|was|were|has|have|measures?|measuring|shows?|lies|remains?)\b", re.IGNORECASE)
_PREPOSITION = re.compile(
    r"(?:in|of|at|on|within|from|to|near|for|the|both|either|along|involving|or|and|nor)[ \-]+$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Cue:
    start: int
    end: int
    assertion: Assertion
    before: bool
    reach: Reach


class SentenceReader:
    """Asserts the mentions of one sentence; positions inside are relative to the sentence."""

    def __init__(
        self, text: str, span: Span, cues: Cues, task_cues: TaskCues, entities: Sequence[Span], values: Sequence[Span]
    ) -> None:
        self.cues = cues
        self.task_cues = task_cues
        self.text = text[span.start : span.end]
        self.offset = span.start
        self.entities = [(max(m.start - span.start, 0), m.end - span.start) for m in entities]
        self.values = [(max(m.start - span.start, 0), m.end - span.start) for m in values]
        self.plain = _DIGIT_COMMA.sub(_FILL, _PARENTHESIS.sub(self._fill_numbers, self.text))
        self.masked = cues.not_negations.sub(_fill, self.plain)
        self.organs = [match.span() for match in task_cues.elsewhere.finditer(self.text)]
        self._found: dict[str, list[_Cue]] = {}

    def entity_assertions(self) -> list[Assertion]:
        """One assertion an entity mention, in order; words of mere change ("no increase") deny no finding."""
        text = self.cues.unchanged.sub(self._fill_unless_mention, self.masked)
        said = self._assertions(text, self.entities)
        return self._with_remainders(text, said)

    def value_assertions(self) -> list[Assertion]:
        """A comparison ("increased") is denied by the words that leave a finding standing ("no increase of the nodule")."""
        return self._assertions(self.masked, self.values, gap_chars=_COMPARISON_GAP_CHARS)

    def is_elsewhere(self, mention: Span) -> bool:
        """True where a word of another organ stands nearer than any value of the task, in the comma segment or the next one."""
        start, end = mention.start - self.offset, mention.end - self.offset
        organs = self.organs
        if not organs:
            return False
        left, right = self._segment(start, end)
        near = [organ for organ in organs if left <= organ[0] < right]
        if not near:
            others = [m for m in (*self.entities, *self.values) if right <= m[0]]
            near = [organ for organ in organs if right <= organ[0] <= right + 25 and all(m[0] > organ[0] for m in others)]
        distance = min((_distance(organ, (start, end)) for organ in near), default=None)
        if distance is None:
            return False
        return all(
            _distance(value, (start, end)) > distance for value in self.values if left <= value[0] < right or value[0] < start
        )

    def _segment(self, start: int, end: int) -> tuple[int, int]:
        left = max((self.plain.rfind(mark, 0, start) for mark in ",;"), default=-1) + 1
        right = min((position for mark in ",;" if (position := self.plain.find(mark, end)) >= 0), default=len(self.plain))
        return left, right

    def _fill_numbers(self, match: re.Match[str]) -> str:
        inside = any(match.start() <= start < match.end() for start, _ in (*self.entities, *self.values))
        negates = self.cues.negations_before.search(match.group()) or self.cues.resolutions_after.search(match.group())
        return match.group() if inside or negates else _fill(match)

    def _fill_unless_mention(self, match: re.Match[str]) -> str:
        return match.group() if any(m[0] < match.end() and match.start() < m[1] for m in self.entities) else _fill(match)

    def _with_remainders(self, text: str, said: list[Assertion]) -> list[Assertion]:
        """A finding denied on one side and stated on the other: "흉수는 좌측에 없고 우측에 소량", "gone in RML, LLL still few"."""
        if not any(assertion in ("negated", "resolved") for assertion in said):
            return said
        borders = sorted(
            {
                0,
                len(text),
                *(c[0] for c in _clauses(self.plain, self.cues.scope_ends)),
                *(i for i, c in enumerate(text) if c == ","),
            }
        )
        for start, end in itertools.pairwise(borders[1:]):
            before = [position for position, m in enumerate(self.entities) if m[1] <= start]
            if not before or any(start <= m[0] < end for m in self.entities):
                continue
            piece = text[start:end]
            sided = any(start <= v[0] < end for v in self.values) or any(side.search(piece) for side in self.cues.sides.values())
            if not sided or self.cues.new_finding.search(piece) is None or self._find_cues(piece):
                continue
            bare = self.cues.new_finding.sub(" ", piece)
            for side in self.cues.sides.values():
                bare = side.sub(" ", bare)
            if not self._holds_noun(text[:start] + bare.ljust(end - start)[: end - start], start, end):
                last = self.entities[before[-1]]
                for position in before:
                    if self.entities[position] == last and said[position] in ("negated", "resolved"):
                        said[position] = "present"
        return said

    def _assertions(self, text: str, targets: Sequence[tuple[int, int]], *, gap_chars: int | None = None) -> list[Assertion]:
        """gap_chars: how far before a cue that follows its noun a target may end; None: any distance in reach."""
        said: list[Assertion] = ["present"] * len(targets)
        if not targets:
            return said
        cues = self._find_cues(text)
        if not cues:
            return said
        bounds = _clauses(self.plain, self.cues.scope_ends)
        for cue in sorted(cues, key=lambda c: (c.assertion != "historical", c.assertion == "resolved", c.start)):
            clause = next((c for c in bounds if c[0] <= cue.start < c[1]), (0, len(text)))
            opens = cue.assertion == "resolved" and not _WORD.search(text[clause[0] : cue.start])
            reached = (
                self._reach_forward(text, cue, clause, cues, targets)
                if cue.before or opens
                else self._reach_back(text, cue, clause, cues, targets)
            )
            for position in reached:
                start, end = targets[position]
                if not cue.before and gap_chars is not None and cue.start - end > gap_chars:
                    continue
                if not (start < cue.end and cue.start < end):
                    said[position] = cue.assertion
        return said

    def _find_cues(self, text: str) -> list[_Cue]:
        """Cues of the sentence, of overlapping ones the longest; entities and values mostly share one search."""
        if text not in self._found:
            self._found[text] = self._search_cues(text)
        return self._found[text]

    def _search_cues(self, text: str) -> list[_Cue]:
        cues, task_cues = self.cues, self.task_cues
        kinds: tuple[tuple[re.Pattern[str], Assertion, bool, Reach], ...] = (
            (cues.negation_marks, "negated", False, "nearest"),
            (cues.dismissals_after, "negated", False, "segment"),
            (cues.resolutions_after, "resolved", False, "list"),
            (cues.negations_after, "negated", False, "list"),
            (cues.resolutions_before, "resolved", True, "list"),
            (cues.negations_before, "negated", True, "list"),
            (cues.historical_before, "historical", True, "list"),
            (task_cues.historical_before, "historical", True, "list"),
            (cues.historical_after, "historical", False, "segment"),
            (task_cues.historical_after, "historical", False, "segment"),
        )
        found = [
            _Cue(*match.span(), assertion, before, reach)
            for pattern, assertion, before, reach in kinds
            for match in pattern.finditer(text)
        ]
        kept: list[_Cue] = []
        for cue in sorted(found, key=lambda c: c.start - c.end):
            if not any(cue.start < other.end and other.start < cue.end for other in kept):
                kept.append(cue)
        return sorted(kept, key=lambda c: c.start)

    def _reach_forward(
        self, text: str, cue: _Cue, clause: tuple[int, int], cues: Sequence[_Cue], targets: Sequence[tuple[int, int]]
    ) -> list[int]:
        stop = min(
            [clause[1], *(other.start for other in cues if other.start >= cue.end and (other.before or other.reach == "nearest"))]
        )
        pieces = _pieces(text, cue.end, stop)
        reached: list[int] = []
        for number, (start, end) in enumerate(pieces):
            if number and not self._list_goes_on(text, pieces, number):
                break
            limit = self._run_on_limit(text, start, end)
            reached += [
                position
                for position, (m_start, m_end) in enumerate(targets)
                if start <= m_start < limit and not self._is_presupposed_before(text, cue.end, m_start)
            ]
            if limit < end:
                break
        return reached

    def _list_goes_on(self, text: str, pieces: Sequence[tuple[int, int]], number: int) -> bool:
        start, end = pieces[number]
        piece = text[start:end].lstrip(" ,")
        if _FILL * 4 in piece or _LIST_START.match(piece):
            return re.match(r"(?:or|nor)\b", piece) is not None
        if not any(start <= m[0] < end for m in self.entities) and len(_WORD.findall(piece)) > 4:
            return False
        finding = self.cues.new_finding.search(piece)
        if finding is not None and (finding.start() == 0 or finding.group()[0].isdigit() or re.match(r"and\b", piece)):
            return False
        joins_later = any(self._has_or(text[a:b]) for a, b in pieces[number:])
        return joins_later or not any(start <= value[0] < end for value in self.values)

    def _has_or(self, piece: str) -> bool:
        return re.search(r"\b(?:or|nor)\b", piece) is not None

    def _run_on_limit(self, text: str, start: int, end: int) -> int:
        """Where the reach of a forward cue ends inside a segment: "no eff small nodule RUL" states the nodule."""
        inside = [m for m in self.entities if start <= m[0] < end]
        for (_, last_end), (next_start, next_end) in itertools.pairwise(inside):
            if next_start <= last_end:
                continue
            between = text[last_end:next_start]
            if not between.strip() and (text[next_end : next_end + 8].strip()[:1].isdigit() or self._is_value_next(next_end)):
                return next_start
            if re.search(r"\b(?:or|nor)\b|/", between):
                continue
            finding = self.cues.new_finding.search(between)
            if finding is not None:
                return last_end + finding.start()
            for value in self.values:
                if (
                    last_end <= value[0] < next_start
                    and not _PREPOSITION.search(text[last_end : value[0]])
                    and " and " not in between
                ):
                    return value[0]
        return end

    def _is_value_next(self, end: int) -> bool:
        return any(end <= value[0] <= end + 2 for value in self.values)

    def _is_presupposed_before(self, text: str, cue_end: int, mention_start: int) -> bool:
        last = None
        for match in self.cues.presupposed_before.finditer(text, cue_end, mention_start):
            last = match
        return last is not None and last.end() == mention_start and bool(_WORD.search(text[cue_end : last.start()]))

    def _reach_back(
        self, text: str, cue: _Cue, clause: tuple[int, int], cues: Sequence[_Cue], targets: Sequence[tuple[int, int]]
    ) -> list[int]:
        begin = max([clause[0], *(other.end for other in cues if other.end <= cue.start)])
        if cue.assertion == "resolved" and begin == clause[0] and not self._holds_noun(text, begin, cue.start):
            begin = max([0, *(other.end for other in cues if other.end <= cue.start)])
        pieces = _pieces(text, begin, cue.start)
        reached: list[int] = []
        for number in range(len(pieces) - 1, -1, -1):
            start, end = pieces[number]
            inside = [position for position, m in enumerate(targets) if start <= m[0] < end]
            if number == len(pieces) - 1:
                if cue.reach == "nearest" and inside:
                    return self._nearest(text, inside, targets, cue.start)
                reached += self._not_presupposed_after(text, inside, targets, cue.start)
            elif number == len(pieces) - 2 and cue.reach != "nearest" and not self._holds_noun(text, *pieces[-1]):
                reached += self._not_presupposed_after(text, inside, targets, cue.start)
            elif cue.reach != "segment" and self._list_came_before(text, start, end):
                reached += inside
            else:
                break
        return reached

    def _nearest(self, text: str, inside: Sequence[int], targets: Sequence[tuple[int, int]], cue_start: int) -> list[int]:
        reached: list[int] = []
        if "+" in text[targets[inside[-1]][1] : cue_start]:
            return reached
        for position in reversed(inside):
            if reached:
                between = text[targets[position][1] : targets[reached[-1]][0]].strip(" ")
                overlaps = targets[position][1] > targets[reached[-1]][0]
                if not overlaps and self.cues.list_joins.fullmatch(between) is None:
                    break
            reached.append(position)
        return reached

    def _not_presupposed_after(
        self, text: str, inside: Sequence[int], targets: Sequence[tuple[int, int]], cue_start: int
    ) -> list[int]:
        kept = []
        for position in inside:
            match = self.cues.presupposed_after.match(text, targets[position][1], cue_start)
            if match is None or not _WORD.search(text[match.end() : cue_start]):
                kept.append(position)
        return kept

    def _holds_noun(self, text: str, start: int, end: int) -> bool:
        if any(start <= m[0] < end for m in self.entities):
            return True
        piece = text[start:end]
        for value_start, value_end in self.values:
            if start <= value_start < end:
                piece = (
                    piece[: value_start - start] + " " * (min(value_end, end) - value_start) + piece[min(value_end, end) - start :]
                )
        return _WORD.search(self.cues.no_noun.sub(" ", piece)) is not None

    def _list_came_before(self, text: str, start: int, end: int) -> bool:
        piece = text[start:end].strip(" ,")
        if not piece or _FILL * 3 in piece or self.cues.new_finding.search(piece) is not None:
            return False
        values = [value for value in self.values if start <= value[0] < end]
        return all(_LOCATIVE.match(text, value[1]) for value in values)


def _fill(match: re.Match[str]) -> str:
    return _FILL * len(match.group())


def _clauses(text: str, ends: re.Pattern[str]) -> list[tuple[int, int]]:
    bounds = []
    start = 0
    for match in ends.finditer(text):
        bounds.append((start, match.end()))
        start = match.end()
    bounds.append((start, len(text)))
    return bounds


def _pieces(text: str, start: int, end: int) -> list[tuple[int, int]]:
    pieces = []
    begin = start
    for position in range(start, end):
        if text[position] in ",，、":
            pieces.append((begin, position))
            begin = position + 1
    pieces.append((begin, end))
    return pieces


def _distance(a: tuple[int, int], b: tuple[int, int]) -> int:
    return max(a[0] - b[1], b[0] - a[1], 0)
