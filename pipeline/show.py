"""Records for people: which entity, which value, and where both stand in the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.contracts import Relation, Span, TaggedReport
from configs.schema import Task
from pipeline.archive import RunFile, part_bytes, part_names, require_whole
from pipeline.chunks import Chunk, chunks
from pipeline.records import record_from_line
from pipeline.sources import FileSource, SourceError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

CONTEXT_CHARS = 20
GAP_CHARS = 40  # a longer gap between two marks is shortened to an ellipsis
STATUS_STYLE = {"ok": "green", "no_findings": "dim", "failed": "bold red", "rejected": "bold yellow"}


@dataclass(frozen=True, slots=True)
class ShownRecord:
    """A record and the text it was read from; None when the input is not there any more or has changed."""

    record: TaggedReport
    text: str | None


def shown_records(folder: Path, run: RunFile, source: FileSource | None, *, status: str | None) -> Iterator[ShownRecord]:
    """Records in input order, only those of `status` when it is given. Raises ArchiveError at a part that is not whole."""
    texts = _Texts(source, run.chunk_reports)
    for name in part_names(folder):
        require_whole(folder, name)
        found = texts.of(name)
        for number, line in enumerate(part_bytes(folder, name).splitlines(), 1):
            record = record_from_line(line, where=f"{name}.jsonl:{number}")
            if status is None or record.status == status:
                yield ShownRecord(record, found.get(record.report_id))


class _Texts:
    """Walks through the input beside the parts; a part is only given texts when its name says that they are the same."""

    def __init__(self, source: FileSource | None, chunk_reports: int) -> None:
        self._chunks: Iterator[Chunk] = iter(()) if source is None else chunks(source, chunk_reports=chunk_reports)

    def of(self, name: str) -> dict[str, str]:
        index = int(name.split("-")[1])
        try:
            for chunk in self._chunks:
                if chunk.index == index:
                    return {r.report_id: r.text for r in chunk.reports} if chunk.name == name else {}
                if chunk.index > index:
                    break
        except SourceError:
            self._chunks = iter(())  # the input changed since: positions are shown instead of text
        return {}


def records_table(shown: Sequence[ShownRecord], task: Task | None) -> Table:
    """A rich table. `task` gives the labels; None means that its file is gone, and keys are shown."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("report", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("findings, and where they stand in the text", overflow="fold")
    for item in shown:
        record = item.record
        table.add_row(
            Text(printable(record.report_id)),
            Text(record.status, style=STATUS_STYLE[record.status]),
            Text("\n").join(findings(item, task)),
        )
    return table


def findings(item: ShownRecord, task: Task | None) -> list[Text]:
    """One line a relation, a present entity without relation, or the problem of a failed row."""
    from rich.text import Text

    record = item.record
    if record.problem is not None:
        return [Text(printable(record.problem))]
    lines: list[Text] = []
    relations = list(record.relations or ())
    for finding in record.entities or ():
        own = [relation for relation in relations if relation.subject == finding.key]
        lines.extend(_relation_line(relation, item.text, task) for relation in own)
        if finding.present and not own:
            lines.append(_line(_label(task, finding.key), finding.confidence, item.text, finding.spans[:1]))
    keys = {finding.key for finding in record.entities or ()}
    lines.extend(_relation_line(relation, item.text, task) for relation in relations if relation.subject not in keys)
    return lines or [Text("–")]


def snippet(text: str, spans: Sequence[Span]) -> list[tuple[str, bool]]:
    """The text around the spans as pieces, True for the marked ones. Runs of white space become one space."""
    pieces: list[tuple[str, bool]] = []
    end = 0
    for span in _joined(spans):
        before = text[end : span.start]
        if not pieces:
            before = _ending(before)
        elif len(before) > GAP_CHARS:
            before = f"{_beginning(before)[:-1]} … {_ending(before)[1:]}"
        pieces.append((_one_line(before), False))
        pieces.append((_one_line(text[span.start : span.end]), True))
        end = span.end
    pieces.append((_one_line(_beginning(text[end:])), False))
    return [(piece.lstrip() if place == 0 else piece, marked) for place, (piece, marked) in enumerate(pieces) if piece]


def printable(text: str) -> str:
    """Control and format characters as spaces, so that a report cannot steer a terminal."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def _relation_line(relation: Relation, text: str | None, task: Task | None) -> Text:
    spans = [span for span in (relation.subject_span, relation.value_span) if span is not None]
    return _line(f"{_label(task, relation.subject)} → {_label(task, relation.value)}", relation.confidence, text, spans)


def _line(name: str, confidence: float | None, text: str | None, spans: Sequence[Span]) -> Text:
    from rich.text import Text

    line = Text(name, style="bold")
    plain = Text(f" ({confidence:.2f})" if confidence is not None else "", style="not bold")
    if text is not None and spans and max(span.end for span in spans) <= len(text):
        plain.append("  “")
        for piece, marked in snippet(text, spans):
            plain.append(f"[{piece}]" if marked else piece, style="cyan" if marked else "")
        plain.append("”")
    elif spans:
        plain.append("  at " + ", ".join(f"{span.start}–{span.end}" for span in spans))
    return line + plain


def _beginning(text: str) -> str:
    """About CONTEXT_CHARS of it, cut between words where there is a gap, with an ellipsis where it was cut."""
    if len(text) <= CONTEXT_CHARS:
        return text
    kept = text[:CONTEXT_CHARS]
    whole_words = kept if text[CONTEXT_CHARS].isspace() else kept.rpartition(" ")[0]
    return f"{whole_words or kept}…"


def _ending(text: str) -> str:
    if len(text) <= CONTEXT_CHARS:
        return text
    kept = text[-CONTEXT_CHARS:]
    whole_words = kept if text[-CONTEXT_CHARS - 1].isspace() else kept.partition(" ")[2]
    return f"…{whole_words or kept}"


def _joined(spans: Sequence[Span]) -> list[Span]:
    """In text order; overlapping ones as one."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.start < joined[-1].end:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


def _label(task: Task | None, name: str) -> str:
    known = task is not None and (name in task.entities or name in task.values or name in task.group_labels)
    return task.label(name) if task is not None and known else name


def _one_line(text: str) -> str:
    shown = printable(text)
    inner = " ".join(shown.split())
    if not inner:
        return " " if shown else ""
    return (" " if shown[0].isspace() else "") + inner + (" " if shown[-1].isspace() else "")
