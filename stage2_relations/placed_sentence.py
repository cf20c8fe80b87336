"""A sentence with its findings and their values while a report's places are worked out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from configs.contracts import Span
from configs.schema import Task
from stage2_relations.assertion import AssertedMention


@dataclass(slots=True)
class PlacedSentence:
    """One sentence with its findings (denied ones too: they own values) and usable values; `depth` 1 is a sub line of an item.

    `given` are the values of each finding by its position in `entities`; `references` are the positions that only refer back
    ("distal to the mass").
    """

    span: Span
    text: str
    depth: int
    new_block: bool
    in_item: bool
    entities: list[AssertedMention] = field(default_factory=list)
    values: list[AssertedMention] = field(default_factory=list)
    given: dict[int, list[AssertedMention]] = field(default_factory=dict)
    references: set[int] = field(default_factory=set)

    def states(self, position: int) -> bool:
        """Whether the finding is present here and not only referred to."""
        return self.entities[position].assertion == "present" and position not in self.references

    def all_given(self) -> list[AssertedMention]:
        """Values of all stated findings, in the order of the findings; a shared value comes once for each."""
        return [value for position in sorted(self.given) if self.states(position) for value in self.given[position]]

    def local(self, start: int, end: int) -> str:
        """The part of `[start, end)`, positions of the report, that lies in the sentence."""
        return self.text[max(start - self.span.start, 0) : max(end - self.span.start, 0)]


def allowed_values(task: Task, entity: AssertedMention, values: Sequence[AssertedMention]) -> list[AssertedMention]:
    """Those of `values` that the entity can have by the task file."""
    known = task.entities[entity.name].values
    return [value for value in values if known is None or value.name in known]


def begins_with_place(sentence: PlacedSentence) -> bool:
    """ "RUL: …": the sentence opens with a value and a colon."""
    if not sentence.values:
        return False
    value = sentence.values[0].span
    lead = sentence.local(sentence.span.start, value.start).strip(" -*•#0123456789.)")
    return not lead and sentence.local(value.end, value.end + 2).lstrip().startswith(":")
