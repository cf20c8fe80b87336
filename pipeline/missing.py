"""What is left to tag of a run: the chunks without a whole part, each with the records that stand already.

A record is taken over, and not read again, in two cases: its part is tagged again only for failed reports, or its text stood before
in the input and that report's record is whole. Neither changes a byte: a record follows from its text, and the failed are never
taken over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from configs.contracts import Report
from pipeline.archive import is_finished_part, part_bytes
from pipeline.chunks import Chunk, Plan, chunks
from pipeline.records import record_from_line, record_line
from pipeline.sources import FileSource, SourceError
from pipeline.text_as_given import UnusableRow

KEPT_LINES = 512  # about 1.5 MB; the texts that stand often come again and again
READABLE = (b'"status":"ok"', b'"status":"no_findings"')
FAILED = b'"status":"failed"'


@dataclass(frozen=True, slots=True)
class MissingChunks:
    """Iterate it once a run. It can be sent to another process of the same machine.

    Attributes:
        folder: The run directory; parts that are written while this iterates are seen.
        done: Names of the parts that need nothing.
        retried: Names of whole parts whose failed reports are tagged again.
        tag_once: Whether a text that stood before is taken over.
    """

    source: FileSource
    plan: Plan
    chunk_reports: int
    folder: Path
    done: frozenset[str] = frozenset()
    retried: frozenset[str] = frozenset()
    tag_once: bool = True

    def __iter__(self) -> Iterator[Chunk]:
        """Raises SourceError when the input is not the planned one any more."""
        names = self.plan.names
        records = _StandingRecords(self)
        n_chunks = 0
        for chunk in chunks(self.source, chunk_reports=self.chunk_reports):
            if n_chunks == len(names) or chunk.name != names[n_chunks]:
                raise SourceError(f"{self.source.files[0]}: input changed while it was tagged; begin again with a new --out")
            n_chunks += 1
            if chunk.name not in self.done:
                yield records.filled(chunk)
        if n_chunks < len(names):
            raise SourceError(f"{self.source.files[0]}: input became shorter while it was tagged; begin again with a new --out")


class _StandingRecords:
    def __init__(self, missing: MissingChunks) -> None:
        self._missing = missing
        self._lines: OrderedDict[int, bytes] = OrderedDict()

    def filled(self, chunk: Chunk) -> Chunk:
        """The chunk with the records that stand already."""
        own = self._own_lines(chunk)
        begin = chunk.index * self._missing.chunk_reports
        kept = tuple(
            line if line is not None else self._of_text(report, begin + row, begin)
            for row, (report, line) in enumerate(zip(chunk.reports, own, strict=True))
        )
        return replace(chunk, kept=kept) if any(line is not None for line in kept) else chunk

    def _own_lines(self, chunk: Chunk) -> list[bytes | None]:
        if chunk.name not in self._missing.retried:
            return [None] * len(chunk.reports)
        lines = part_bytes(self._missing.folder, chunk.name).split(b"\n")[:-1]
        return [None if FAILED in line else line for line in lines]

    def _of_text(self, report: Report, place: int, chunk_begin: int) -> bytes | None:
        first = self._missing.plan.repeats.first(place) if self._missing.tag_once else None
        if first is None or first >= chunk_begin or isinstance(report, UnusableRow):
            return None
        line = self._line(first)
        if line is None:
            return None
        record = record_from_line(line, where=f"record {first}")
        about = {"patient_id": report.patient_id, "study_date": report.study_date}
        return record_line(replace(record, report_id=report.report_id, **about)).encode()  # type: ignore[arg-type]

    def _line(self, place: int) -> bytes | None:
        """The record of the report at `place` if it can be taken over."""
        line = self._lines.get(place)
        if line is None:
            index, row = divmod(place, self._missing.chunk_reports)
            name = self._missing.plan.names[index]
            if not is_finished_part(self._missing.folder, name):
                return None
            line = part_bytes(self._missing.folder, name).split(b"\n")[row]
            if not any(status in line for status in READABLE):
                return None
            self._lines[place] = line
        self._lines.move_to_end(place)
        if len(self._lines) > KEPT_LINES:
            self._lines.popitem(last=False)
        return line
