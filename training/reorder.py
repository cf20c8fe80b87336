"""Augmentation by order: findings, organ lines and sentences of a report in another order, where nothing refers to its neighbour.

What stays where it is: headings and the sections under them, the first sentence of a paragraph (it sets the stage), numbers and
bullets. The careful rules read the report before and after; a reading that differs means that order had a meaning.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from configs.contracts import Reading, Span
from configs.schema import Task
from stage2_relations.assertion import ReportMentions, read_mentions
from stage2_relations.rules import CarefulRules
from stage2_relations.sentences import sentences
from training.augment import LabelledText

# Words that point at another sentence, or that say "apart from what was said".
_REFERS = re.compile(
    r"(?<![A-Za-z])(?:these|those|this|such|same|it|its|itself|they|them|their|there|then|thereof|former|latter|one|ones|both|also|too|"
    r"ditto|idem|another|others?|otherwise|else|elsewhere|remaining|remainder|rest|additional(?:ly)?|further(?:more)?|moreover|however|"
    r"respectively|above|below|aforementioned|latter|next|adjacent|distal(?:ly)?|surrounding|perilesional|associated|accompanying|"
    r"concomitant|similar(?:ly)?|likewise|here|where(?:as)?|which|said|abovementioned|contralateral|ipsilateral|opposite|corresponding)"
    r"(?![A-Za-z])|반대측|반대편|(?:두|세|양) 병변|(?<![가-힣])(?:이|그|저)(?=[ ,])|"
    r"(?<![가-힣])이(?:들|와|에|는|의|로|중|것|외)(?![가-힣])|"
    r"동일|동측|같은|상기|해당|위와|위의|앞의|"
    r"아래|역시|또한|나머지|그 ?외|이외|외에|기타|다른|함께|동반|주변|주위|인접|원위",
    re.IGNORECASE,
)
# "the nodule": named before. "the right lung" is no such thing.
_NAMED_BEFORE = re.compile(r"(?<![A-Za-z])(?:the|said)\s+(?:[\w-]+\s+){0,2}\Z", re.IGNORECASE)
_NUMBER_REFERENCE = re.compile(r"(?:no\.?|number|item|finding|lesion|#)\s?\d+(?![\d-])(?!\s?(?:mm|cm))|\d번", re.IGNORECASE)
_ITEM = re.compile(r"[ \t]{0,3}(?:\d{1,2}[.)]|[-*•▪‣])[ \t]+(?=\S)")
_HEADING = re.compile(r"[A-Za-z가-힣][A-Za-z가-힣 ]{1,28}:")
_ORGAN = re.compile(
    r"(?=(?:lungs?(?: parenchyma)?|airways?|pleurae?|mediastinum|hila|heart|chest wall|bones?|upper abdomen|abdomen|thyroid|"
    r"lymph nodes?|ventricles?|vessels|sinuses|orbits|posterior fossa|white matter|skull|meninges|"
    r"폐|기관지|흉막|종격동|심장|림프절)"
    r"[ \t]*:)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """Pieces of a text that may change places; each piece keeps the words in it, and the gaps between pieces stay."""

    pieces: tuple[Span, ...]


def change_order(task: Task, report: LabelledText, rng: random.Random) -> LabelledText | None:
    """The report with the pieces of its blocks shuffled. Labels stay.

    None when there is nothing to shuffle, a sentence refers to another one, a mention depends on its neighbour (an episode without
    its tumour, a lesion without its place), or the careful rules read the new text otherwise.
    """
    text = report.text
    found = blocks(text)
    if not found or _refers(text):
        return None
    mentions = read_mentions(task, text)
    if any(_NAMED_BEFORE.search(text, max(0, mention.span.start - 60), mention.span.start) for mention in mentions.entities):
        return None
    if any(_depends(task, report, mentions, piece) for block in found for piece in block.pieces):
        return None
    changed = shuffled(text, found, rng)
    if changed == text:
        return None
    rules = CarefulRules(task)
    same = _stated(rules.read(text, mentions)) == _stated(rules.read(changed, read_mentions(task, changed)))
    return LabelledText(changed, report.labels) if same else None


def shuffled(text: str, found: Sequence[Block], rng: random.Random) -> str:
    """The text with the pieces of each block in a drawn order."""
    for block in sorted(found, key=lambda block: block.pieces[0], reverse=True):
        order = list(block.pieces)
        rng.shuffle(order)
        bodies = [text[piece.start : piece.end] for piece in order]
        for piece, body in sorted(zip(block.pieces, bodies, strict=True), reverse=True):
            text = text[: piece.start] + body + text[piece.end :]
    return text


def blocks(text: str) -> list[Block]:
    """What may be shuffled: numbered or bulleted findings in a row, organ lines in a row, the later sentences of a paragraph."""
    found: list[Block] = []
    run: list[Span] = []
    closed = True
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        item = _ITEM.match(line) or _ORGAN.match(line)
        if item is not None and line.strip():
            if closed:
                found += _block(run)
                run = []
            run.append(Span(start + item.end(), start + len(line.rstrip())))
            closed = False
        elif run and not closed and line.strip() and not _HEADING.match(line):
            # A line below a finding belongs to it when it is set in; otherwise nobody can tell.
            if line[0] in " \t":
                run[-1] = Span(run[-1].start, start + len(line.rstrip()))
            else:
                run, closed = [], True
        else:
            found += _block(run)
            run, closed = [], True
            found += _sentence_block(text, start, end)
        start = end + 1
    return found + _block(run)


def _block(pieces: Sequence[Span]) -> list[Block]:
    return [Block(tuple(pieces))] if len(pieces) > 1 else []


def _sentence_block(text: str, start: int, end: int) -> list[Block]:
    inside = [span for span in sentences(text[start:end]) if text[start + span.start : start + span.end].strip()]
    moved = [Span(start + span.start, start + span.end) for span in inside[1:]]
    # A sentence without its stop would run into the next one.
    if any(text[span.end - 1] not in ".!?" for span in moved):
        return []
    return _block(moved)


def _refers(text: str) -> bool:
    return _REFERS.search(text) is not None or _NUMBER_REFERENCE.search(text) is not None


def _depends(task: Task, report: LabelledText, mentions: ReportMentions, piece: Span) -> bool:
    entities = [mention for mention in mentions.entities if piece.start <= mention.span.start < piece.end]
    values = [mention for mention in mentions.values if piece.start <= mention.span.start < piece.end]
    if values and not entities:
        return True
    placed = {key for key, stated in report.labels.items() if set(stated) - set(task.entities[key].implied)}
    return not values and any(mention.assertion == "present" and mention.name in placed for mention in entities)


def _stated(reading: Reading) -> dict[str, frozenset[str]]:
    """The labels that a reading amounts to."""
    return {
        finding.key: frozenset(relation.value for relation in reading.relations if relation.subject == finding.key)
        for finding in reading.entities
        if finding.present
    }
