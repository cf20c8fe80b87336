"""Where a text mentions the entities and values of a task: the one place that applies the keywords of a task file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from configs.contracts import Span
from configs.schema import Entity, Task, Value


@dataclass(frozen=True, slots=True)
class Mention:
    """A keyword match: `name` is an entity or value key. Says nothing about negation."""

    name: str
    span: Span


def entity_mentions(task: Task, text: str) -> list[Mention]:
    """Mentions of entity keys, by position.

    Of overlapping matches of one key the longest stays. A match that lies strictly inside a longer match of another key,
    or inside a trap, is dropped ("nodular" in "nodular septal thickening"); equal spans of two keys both stay.
    """
    return _mentions(task.entities, task.traps, text)


def value_mentions(task: Task, text: str) -> list[Mention]:
    """Mentions of relation values, by position, with the same rules as entity_mentions but without traps."""
    return _mentions(task.values, (), text)


def _mentions(named: Mapping[str, Entity] | Mapping[str, Value], traps: tuple[re.Pattern[str], ...], text: str) -> list[Mention]:
    found: list[Mention] = []
    for name, item in named.items():
        found.extend(Mention(name, span) for span in _longest(_spans(item.patterns, text)))
    trapped = _spans(traps, text)
    kept = [
        mention
        for mention in found
        if not any(_inside(mention.span, trap) for trap in trapped)
        and not any(_strictly_inside(mention.span, other.span) for other in found)
    ]
    return sorted(kept, key=lambda mention: (mention.span, mention.name))


def _spans(patterns: tuple[re.Pattern[str], ...], text: str) -> list[Span]:
    """Where the patterns match: the group `at` of a keyword that has one and used it, else the whole match."""
    spans = []
    for pattern in patterns:
        for match in pattern.finditer(text):
            start, end = match.span("at") if "at" in pattern.groupindex else match.span()
            if start < 0:
                start, end = match.span()
            if end > start:
                spans.append(Span(start, end))
    return spans


def _longest(spans: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start - s.end, s.start)):
        if all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return kept


def _inside(span: Span, other: Span) -> bool:
    return other.start <= span.start and span.end <= other.end


def _strictly_inside(span: Span, other: Span) -> bool:
    return _inside(span, other) and span != other
