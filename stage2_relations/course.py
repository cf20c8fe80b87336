"""How each followed subject changed since the earlier study: whose change a comparison word tells, and what is stated outright."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from configs.contracts import Span
from configs.cues import Course, Cues, TaskCues
from configs.schema import Task
from stage2_relations.assertion import AssertedMention, ReportMentions

Found = dict[str, dict[str, tuple[Span | None, Span | None]]]

_SIZE = r"(?<![\d./-])(\d+(?:\.\d+)?)((?:\s?[x×*]\s?\d+(?:\.\d+)?|[\s-]?(?:cm|mm))*)(?!\d|[./-]\d|\s?[월일년개])"
_MONTH = (
    r"(?:(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)(?:uary|ruary|ch|il|e|y|ust|ember|tember|ober)?\b\.?"
    r"|\d{1,2}월(?:에|의)?)"
)
_EARLIER = rf"(?:before|previously|prev\b\.?|prior|earlier|then\b|(?:in|on|at) (?:{_MONTH}|(?:last|the previous)|baseline))"
_ARROW = re.compile(rf"{_SIZE}[^.,;\d]{{0,12}}?(?:-+>+|=>|>>+|\s>\s|→|에서)\s*(?:about |약 )?{_SIZE}(?!\s*(?:-+>|→))", re.I)
_FROM = re.compile(rf"(?<!ranging )(?<!varying )(?<!size )from {_SIZE} to {_SIZE}", re.I)
_BECAME = re.compile(
    rf"{_SIZE}[^.;:()\d\n]{{0,50}}?"
    r"(?:\b(?:now|has become|today|currently|and is|still)\b|현재|금번|금일|이번|[이였]던 것[이은])"
    rf"[^.,;:\d\n]{{0,25}}?{_SIZE}"
    rf"|{_SIZE},? (?:then|{_EARLIER}),? (?:and |but )?{_SIZE},? (?:now|today|currently)",
    re.I,
)
_WAS = re.compile(
    rf"{_SIZE}[\s,;(]*(?:across )?"
    r"(?:\(?(?:(?:it |had |which had )*(?:was|measured)|previously|prev\.?|before|from|vs\.?|versus|against"
    rf"|instead of|compared (?:to|with)|이전|기존|(?<=\()전|{_MONTH})[\s:]*(?:measured |measuring |about )?){_SIZE}"
    rf"|{_SIZE}[^.;:\d\n]{{0,15}}?[\s]*[,(]\s*{_SIZE},? {_EARLIER}",
    re.I,
)
_SEGMENT = re.compile(r"[,;，]|(?<=[가-힣])(?:고|며|으나|지만|나)(?= )|\b(?:but|while|whereas|however)\b|\.\s")
_PREPOSITION = re.compile(
    r"\b(?:in|of|along|around|to|at|within|near|from|over|by|on|into|beneath|behind)\s+(?:(?:the|both|an?|its|rt\.?|lt\.?|right|left|\w+al|\w+or)\s+){0,3}$",
    re.IGNORECASE,
)
_RIGHT_CHARS = 45
_EQUAL_SHARE = 0.05
# Beyond it the number is a year, an image or a dose.
_LARGEST_MM = 200
_BESIDE_CHARS = 12


@dataclass(frozen=True, slots=True)
class _Change:
    """A comparison in the text: a value, where it stands, and whether it is only used where nothing else is said."""

    value: str
    span: Span
    sentence: int
    weak: bool


@dataclass(frozen=True, slots=True)
class _Target:
    """What a change can be about: a subject by name, a word that stands for it, or a bystander (`names` empty, `ours` False)."""

    start: int
    end: int
    names: tuple[str, ...]
    ours: bool


def course_values(
    task: Task, cues: Cues, task_cues: TaskCues, text: str, mentions: ReportMentions
) -> tuple[Found, Mapping[str, Sequence[Span]]]:
    """Values of followed subjects, and the subjects that are present although only the history names them, with spans."""
    course = task_cues.course
    if course is None:
        return {}, {}
    return _CourseReader(task, cues, course, text, mentions).read()


class _CourseReader:
    def __init__(self, task: Task, cues: Cues, course: Course, text: str, mentions: ReportMentions) -> None:
        self.task = task
        self.cues = cues
        self.course = course
        self.text = text
        self.mentions = mentions
        steps = [step for step in task.steps if step.kind == "relation"]
        self.subjects = tuple(dict.fromkeys(subject for step in steps for subject in step.subjects))
        self.body = [not self._is_history(index) for index in range(len(mentions.sentences))]

    def _is_history(self, index: int) -> bool:
        inside = [m for m in (*self.mentions.entities, *self.mentions.values) if m.sentence == index]
        return bool(inside) and all(m.assertion == "historical" for m in inside)

    def read(self) -> tuple[Found, Mapping[str, Sequence[Span]]]:
        present = {m.name for m in self.mentions.entities if m.assertion == "present"}
        followed = self.course.follow_up.search(self.text) is not None
        candidates = self._candidates(present) if followed else {}
        found: Found = {}
        changes = self._changes() if followed else []
        self._assign(found, [change for change in changes if not change.weak], candidates, faint=False)
        self._add_resolved(found, candidates)
        weak: Found = {}
        self._assign(weak, [change for change in changes if change.weak], candidates, faint=True)
        self._assign(weak, [change for change in changes if not change.weak], candidates, faint=True)
        for subject, values in weak.items():
            if subject not in found:
                turned = {value: spans for value, spans in values.items() if value != self.course.measured.get("equal")}
                found[subject] = turned or values
        revived = {subject: spans for subject, spans in candidates.items() if subject not in present}
        return {s: v for s, v in found.items() if s in present or s in revived}, revived

    def _candidates(self, present: set[str]) -> dict[str, list[Span]]:
        """Followed subjects that the report may be about: stated ones, resolved ones, and those that the history names."""
        found: dict[str, list[Span]] = {}
        for mention in self.mentions.entities:
            name = mention.name
            if name not in self.course.followed:
                continue
            if mention.assertion in ("present", "resolved"):
                found.setdefault(name, []).append(mention.span)
            elif name in present:
                continue
            elif (mention.assertion == "historical" and not self._is_asked(mention)) or self._is_recurrence_denied(mention):
                found.setdefault(name, []).append(mention.span)
        return found

    def _is_asked(self, mention: AssertedMention) -> bool:
        sentence = self.mentions.sentences[mention.sentence]
        return self.course.asked.search(self.text, sentence.start, sentence.end) is not None

    def _is_recurrence_denied(self, mention: AssertedMention) -> bool:
        """ "No evidence of recurrent glioma" names a glioma that was there."""
        sentence = self.mentions.sentences[mention.sentence]
        words = self.text[sentence.start : sentence.end]
        return mention.assertion == "negated" and re.search(r"recur|relapse|regrowth|residual|재발|잔존", words, re.I) is not None

    def _changes(self) -> list[_Change]:
        statements = self._statements()
        changes = [_Change(value, span, self._sentence_of(span.start), True) for value, span in statements]
        spoken = [(m.name, m.span) for m in self.mentions.values if m.assertion == "present"]
        denied = [m.span for m in self.mentions.values if m.assertion != "present"]
        for value, pattern in self.course.outright.items():
            spans = (Span(*match.span()) for match in pattern.finditer(self.text))
            spoken += [(value, span) for span in spans if not self._is_denied(span)]
        for value, span in spoken:
            if any(_overlap(span, other) for other in (*denied, *(other for _, other in statements))):
                continue
            word = self.text[span.start : span.end].strip()
            if not self.course.ignored.fullmatch(word) and not self._is_past(span):
                changes.append(_Change(value, span, self._sentence_of(span.start), False))
        changes += self._measured()
        return [change for change in changes if self.body[change.sentence]]

    def _statements(self) -> list[tuple[str, Span]]:
        """Statements in text order; of overlapping ones the first, longest: "no recurrent tumour" is not "recurrent tumour"."""
        found = [(v, Span(*match.span())) for v, pattern in self.course.statements.items() for match in pattern.finditer(self.text)]
        kept: list[tuple[str, Span]] = []
        for value, span in sorted(found, key=lambda item: (item[1].start, -item[1].end)):
            if not any(_overlap(span, other) for _, other in kept):
                kept.append((value, span))
        first_line = self.text.find("\n", len(self.text) - len(self.text.lstrip()))
        return [
            (value, span)
            for value, span in kept
            if not self._is_past(span)
            and not self._is_denied(span)
            and (span.start > first_line or value == self.course.resolved_value)
        ]

    def _is_denied(self, span: Span) -> bool:
        before = self.text[max(0, span.start - 30) : span.start]
        tail = re.split(r"[.,;\n]", before)[-1]
        return self.cues.negations_before.search(tail) is not None

    def _is_past(self, span: Span) -> bool:
        left = max(0, span.start - _BESIDE_CHARS)
        before = any(left + m.end() == span.start for m in self.course.not_now.finditer(self.text[left : span.end]))
        return before or self.course.not_now.match(self.text[span.end : span.end + _BESIDE_CHARS]) is not None

    def _measured(self) -> list[_Change]:
        changes: list[_Change] = []
        for pattern, earlier_first in ((_ARROW, True), (_FROM, True), (_WAS, False), (_BECAME, True)):
            for match in pattern.finditer(self.text):
                span = Span(*match.span())
                value = self._measured_value(match, earlier_first=earlier_first)
                if value is not None and not any(_overlap(span, other.span) for other in changes):
                    changes.append(_Change(value, span, self._sentence_of(span.start), False))
        return changes

    def _measured_value(self, match: re.Match[str], *, earlier_first: bool) -> str | None:
        first, first_rest, second, second_rest = [group for group in match.groups() if group is not None]
        first_unit, second_unit = _unit(first_rest), _unit(second_rest)
        if not first_unit and not second_unit:
            return None
        first_mm = float(first) * (10 if (first_unit or second_unit) == "cm" else 1)
        second_mm = float(second) * (10 if (second_unit or first_unit) == "cm" else 1)
        before, now = (first_mm, second_mm) if earlier_first else (second_mm, first_mm)
        if before == 0 or max(before, now) > _LARGEST_MM:
            return None
        if abs(now - before) <= _EQUAL_SHARE * before:
            return self.course.measured.get("equal")
        return self.course.measured.get("larger" if now > before else "smaller")

    def _sentence_of(self, position: int) -> int:
        for index, span in enumerate(self.mentions.sentences):
            if position < span.end:
                return index
        return len(self.mentions.sentences) - 1

    def _assign(self, found: Found, changes: Sequence[_Change], candidates: Mapping[str, Sequence[Span]], *, faint: bool) -> None:
        """faint: whether changes of faint referents count, and only those besides the weak ones."""
        for change in changes:
            target = self._target(change)
            if not change.weak and not self._counts(change, target, faint=faint):
                continue
            names = target.names if target is not None and target.names else self._default_subjects(change, candidates)
            for name in names:
                if name in candidates and name in self.subjects and self._fits(name, change.value):
                    found.setdefault(name, {}).setdefault(change.value, (candidates[name][0], change.span))

    def _counts(self, change: _Change, target: _Target | None, *, faint: bool) -> bool:
        if target is None:
            return not faint and self._is_conclusion(change) and not self._is_explained(change)
        if not target.ours or self._is_faint(target) != faint:
            return False
        return bool(target.names) or not self._is_explained(change)

    def _is_faint(self, target: _Target) -> bool:
        return not target.names and self.course.faint.fullmatch(self.text[target.start : target.end].strip()) is not None

    def _is_conclusion(self, change: _Change) -> bool:
        """A change without a word of what changed counts where the report has told its findings before it."""
        sentence = self.mentions.sentences[change.sentence]
        if change.sentence > 0 and sentence.end - sentence.start <= change.span.end - change.span.start + 1:
            return True
        first_break = self.text.find("\n")
        return first_break >= 0 and change.span.start > first_break

    def _is_explained(self, change: _Change) -> bool:
        """The same or the next sentence of the line, or a sub line after it, puts the change down to something else."""
        sentences = self.mentions.sentences
        last = change.sentence
        if last + 1 < len(sentences):
            gap = self.text[sentences[last].end : sentences[last + 1].start]
            if "\n" not in gap or self._is_sub_line(sentences[last + 1]):
                last += 1
        inside = [m for m in self.mentions.entities if change.sentence <= m.sentence <= last]
        if any(m.name in self.subjects and m.assertion == "present" for m in inside):
            return False
        for index in range(change.sentence, last + 1):
            for match in self.course.explained.finditer(self.text, sentences[index].start, sentences[index].end):
                if not any(m.assertion != "present" and m.span.start < match.end() and match.start() < m.span.end for m in inside):
                    return not self._is_denied(Span(*match.span()))
        return False

    def _fits(self, name: str, value: str) -> bool:
        known = self.task.entities[name].values
        return known is None or value in known

    def _default_subjects(self, change: _Change, candidates: Mapping[str, Sequence[Span]]) -> tuple[str, ...]:
        """The subject named last before the change, else the one named first."""
        named = [name for name in candidates if name in self.subjects]
        if len(named) <= 1:
            return tuple(named)
        before = [
            (max(s.start for s in candidates[n] if s.start <= change.span.start), n)
            for n in named
            if candidates[n][0].start <= change.span.start
        ]
        return (max(before)[1],) if before else (min(named, key=lambda n: candidates[n][0].start),)

    def _target(self, change: _Change) -> _Target | None:
        """What the change is about: the nearest word in its segment, else in the segments before, else the sentence before."""
        span = self.mentions.sentences[change.sentence]
        if span.end - span.start <= change.span.end - change.span.start + 1:
            return None
        targets = self._targets(span, change.span)
        if targets:
            segments = self._segments(span)
            own = next((s for s in segments if s[0] <= change.span.start < s[1]), (span.start, span.end))
            inside = [t for t in targets if own[0] <= t.start < own[1]]
            if inside:
                return self._nearest(inside, change.span)
            before = [t for t in targets if t.end <= own[0]]
            return before[-1] if before else targets[0]
        return self._target_before(change.sentence)

    def _target_before(self, sentence: int) -> _Target | None:
        if sentence == 0:
            return None
        span = self.mentions.sentences[sentence]
        before = self.mentions.sentences[sentence - 1]
        if "\n" in self.text[before.end : span.start] and not self._is_sub_line(span):
            return None
        targets = self._targets(before, before)
        ours = [target for target in targets if target.ours]
        return ours[0] if ours else (targets[0] if targets else None)

    def _is_sub_line(self, span: Span) -> bool:
        start = self.text.rfind("\n", 0, span.start) + 1
        return re.match(r"\s+\S|\s*[-–>=]", self.text[start : span.end]) is not None

    def _segments(self, span: Span) -> list[tuple[int, int]]:
        marks = [span.start, *(m.end() for m in _SEGMENT.finditer(self.text, span.start, span.end)), span.end]
        return list(itertools.pairwise(marks))

    def _targets(self, span: Span, change: Span) -> list[_Target]:
        found: list[_Target] = []
        for mention in self.mentions.entities:
            if span.start <= mention.span.start < span.end:
                ours = mention.name in self.subjects and mention.assertion != "elsewhere"
                found.append(_Target(mention.span.start, mention.span.end, (mention.name,) if ours else (), ours))
        for pattern, ours in ((self.course.bystanders, False), (self.course.referents, True)):
            for match in pattern.finditer(self.text, span.start, span.end):
                start, end = match.span()
                if any(start < t.end and t.start < end for t in found) or (
                    span != change and start < change.end and change.start < end
                ):
                    continue
                found.append(_Target(start, end, (), ours))
        return sorted(found, key=lambda t: t.start)

    def _nearest(self, targets: Sequence[_Target], change: Span) -> _Target:
        left = [t for t in targets if t.end <= change.start]
        right = [t for t in targets if t.start >= change.end]
        if not left:
            return right[0] if right else targets[0]
        if right and right[0].start - change.end < min(_RIGHT_CHARS, change.start - left[-1].end):
            return right[0]
        heads = [t for t in left if not _PREPOSITION.search(self.text[max(0, t.start - 30) : t.start])]
        return heads[-1] if heads else left[-1]

    def _add_resolved(self, found: Found, candidates: Mapping[str, Sequence[Span]]) -> None:
        value = self.course.resolved_value
        if value is None:
            return
        for mention in self.mentions.entities:
            if mention.assertion != "resolved" or not self.body[mention.sentence]:
                continue
            if mention.name in candidates and mention.name in self.subjects:
                found.setdefault(mention.name, {}).setdefault(value, (mention.span, None))


def without_yielding(course: Course, text: str, mentions: ReportMentions) -> ReportMentions:
    """Mentions that speak of another followed subject's spread (the seeding of a glioma) become "elsewhere"."""
    named = {m.name for m in mentions.entities if m.name in course.followed and m.assertion != "negated"}
    entities = tuple(
        replace(m, assertion="elsewhere")
        if m.assertion == "present"
        and m.name in course.yields
        and named - {m.name}
        and course.yields[m.name].fullmatch(text[m.span.start : m.span.end])
        else m
        for m in mentions.entities
    )
    return replace(mentions, entities=entities)


def _unit(rest: str) -> str:
    found = re.findall("cm|mm", rest.lower())
    return found[-1] if found else ""


def _overlap(a: Span, b: Span) -> bool:
    return a.start < b.end and b.start < a.end
