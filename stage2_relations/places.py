"""Where each stated finding lies: values of the clause, of the list it shares, of its parent line, or of what it refers to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from configs.contracts import Span
from configs.cues import Cues, TaskCues
from configs.schema import Task
from stage2_relations.assertion import AssertedMention, ReportMentions
from stage2_relations.placed_sentence import PlacedSentence, allowed_values, begins_with_place
from stage2_relations.reference import refer

Found = dict[str, dict[str, tuple[Span | None, Span | None]]]

_ITEM = re.compile(r"[ \t]*(?:\(?\d{1,2}[.)]|#\d|[A-Z]\.)\s")
_SUB_ITEM = re.compile(r"[ \t]*(?:[-–—*•·>]|->|=>)")
_JOIN = re.compile(
    r"[\s,/&+]*(?:and|or|및|와|과|또는|그리고|및|이나|,)?[\s,/&+]*|\s*\([^()]*\)[\s,/&+]*(?:and|or|및|와|과)?\s*", re.IGNORECASE
)
_TAIL_CHARS = 30
_HEADING_CHARS = 40
_ALL = -1
_BREAK = re.compile(r"[,;]|(?<=[가-힣])[고며나] ")


def place_values(
    task: Task, cues: Cues, task_cues: TaskCues, text: str, mentions: ReportMentions
) -> tuple[Found, Mapping[str, Sequence[Span]]]:
    """Values of every present entity, with the spans that show them. The second result is empty: presence is the assertion's."""
    barred = [match.span() for match in task_cues.not_a_value.finditer(text)]
    sentences = _sentences(cues, text, mentions, barred)
    for sentence in sentences:
        _place_in_sentence(task, cues, sentence)
        _drop_wide(cues, task_cues, sentence)
    removed = [m for m in mentions.values if any(a <= m.span.start and m.span.end <= b for a, b in barred)]
    refer(task, cues, task_cues, sentences, removed)
    found: Found = {}
    for sentence in sentences:
        for position, entity in enumerate(sentence.entities):
            if entity.assertion == "present":
                for value in sentence.given.get(position, ()):
                    found.setdefault(entity.name, {}).setdefault(value.name, (entity.span, value.span))
    return found, {}


def _sentences(cues: Cues, text: str, mentions: ReportMentions, barred: Sequence[tuple[int, int]]) -> list[PlacedSentence]:
    sentences: list[PlacedSentence] = []
    for index, span in enumerate(mentions.sentences):
        line_start = text.rfind("\n", 0, span.start) + 1
        at_line_start = not text[line_start : span.start].strip()
        last = sentences[-1] if sentences else None
        depth, in_item = (last.depth, last.in_item) if last is not None and not at_line_start else (0, False)
        if at_line_start:
            lead = text[line_start : span.end]
            in_item = bool(_ITEM.match(lead) or _SUB_ITEM.match(lead))
            if not _ITEM.match(lead) and index > 0 and (_SUB_ITEM.match(lead) or lead[0] in " \t"):
                depth, in_item = 1, True
        blank = index > 0 and text[mentions.sentences[index - 1].end : span.start].count("\n") > 1
        new_block = blank or (at_line_start and depth == 0) or _ITEM.match(text[span.start : span.end] + " ") is not None
        sentences.append(PlacedSentence(span, text[span.start : span.end], depth, new_block, in_item))
    for mention in mentions.entities:
        if mention.assertion != "elsewhere":
            sentence = sentences[mention.sentence]
            if _refers(cues, sentence, mention):
                sentence.references.add(len(sentence.entities))
            sentence.entities.append(mention)
    for place, mention in enumerate(mentions.values):
        sentence = sentences[mention.sentence]
        if mention.assertion == "historical" or any(a <= mention.span.start and mention.span.end <= b for a, b in barred):
            continue
        if not _is_unaffected(cues, sentence, mentions.values, place) and not _is_denied(sentence, mention):
            sentence.values.append(mention)
    if not any(_ITEM.match(s.text) for s in sentences):
        _flatten(sentences)
    return sentences


def _refers(cues: Cues, sentence: PlacedSentence, mention: AssertedMention) -> bool:
    before = sentence.local(sentence.span.start, mention.span.start)[-40:]
    return any(match.end() == len(before) for match in cues.presupposed_before.finditer(before))


def _is_unaffected(cues: Cues, sentence: PlacedSentence, values: Sequence[AssertedMention], place: int) -> bool:
    """ "Rt lung clear", "the upper lobes and lingula are clear": the words after the value at `place`, or after the list that it
    begins, up to the next comma, hold no finding and say that it is free."""
    mention = values[place]
    end = mention.span.end
    while (place := place + 1) < len(values) and (after := values[place].span).start < sentence.span.end:
        if after.start >= end and not _JOIN.fullmatch(sentence.local(end, after.start)):
            break
        end = max(end, after.end)
    tail = re.split(r"[,;.]", sentence.local(end, end + _TAIL_CHARS), maxsplit=1)[0]
    stop = min((e.span.start for e in sentence.entities if e.span.start >= mention.span.end), default=sentence.span.end)
    match = cues.unaffected.search(tail)
    return match is not None and end + match.start() < stop


def _is_denied(sentence: PlacedSentence, mention: AssertedMention) -> bool:
    """A negated value in a comma segment without a finding: "nodule in RLL, nothing in RUL"."""
    if mention.assertion != "negated":
        return False
    start = max(sentence.local(sentence.span.start, mention.span.start).rfind(mark) for mark in ",;") + 1
    tail = re.match(r"[^,;]*", sentence.local(mention.span.end, sentence.span.end))
    end = mention.span.end - sentence.span.start + (tail.end() if tail else 0)
    return bool(sentence.entities) and not any(start <= e.span.start - sentence.span.start < end for e in sentence.entities)


def _drop_wide(cues: Cues, task_cues: TaskCues, sentence: PlacedSentence) -> None:
    """A wide value gives way to a narrower one inside it; two values of one span ("both lungs") stay."""
    for position, values in sentence.given.items():
        names = {value.name for value in values}
        sentence.given[position] = [
            value
            for value in values
            if any(other.span == value.span and other.name != value.name for other in values)
            or not names.intersection(task_cues.narrower.get(value.name, ()))
            or cues.follows.search(sentence.local(value.span.end, sentence.span.end))
        ]


def _flatten(sentences: Sequence[PlacedSentence]) -> None:
    """In a report of bullets alone no bullet is a sub line, but those under a line that is a place: "RLL:", "LUL incl. lingula"."""
    under_place = False
    for sentence in sentences:
        if not _SUB_ITEM.match(sentence.text):
            starts_line = sentence.new_block and sentence.depth == 0
            under_place = starts_line and bool(sentence.values) and not sentence.entities and len(sentence.text) <= _HEADING_CHARS
        elif sentence.depth == 1 and not under_place:
            sentence.depth, sentence.new_block = 0, True


def _place_in_sentence(task: Task, cues: Cues, sentence: PlacedSentence) -> None:
    if not sentence.entities or not sentence.values:
        return
    entities = sentence.entities
    groups = _entity_groups(sentence)
    runs = _value_runs(sentence)
    if len(groups) == 1:
        for position in groups[0]:
            sentence.given[position] = allowed_values(task, entities[position], _of_single_group(sentence, groups[0], runs))
        return
    owners = _owners(cues, sentence, groups, runs)
    for number, group in enumerate(groups):
        own = [value for run, owner in zip(runs, owners, strict=True) if owner in (number, _ALL) for value in run]
        if not own:
            own = _shared(sentence, groups, runs, owners, number)
        for position in group:
            sentence.given[position] = allowed_values(task, entities[position], own)


def _entity_groups(sentence: PlacedSentence) -> list[list[int]]:
    """Neighbouring findings with no value between them share their values: "bronchiectasis with wall thickening in RML"."""
    groups: list[list[int]] = []
    for position, entity in enumerate(sentence.entities):
        if position in sentence.references and len(sentence.entities) > len(sentence.references):
            continue
        if groups:
            last = sentence.entities[groups[-1][-1]]
            parted = _parting(sentence.local(last.span.end, entity.span.start)) == 2
            same = last.assertion == entity.assertion
            parted = parted or _own_places(sentence, last, entity)
            if same and not parted and not any(last.span.end <= value.span.start < entity.span.start for value in sentence.values):
                groups[-1].append(position)
                continue
        groups.append([position])
    return groups


def _own_places(sentence: PlacedSentence, last: AssertedMention, entity: AssertedMention) -> bool:
    """Two findings parted by a comma with a value each: "biapical pleural thickening, scar LUL apex"."""
    comma = sentence.local(last.span.end, entity.span.start).find(",")
    if comma < 0:
        return False
    before = sentence.local(sentence.span.start, last.span.start)
    left = before.rfind(",") + 1 + sentence.span.start
    after = re.match(r"[^,;]*", sentence.local(entity.span.end, sentence.span.end))
    right = entity.span.end + (after.end() if after else 0)
    has_left = any(left <= value.span.start < last.span.start for value in sentence.values)
    return has_left and any(entity.span.end <= value.span.start < right for value in sentence.values)


def _value_runs(sentence: PlacedSentence) -> list[list[AssertedMention]]:
    """Neighbouring values that are joined as one list ("RUL, RML and LLL")."""
    runs: list[list[AssertedMention]] = []
    for value in sentence.values:
        if runs:
            last = runs[-1][-1].span
            between = sentence.text[last.end - sentence.span.start : max(value.span.start, last.end) - sentence.span.start]
            apart = any(last.end <= entity.span.start < value.span.start for entity in sentence.entities)
            apart = apart or _is_another_item(sentence, runs[-1], value)
            if not apart and (value.span.start <= last.end or _JOIN.fullmatch(between) or not _BREAK.search(between)):
                runs[-1].append(value)
                continue
        runs.append([value])
    return runs


def _is_another_item(sentence: PlacedSentence, run: Sequence[AssertedMention], value: AssertedMention) -> bool:
    """A comma that ends one finding and its places where another begins with its own: "nodule in RUL, middle lobe atelectasis"."""
    between = sentence.local(run[-1].span.end, value.span.start)
    if between.strip() != ",":
        return False
    before = sentence.local(sentence.span.start, run[0].span.start)
    left = max(before.rfind(mark) for mark in ",;:") + 1 + sentence.span.start
    after = re.match(r"[^,;]*", sentence.local(value.span.end, sentence.span.end))
    right = value.span.end + (after.end() if after else 0)
    told_before = any(left <= entity.span.start < run[0].span.start for entity in sentence.entities)
    return told_before and any(value.span.end <= entity.span.start < right for entity in sentence.entities)


def _of_single_group(
    sentence: PlacedSentence, group: Sequence[int], runs: Sequence[Sequence[AssertedMention]]
) -> list[AssertedMention]:
    """All values, except a list after "and" that belongs to an unnamed thing: "middle lobe collapse and RLL bronchiolitis"."""
    first, last = sentence.entities[group[0]].span, sentence.entities[group[-1]].span
    kept: list[AssertedMention] = []
    for run in runs:
        between = sentence.local(last.end, run[0].span.start)
        if kept and kept[-1].span.end <= first.start and re.fullmatch(r"\s*(?:and|및|,)\s*", between):
            continue
        kept.extend(run)
    return kept


def _owners(
    cues: Cues, sentence: PlacedSentence, groups: Sequence[Sequence[int]], runs: Sequence[Sequence[AssertedMention]]
) -> list[int]:
    """The group that each run of values belongs to: the one before it or after it, whichever no comma or clause parts from it."""
    starts = [sentence.entities[group[0]].span.start for group in groups]
    ends = [sentence.entities[group[-1]].span.end for group in groups]
    location_first = bool(runs) and runs[0][0].span.start < starts[0]
    owners: list[int] = []
    for run in runs:
        before = max((n for n in range(len(groups)) if ends[n] <= run[0].span.start), default=None)
        after = min((n for n in range(len(groups)) if starts[n] >= run[-1].span.start), default=None)
        if before is not None and cues.follows.search(sentence.local(ends[before], run[0].span.start)):
            owners.append(_ALL)
            continue
        if before is None or after is None:
            owners.append(before if before is not None else (after or 0))
            continue
        left = sentence.local(ends[before], run[0].span.start)
        right = sentence.local(run[-1].span.end, starts[after])
        parted_left, parted_right = _parting(left), _parting(right)
        if parted_left == parted_right:
            owners.append(after if location_first and not re.search(r"\b(?:in|of|at)\b", left) else before)
        else:
            owners.append(before if parted_left < parted_right else after)
    return owners


def _parting(between: str) -> int:
    between = re.sub(r"\([^()]*\)", "", between)
    if ";" in between or re.search(r"(?<=[가-힣])[고며나] |\b(?:while|whereas|but)\b", between):
        return 2
    return 1 if re.search(r",|\band\b|\bwith\b", between) else 0


def _shared(
    sentence: PlacedSentence,
    groups: Sequence[Sequence[int]],
    runs: Sequence[Sequence[AssertedMention]],
    owners: Sequence[int],
    number: int,
) -> list[AssertedMention]:
    """Values of the nearest neighbour group before, else after; a denied finding shares none."""
    for neighbour in [*range(number - 1, -1, -1), *range(number + 1, len(groups))]:
        values = [value for run, owner in zip(runs, owners, strict=True) if owner == neighbour for value in run]
        if values and (begins_with_place(sentence) or sentence.entities[groups[neighbour][0]].assertion in ("present", "resolved")):
            return values
    return []
