"""Where relations stand in the text, and which values the text lets a subject have."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from configs.contracts import Reading, Relation, Span
from configs.loose import loose_value_mentions
from configs.schema import Step, Task
from stage2_relations.assertion import AssertedMention, ReportMentions, read_mentions
from stage2_relations.rules import CarefulRules

__all__ = ["Evidence", "EvidenceReader", "Linking", "OfferedValues", "implied_values"]

Linking = Literal["rules", "sentence", "near", "none"]
"""What the text itself decides about a subject's values before the model is asked.

`rules`: the values that CarefulRules link to the subject are its values, and the model is not asked for more; where they link none,
values in or next to a sentence that asserts the subject are offered, and where there is none, any mention.
`sentence`: the same with the values of the sentences that assert the subject in place of the rules' links; of values only one
sentence away one must be listed.
`near`: values in or next to a sentence that asserts the subject are offered, and one must be listed if it stands in the sentence
itself; else any mention is offered.
`none`: any mention is offered.
"""
NEIGHBOUR_SENTENCES = 1


@dataclass(frozen=True, slots=True)
class OfferedValues:
    """The values an answer may list, those it must list if the subject is present, and whether it must list any."""

    values: tuple[str, ...]
    required: frozenset[str]
    needs_value: bool


class EvidenceReader:
    """Reads reports of a task for what they mention, assert and link."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._rules = CarefulRules(task)

    def read(self, text: str) -> Evidence:
        """The evidence in one report."""
        mentions = read_mentions(self._task, text)
        return Evidence(self._task, text, mentions, self._rules.read(text, mentions), self._loose(text, mentions))

    def _loose(self, text: str, mentions: ReportMentions) -> tuple[AssertedMention, ...]:
        starts = [span.start for span in mentions.sentences]
        return tuple(
            AssertedMention(mention.name, mention.span, max(bisect_right(starts, mention.span.start) - 1, 0), "present")
            for mention in loose_value_mentions(self._task, text)
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one report mentions and asserts, and what CarefulRules read from it.

    `loose` are wordings and compared sizes that may tell a value, whatever else the report says: a value may be asked for them.
    """

    task: Task
    text: str
    mentions: ReportMentions
    rules: Reading
    loose: tuple[AssertedMention, ...] = ()

    def asserted_spans(self, key: str) -> tuple[Span, ...]:
        """The asserted mentions of an entity, in text order; empty where the keywords do not know the report's wording."""
        known = {span for finding in self.rules.entities if finding.key == key and finding.present for span in finding.spans}
        return tuple(sorted(known | {mention.span for mention in _asserted(self.mentions.entities, key)}))

    def asserts(self, keys: Collection[str]) -> bool:
        """Whether a mention of one of these entities is neither negated, resolved, historical nor of another organ."""
        return any(self.asserted_spans(key) for key in keys)

    def home_sentences(self, key: str) -> set[int]:
        """The indexes of the sentences that assert an entity."""
        return {mention.sentence for mention in _asserted(self.mentions.entities, key)}

    def linked_values(self, key: str) -> set[str]:
        """The values that the rules link to an entity and can show in the text."""
        return {relation.value for relation in self.rules.relations if relation.subject == key and relation.value_span}

    def names(self, keys: Collection[str]) -> bool:
        """Whether the report mentions one of these entities at all, asserted or not."""
        return any(mention.name in keys for mention in self.mentions.entities)

    def is_elsewhere(self, keys: Collection[str], window: Span) -> bool:
        """Whether the report asserts one of these entities, but not within `window`."""
        spans = [span for key in keys for span in self.asserted_spans(key)]
        return bool(spans) and not any(_within(span, window) for span in spans)

    def offered_values(self, step: Step, subject: str, window: Span, *, linking: Linking) -> OfferedValues:
        """The values that the text within `window` lets `subject` have, by first mention, implied ones first."""
        allowed = self.task.allowed_values(subject, step)
        implied = [value for value in implied_values(self.task, subject) if value in allowed]
        inside = [m for m in self.mentions.values if m.name in allowed and m.assertion == "present" and _within(m.span, window)]
        homes = {m.sentence for m in _asserted(self.mentions.entities, subject) if _within(m.span, window)}
        own = _names(m for m in inside if m.sentence in homes)
        near = _names(m for m in inside if any(abs(m.sentence - home) <= NEIGHBOUR_SENTENCES for home in homes))
        rest = near or _names(inside)
        required, needs_value = implied, False
        if linking == "rules":
            required = [*implied, *self._linked(subject, allowed, window)]
        elif linking == "sentence":
            required, needs_value = implied + own, bool(near)
        elif linking == "near":
            needs_value = bool(own)
        else:
            rest = _names(inside)
        offered = required if len(required) > len(implied) else implied + rest
        return OfferedValues(tuple(dict.fromkeys(offered)), frozenset(required), needs_value)

    def _linked(self, subject: str, allowed: Collection[str], window: Span) -> list[str]:
        own = [r for r in self.rules.relations if r.subject == subject and r.value in allowed]
        return [r.value for r in own if r.value_span is not None and _within(r.value_span, window)]

    def relation_spans(self, subject: str, value: str, *, loose: bool = False) -> tuple[Span | None, Span | None]:
        """The asserted mention of the subject nearest to a mention of the value, and that mention.

        Where the rules link the two, their spans. Else a pair in one sentence comes before any across sentences, then the fewest
        sentences apart, then characters, then the earlier subject. A value without a mention of its own takes one of a composite
        that holds it, or of its parts, or with `loose` the nearest wording that may tell it; an implied one takes the subject's.
        (None, span): the keywords do not know the subject's wording. (…, None): the value is nowhere.
        """
        for relation in self.rules.relations:
            if (relation.subject, relation.value) == (subject, value) and relation.subject_span and relation.value_span:
                return relation.subject_span, relation.value_span
        subjects = _asserted(self.mentions.entities, subject)
        values = self._value_mentions(value, loose=loose)
        if not values or (value in implied_values(self.task, subject) and subjects):
            first = next(iter(self.asserted_spans(subject)), None)
            return (first, first) if value in implied_values(self.task, subject) else (first, None)
        if not subjects:
            return next(iter(self.asserted_spans(subject)), None), values[0].span
        subject_mention, value_mention = _nearest(subjects, values)
        return subject_mention.span, value_mention.span

    def grounded(self, relations: Iterable[Relation], *, drop: bool, loose: bool = False) -> list[Relation]:
        """The relations with their spans; `drop` leaves out those whose value the text does not mention (implied values stay).

        `loose`: a wording that may tell the value will do, for one that was asked about and answered.
        """
        kept = []
        for relation in relations:
            subject_span, value_span = self.relation_spans(relation.subject, relation.value, loose=loose)
            if not drop or value_span is not None or relation.value in implied_values(self.task, relation.subject):
                kept.append(Relation(relation.subject, relation.value, relation.confidence, subject_span, value_span))
        return kept

    def _value_mentions(self, value: str, *, loose: bool) -> list[AssertedMention]:
        values = self.task.values
        related = [(value,), tuple(name for name, item in values.items() if value in item.parts), values[value].parts]
        for names in related:
            found = [m for m in self.mentions.values if m.name in names and m.assertion == "present"]
            if found:
                return found
        return [mention for mention in self.loose if mention.name == value] if loose else []


def implied_values(task: Task, subject: str) -> tuple[str, ...]:
    """The values that hold whenever `subject` is present; none for a group."""
    entity = task.entities.get(subject)
    return () if entity is None else entity.implied


def _asserted(mentions: Sequence[AssertedMention], name: str) -> list[AssertedMention]:
    return [mention for mention in mentions if mention.name == name and mention.assertion == "present"]


def _nearest(subjects: Sequence[AssertedMention], values: Sequence[AssertedMention]) -> tuple[AssertedMention, AssertedMention]:
    """The pair of least `_distance`; both are in text order, so only the values on both sides of a subject can be nearest."""
    starts = [mention.span.start for mention in values]
    pairs = []
    for subject in subjects:
        place = bisect_right(starts, subject.span.start)
        # Mentions may overlap and share sentences: two to each side are enough for the nearest of either kind.
        pairs += [(subject, value) for value in values[max(0, place - 2) : place + 2]]
    return min(pairs, key=lambda pair: _distance(*pair))


def _names(mentions: Iterable[AssertedMention]) -> list[str]:
    return list(dict.fromkeys(mention.name for mention in mentions))


def _within(span: Span, window: Span) -> bool:
    return window.start <= span.start and span.end <= window.end


def _distance(subject: AssertedMention, value: AssertedMention) -> tuple[int, int, int, int]:
    gap = max(value.span.start - subject.span.end, subject.span.start - value.span.end, 0)
    return abs(value.sentence - subject.sentence), gap, subject.span.start, value.span.start
