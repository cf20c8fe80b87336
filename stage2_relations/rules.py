"""Relation mappers without a model: the published rule baseline, and careful rules that know negation, lists and reference.

Both ignore the flags of stage 1 and give no confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from configs.contracts import EntityFinding, EntityFlags, Reading, Relation, Report, Span, Unread
from configs.cues import Cues, TaskCues, load_cues
from configs.mentions import Mention, entity_mentions, value_mentions
from configs.schema import Step, Task
from stage2_relations.assertion import ReportMentions, read_mentions
from stage2_relations.course import course_values, without_yielding
from stage2_relations.places import place_values
from stage2_relations.sentences import spacy_sentences

ValuesFound = Mapping[str, Mapping[str, tuple[Span | None, Span | None]]]
"""Subject to its values, each with the span of a subject's mention and of the value's; None where a span cannot be shown."""


class PublishedRules:
    """The published baseline: a value mentioned in the sentence of an entity's mention is its value; no negation is read.

    Args:
        spacy_model: An installed spaCy model whose sentences are used ("en_core_web_sm"); None: the project's own component.
    """

    def __init__(self, task: Task, *, spacy_model: str | None = None) -> None:
        self.task = task
        self.spacy_model = spacy_model

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        """One reading a report, in order; `flags` are not read."""
        return [self._read(report.text) for report in reports]

    def _read(self, text: str) -> Reading:
        entities = entity_mentions(self.task, text)
        values = value_mentions(self.task, text)
        spans: dict[str, list[Span]] = {}
        for mention in entities:
            spans.setdefault(mention.name, []).append(mention.span)
        found: dict[str, dict[str, tuple[Span | None, Span | None]]] = {}
        for sentence in spacy_sentences(text, model=self.spacy_model):
            subjects = [m for m in entities if _begins_in(m, sentence)]
            said = [m for m in values if _begins_in(m, sentence)] if subjects else []
            for subject in subjects:
                for value in said:
                    found.setdefault(subject.name, {}).setdefault(value.name, (subject.span, value.span))
        return _reading(self.task, spans, found)


class CarefulRules:
    """Keywords with assertion, the nearest value, reference across lines and sentences, and anatomy; every cue word is data."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.cues = load_cues()
        self.task_cues = self.cues.of(task)

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        """One reading a report, in order; `flags` are not read."""
        return [self.read(report.text, read_mentions(self.task, report.text)) for report in reports]

    def read(self, text: str, mentions: ReportMentions) -> Reading:
        """The reading of a text whose mentions were asserted already."""
        if self.task_cues.course is not None:
            mentions = without_yielding(self.task_cues.course, text, mentions)
        spans: dict[str, list[Span]] = {}
        for mention in mentions.entities:
            if mention.assertion == "present":
                spans.setdefault(mention.name, []).append(mention.span)
        finder: _Finder = place_values if self.task_cues.course is None else course_values
        found, also_present = finder(self.task, self.cues, self.task_cues, text, mentions)
        for subject, subject_spans in also_present.items():
            spans.setdefault(subject, []).extend(subject_spans)
        return _reading(self.task, spans, found)


_Finder = Callable[[Task, Cues, TaskCues, str, ReportMentions], tuple[ValuesFound, Mapping[str, Sequence[Span]]]]


def _reading(task: Task, spans: Mapping[str, Sequence[Span]], found: ValuesFound) -> Reading:
    findings = tuple(EntityFinding(key, key in spans, None, tuple(sorted(set(spans.get(key, ()))))) for key in task.keys)
    relations: list[Relation] = []
    for step in task.steps:
        if step.kind != "relation":
            continue
        for subject in step.subjects:
            if subject in spans:
                relations += _relations(task, step, subject, spans[subject], found.get(subject, {}))
    return Reading(findings, tuple(dict.fromkeys(relations)))


def _relations(
    task: Task, step: Step, subject: str, spans: Sequence[Span], values: Mapping[str, tuple[Span | None, Span | None]]
) -> list[Relation]:
    relations = []
    implied = task.entities[subject].implied if subject in task.entities else ()
    first = min(spans, default=None)
    for value in task.allowed_values(subject, step):
        if value in values:
            subject_span, value_span = values[value]
            relations.append(Relation(subject, value, None, subject_span or first, value_span))
        elif value in implied:
            relations.append(Relation(subject, value, None, first, first))  # the word for the subject states it
    return relations


def _begins_in(mention: Mention, sentence: Span) -> bool:
    return sentence.start <= mention.span.start < sentence.end
