"""Where a text mentions the entities and values of a task: the one place that applies the keywords of a task file."""

from __future__ import annotations

import re
from bisect import bisect
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


def loose_wordings(task: Task, text: str) -> list[Mention]:
    """Where wordings stand that may tell a value (`loose` in the task file), value by value."""
    return [Mention(name, span) for name, item in task.values.items() for span in _longest(_spans(item.loose_patterns, text))]


def _mentions(named: Mapping[str, Entity] | Mapping[str, Value], traps: tuple[re.Pattern[str], ...], text: str) -> list[Mention]:
    found: list[Mention] = []
    for name, item in named.items():
        found.extend(Mention(name, span) for span in _longest(_spans(item.patterns, text)))
    trapped = _spans(traps, text)
    shadowed = _strictly_inside_another({mention.span for mention in found})
    kept = [
        mention for mention in found if mention.span not in shadowed and not any(_inside(mention.span, trap) for trap in trapped)
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
    kept: list[Span] = []  # apart from each other, in text order
    for span in sorted(set(spans), key=lambda s: (s.start - s.end, s.start)):
        place = bisect(kept, span)
        if (place == 0 or kept[place - 1].end <= span.start) and (place == len(kept) or span.end <= kept[place].start):
            kept.insert(place, span)
    return kept


def _inside(span: Span, other: Span) -> bool:
    return other.start <= span.start and span.end <= other.end


def _strictly_inside_another(spans: set[Span]) -> set[Span]:
    """By one sweep: with longer spans first at each start, a span lies inside another when one before it ends no earlier."""
    inside = set()
    furthest = -1
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        if span.end <= furthest:
            inside.add(span)
        furthest = max(furthest, span.end)
    return inside
