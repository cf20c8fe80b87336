"""The NegEx sentences: is the marked condition negated? Asked of the rule reader, and of systems where a condition is a key."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.contracts import Span
from configs.mentions import Mention, entity_mentions
from configs.schema import Task, load_task
from configs.yaml_lines import did_you_mean
from eval.gold import GoldError, GoldReport, Labels
from eval.metrics import Counts
from eval.public_sets import NegExMapping, share_text
from eval.significance import wilson
from eval.systems import System, system_answers
from eval.tables import Table
from eval.verdict import percent, percent_interval
from pipeline.tagging import Progress
from stage2_relations.assertion import read_found_mentions

READER = "rule reader"
NO_NEGATION = "no negation read"
SYSTEMS_FOLDER = "records"


@dataclass(frozen=True, slots=True)
class NegExSentence:
    """One row. `spans` are where the condition stands in the sentence; none where its words do not stand there as they are."""

    number: str
    condition: str
    text: str
    negated: bool
    present_now: bool
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class NegationScore:
    """One reader on one set of sentences; `counts` are over negated conditions. `n_failed` sentences had no answer: wrong."""

    reader: str
    conditions: str
    n: int
    n_right: int
    n_failed: int
    counts: Counts


def read_negex(path: Path, mapping: NegExMapping) -> tuple[list[NegExSentence], int]:
    """The sentences, and how many were left out for a status that is neither negated nor affirmed.

    Raises:
        GoldError: unreadable, a missing column, a row with too few cells, an unknown status; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise GoldError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GoldError(f"{path}: is not UTF-8 at byte {error.start}") from None
    rows = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    if len(rows) < 2:
        raise GoldError(f"{path}: holds no sentence; a header and rows are expected")
    places = _columns(path, rows[0], mapping)
    sentences, n_left_out = [], 0
    for line, cells in enumerate(rows[1:], 2):
        if len(cells) != len(rows[0]):
            raise GoldError(f"{path}:{line}: has {len(cells)} cells; the header has {len(rows[0])}")
        found = {name: cells[place].strip() for name, place in places.items()}
        status = found["negation"]
        if status in mapping.left_out:
            n_left_out += 1
            continue
        if status not in (mapping.negated, mapping.affirmed):
            known = [mapping.negated, mapping.affirmed, *mapping.left_out]
            raise GoldError(f"{path}:{line}: negation status '{status[:40]}' is not known{did_you_mean(status, known)}")
        now = found["temporality"] in mapping.present_now and found["experiencer"] == mapping.patient
        spans = condition_spans(found["condition"], found["sentence"])
        sentences.append(NegExSentence(str(line), found["condition"], found["sentence"], status == mapping.negated, now, spans))
    return sentences, n_left_out


def _columns(path: Path, header: Sequence[str], mapping: NegExMapping) -> dict[str, int]:
    """Column names of the file carry an explanation in brackets, which is not part of the name."""
    names = [cell.split("(")[0].strip() for cell in header]
    places = {}
    for field, column in mapping.columns.model_dump().items():
        if names.count(column) != 1:
            problem = "stands twice" if column in names else f"is missing{did_you_mean(column, names)}"
            raise GoldError(f"{path}:1: column '{column}' {problem}")
        places[field] = names.index(column)
    return places


def condition_spans(condition: str, sentence: str) -> tuple[Span, ...]:
    """Where the condition's words stand, in any case and spacing, as whole words first."""
    words = r"\s+".join(map(re.escape, condition.split()))
    if not words:
        return ()
    for pattern in (rf"(?<!\w){words}(?!\w)", words):
        found = [Span(*match.span()) for match in re.finditer(pattern, sentence, re.IGNORECASE)]
        if found:
            return tuple(found)
    return ()


def reader_score(sentences: Sequence[NegExSentence], task: Task) -> NegationScore:
    """The rule reader on every sentence that holds its condition. Of several places the first one counts."""
    name = task.keys[0]  # the reader looks at words around a mention, not at what is mentioned
    rows = []
    for sentence in sentences:
        if sentence.spans:
            found = read_found_mentions(task, sentence.text, [Mention(name, sentence.spans[0])], [])
            rows.append((sentence.negated, found.entities[0].assertion in ("negated", "resolved")))
    return _score(READER, "all", rows)


def mapped_key(sentence: NegExSentence, task: Task) -> str | None:
    """The one key that the condition names, if the sentence names it nowhere else and is about this patient now; else None."""
    if not sentence.present_now or not sentence.spans:
        return None
    keys = {mention.name for mention in entity_mentions(task, sentence.condition)}
    if len(keys) != 1:
        return None
    key = keys.pop()
    places = [mention.span for mention in entity_mentions(task, sentence.text) if mention.name == key]
    inside = [any(s.start <= p.start and p.end <= s.end for s in sentence.spans) for p in places]
    return key if places and all(inside) else None


def run_negex(
    path: Path,
    mapping: NegExMapping,
    systems_of: Callable[[str], Sequence[System]],
    *,
    out: Path,
    workers: int = 1,
    progress: Callable[[str], Progress] | None = None,
) -> tuple[Table, tuple[str, ...], int]:
    """The table, the notes, and how many answers failed.

    `systems_of` gives the systems for a task's name; records are kept under `out/records`.
    """
    sentences, n_left_out = read_negex(path, mapping)
    first = load_task(mapping.tasks[0])
    n_lost = sum(not sentence.spans for sentence in sentences)
    told = [sentence for sentence in sentences if sentence.spans]
    scores = [_score(NO_NEGATION, "all", [(s.negated, False) for s in told]), reader_score(sentences, first)]
    notes = [
        f"{share_text(n_lost, len(sentences))} sentences do not hold their condition's words and are left out"
        + (f"; {n_left_out} more have a status that is neither negated nor affirmed." if n_left_out else "."),
        *mapping.limits,
    ]
    for name in mapping.tasks:
        task = load_task(name)
        mapped = [(sentence, key) for sentence in sentences if (key := mapped_key(sentence, task)) is not None]
        notes.append(f"{name}: {share_text(len(mapped), len(sentences))} conditions are a key of the task.")
        if not mapped:
            continue
        gold = [_as_gold(sentence, key) for sentence, key in mapped]
        for system in systems_of(name):
            shown = None if progress is None else progress(f"{system.name}, {name}")
            found = system_answers(system, task, gold, out / SYSTEMS_FOLDER / name, progress=shown, workers=workers)
            absent = [
                (sentence.negated, None if answer.labels is None else key not in answer.labels.keys)
                for (sentence, key), answer in zip(mapped, found.answers, strict=True)
            ]
            scores.append(_score(system.name, f"keys of {name}", absent))
    return _table(mapping.title, scores, notes), tuple(notes), sum(score.n_failed for score in scores)


def _as_gold(sentence: NegExSentence, key: str) -> GoldReport:
    labels = Labels(f"line-{sentence.number}", {} if sentence.negated else {key: frozenset()})
    return GoldReport(labels, sentence.text)


def _score(reader: str, conditions: str, rows: Sequence[tuple[bool, bool | None]]) -> NegationScore:
    """`rows`: negated in gold, and as read; None where there is no answer."""
    return NegationScore(
        reader,
        conditions,
        n=len(rows),
        n_right=sum(gold == said for gold, said in rows),
        n_failed=sum(said is None for _, said in rows),
        counts=Counts(
            n_hit=sum(gold and said is True for gold, said in rows),
            n_predicted=sum(said is True for _, said in rows),
            n_gold=sum(gold for gold, _ in rows),
        ),
    )


def _table(title: str, scores: Sequence[NegationScore], notes: Sequence[str]) -> Table:
    header = ("conditions", "reader", "n", "failed", "negated", "negation F1", "precision", "recall", "accuracy", "95 % interval")
    rows = tuple(
        (
            s.conditions,
            s.reader,
            str(s.n),
            str(s.n_failed),
            str(s.counts.n_gold),
            percent(s.counts.f1),
            percent(s.counts.precision),
            percent(s.counts.recall),
            percent(s.n_right / s.n if s.n else float("nan")),
            percent_interval(wilson(s.n_right, s.n)),
        )
        for s in scores
    )
    return Table("negex", title, " ".join(notes), header, rows, 2)
