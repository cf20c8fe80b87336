"""Reference across sentences: where a finding lies that names no place itself, and whose a place is that stands alone."""

from __future__ import annotations

from collections.abc import Sequence

from configs.cues import Cues, TaskCues
from configs.schema import Task
from stage2_relations.assertion import AssertedMention
from stage2_relations.placed_sentence import PlacedSentence, allowed_values, begins_with_place


def refer(
    task: Task, cues: Cues, task_cues: TaskCues, sentences: Sequence[PlacedSentence], removed: Sequence[AssertedMention]
) -> None:
    """Reference across sentences: values for findings that have none, findings for values that have none."""
    for index, sentence in enumerate(sentences):
        stated = [p for p in range(len(sentence.entities)) if sentence.states(p)]
        lacking = [p for p in stated if not sentence.given.get(p) and not task.entities[sentence.entities[p].name].implied]
        if lacking:
            _give(task, cues, sentence, lacking, _source(cues, task_cues, sentences, index, removed))
        if stated and cues.same_place.search(sentence.text):
            for position in stated:
                more = allowed_values(task, sentence.entities[position], _values_before(sentences, index))
                sentence.given[position] = list(dict.fromkeys([*sentence.given.get(position, ()), *more]))
        if not sentence.entities and sentence.values:
            _tell_more(task, cues, sentences, index)


def _source(
    cues: Cues, task_cues: TaskCues, sentences: Sequence[PlacedSentence], index: int, removed: Sequence[AssertedMention]
) -> list[AssertedMention]:
    """The values that a finding without a place takes: of what follows, of its parent line, of what it refers to."""
    sentence = sentences[index]
    following = sentences[index + 1] if index + 1 < len(sentences) else None
    if following is not None and following.values and cues.follows.match(following.text.lstrip(" -*•")):
        return following.values
    if task_cues.surgery_site.search(sentence.text) and removed:
        before = [value for value in removed if value.span.start < sentence.span.end]
        return before[-1:] or list(removed[:1])
    referred = _referred(sentences, index)
    if referred:
        return referred
    if cues.unplaced.search(sentence.text):
        return []
    parent = _parent_values(sentences, index, everywhere=cues.anaphora.search(sentence.text) is not None)
    if cues.last_named.search(sentence.text):
        return parent[-1:]
    return parent[:1] if cues.first_named.search(sentence.text) else parent


def _referred(sentences: Sequence[PlacedSentence], index: int) -> list[AssertedMention]:
    """Values of the finding that the sentence refers to by name ("distal to the mass", "within the ground-glass areas")."""
    sentence = sentences[index]
    for position in sorted(sentence.references):
        name = sentence.entities[position].name
        for before in reversed(sentences[:index]):
            for p, entity in enumerate(before.entities):
                if entity.name == name and before.given.get(p):
                    return before.given[p]
    return []


def _parent_values(sentences: Sequence[PlacedSentence], index: int, *, everywhere: bool) -> list[AssertedMention]:
    """Values of the nearest sentence before that has some: in the same item, or anywhere before for a sentence that refers back."""
    if not everywhere and not sentences[index].in_item and not _has_place_heading(sentences, index):
        return []
    head = _head(sentences, index)
    if head is not None and not everywhere:
        return head.all_given() or head.values
    for number in range(index, 0, -1):
        if sentences[number].new_block and not everywhere:
            return []
        before = sentences[number - 1]
        heads = before.depth < sentences[index].depth or everywhere
        if before.all_given() or (before.values and not before.entities and heads):
            return before.all_given() or before.values
        if begins_with_place(before) and (number == index or not before.new_block):
            return before.values[:1]
    return []


def _head(sentences: Sequence[PlacedSentence], index: int) -> PlacedSentence | None:
    """The line that a sub line belongs to, where it gives or names values."""
    if sentences[index].depth == 0:
        return None
    head = next((s for s in reversed(sentences[:index]) if s.depth == 0), None)
    if head is None or (head.entities and not head.all_given()) or not head.values:
        return None
    return head


def _has_place_heading(sentences: Sequence[PlacedSentence], index: int) -> bool:
    return index > 0 and not sentences[index].new_block and begins_with_place(sentences[index - 1])


def _values_before(sentences: Sequence[PlacedSentence], index: int) -> list[AssertedMention]:
    for before in reversed(sentences[:index]):
        if before.all_given():
            return before.all_given()
    return []


def _tell_more(task: Task, cues: Cues, sentences: Sequence[PlacedSentence], index: int) -> None:
    """A sentence of values alone ("It lies in the RUL", "- LUL, lingular segment") belongs to the findings before it."""
    sentence = sentences[index]
    follows = cues.follows.match(sentence.text.lstrip(" -*•")) is not None
    for number in range(index, 0, -1):
        if sentences[number].new_block and not follows:
            return
        before = sentences[number - 1]
        if before.entities:
            for position, entity in enumerate(before.entities):
                if before.states(position) and (follows or cues.anaphora.search(sentence.text) or not before.given.get(position)):
                    before.given.setdefault(position, []).extend(allowed_values(task, entity, sentence.values))
            return


def _give(task: Task, cues: Cues, sentence: PlacedSentence, positions: Sequence[int], values: Sequence[AssertedMention]) -> None:
    """Adds values, except those of the other side than the sentence names ("Rt. ..." takes no left lobe)."""
    sides = [name for name, pattern in cues.sides.items() if pattern.search(sentence.text)]
    for position in positions:
        fitting = [
            value
            for value in allowed_values(task, sentence.entities[position], values)
            if len(sides) != 1 or task.values[value.name].side in (None, sides[0])
        ]
        sentence.given[position] = list(dict.fromkeys([*sentence.given.get(position, ()), *fitting]))
