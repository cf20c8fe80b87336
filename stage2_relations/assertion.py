"""Which mentions a report asserts: present (hedged included), negated, resolved, historical or about another organ.

The words are data (configs/assertion_cues.yaml); stage2_relations.scope knows how far one reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.contracts import Span
from configs.cues import Cues, TaskCues, load_cues
from configs.mentions import Mention, entity_mentions, value_mentions
from configs.schema import Task
from stage2_relations.scope import Assertion, SentenceReader
from stage2_relations.sections import history_spans
from stage2_relations.sentences import sentences


@dataclass(frozen=True, slots=True)
class AssertedMention:
    """A mention and what the report says of it. `sentence` indexes the report's sentences; hedged counts as present."""

    name: str
    span: Span
    sentence: int
    assertion: Assertion


@dataclass(frozen=True, slots=True)
class ReportMentions:
    """A report's sentences and its mentions, both in text order."""

    sentences: tuple[Span, ...]
    entities: tuple[AssertedMention, ...]
    values: tuple[AssertedMention, ...]


def read_mentions(task: Task, text: str) -> ReportMentions:
    """All mentions of the task's entities and values in `text`, with their assertions."""
    return read_found_mentions(task, text, entity_mentions(task, text), value_mentions(task, text))


def read_found_mentions(task: Task, text: str, entities: Sequence[Mention], values: Sequence[Mention]) -> ReportMentions:
    """As read_mentions, for mentions that were found already (both in text order)."""
    cues = load_cues()
    task_cues = cues.of(task)
    spans = sentences(text)
    history = history_spans(text, spans, cues)
    entities, values = list(entities), list(values)
    entity_indexes = _sentence_indexes(entities, spans)
    value_indexes = _sentence_indexes(values, spans)
    said: dict[int, Assertion] = {}
    value_said: dict[int, Assertion] = {}
    heading_is_elsewhere = False
    for index, span in enumerate(spans):
        in_sentence = [position for position, i in enumerate(entity_indexes) if i == index]
        values_in = [position for position, i in enumerate(value_indexes) if i == index]
        if span.start == 0 or "\n" in text[spans[index - 1].end : span.start]:
            heading_is_elsewhere = _begins_with_heading(text, span, task_cues)
        if not in_sentence and not values_in:
            continue
        reader = SentenceReader(
            text, span, cues, task_cues, [entities[p].span for p in in_sentence], [values[p].span for p in values_in]
        )
        old = any(h.start <= span.start < h.end for h in history)
        for position, assertion in zip(in_sentence, reader.entity_assertions(), strict=True):
            if assertion == "present" and (
                (heading_is_elsewhere and not values_in) or reader.is_elsewhere(entities[position].span)
            ):
                assertion = "elsewhere"
            said[position] = "historical" if old and assertion in ("present", "resolved") else assertion
        for position, assertion in zip(values_in, reader.value_assertions(), strict=True):
            value_said[position] = "historical" if old and assertion == "present" else assertion
    _forget_questions(text, spans, entities, entity_indexes, said, cues)
    return ReportMentions(
        tuple(spans),
        tuple(AssertedMention(m.name, m.span, entity_indexes[p], said[p]) for p, m in enumerate(entities)),
        tuple(AssertedMention(m.name, m.span, value_indexes[p], value_said[p]) for p, m in enumerate(values)),
    )


def _forget_questions(
    text: str, spans: Sequence[Span], entities: Sequence[Mention], indexes: Sequence[int], said: dict[int, Assertion], cues: Cues
) -> None:
    """A question in the first line ("r/o metastasis") that the report answers with no is history, not a finding."""
    start = len(text) - len(text.lstrip())
    first_line = text.find("\n", start)
    denied = {entities[p].name for p, assertion in said.items() if assertion == "negated" and entities[p].span.start > first_line}
    for position, assertion in said.items():
        mention = entities[position]
        if assertion == "present" and not text[start].isdigit() and mention.span.start < first_line and mention.name in denied:
            sentence = spans[indexes[position]]
            if cues.asked.search(text, sentence.start, sentence.end):
                said[position] = "historical"


def _sentence_indexes(mentions: Sequence[Mention], spans: Sequence[Span]) -> list[int]:
    indexes = []
    index = 0
    for mention in mentions:
        while index + 1 < len(spans) and spans[index + 1].start <= mention.span.start:
            index += 1
        last = index
        while last + 1 < len(spans) and spans[last + 1].start < mention.span.end:
            last += 1  # a keyword that runs over a line break belongs to the line that it ends in
        indexes.append(last)
    return indexes


def _begins_with_heading(text: str, span: Span, task_cues: TaskCues) -> bool:
    colon = text.find(":", span.start, min(span.end, span.start + 60))
    if colon < 0:
        return False
    head = text[span.start : colon].lstrip(" -*•>#0123456789.)(")
    return task_cues.elsewhere_headings.fullmatch(head) is not None


__all__ = ["AssertedMention", "Assertion", "ReportMentions", "read_found_mentions", "read_mentions"]
