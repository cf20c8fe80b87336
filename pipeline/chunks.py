"""The input cut into chunks that are named by their content, and the plan of a run that is checked before anything is written."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from configs.contracts import Report
from pipeline.sources import FileSource, SourceError
from pipeline.text_as_given import UnusableRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DEFAULT_CHUNK_REPORTS = 64
DIGEST_BYTES = 16  # all that is kept of an id and of a text: 320 MB for ten million reports


@dataclass(frozen=True)
class Chunk:
    """Some reports in input order. Equal reports at an equal place give an equal name, whoever reads them and when.

    `kept` is empty, or holds a line a report: its record without line end where one stands already, None where it is to be tagged.
    """

    index: int
    reports: tuple[Report, ...]
    kept: tuple[bytes | None, ...] = ()

    @cached_property
    def name(self) -> str:
        """`part-000012-<16 hexadecimal digits>`: index and sha256 of everything that the records are made from."""
        content = hashlib.sha256()
        for report in self.reports:
            problem = report.problem if isinstance(report, UnusableRow) else None
            told = [report.report_id, report.text, problem]
            if report.patient_id is not None or report.study_date is not None:  # they stand in the record too
                told += [report.patient_id, report.study_date]
            content.update(json.dumps(told).encode() + b"\n")
        return f"part-{self.index:06d}-{content.hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Repeats:
    """Reports whose text stood before: place in the input and place of its first one, ascending by the former."""

    places: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def first(self, place: int) -> int | None:
        """Place of the first report of the same text; None where the report at `place` is that one."""
        found = bisect_left(self.places, place)
        return int(self.firsts[found]) if found < len(self.places) and self.places[found] == place else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a whole run must hold: the names of its parts in order, how many reports, and which texts stand several times."""

    names: tuple[str, ...]
    n_reports: int
    repeats: Repeats = field(compare=False)

    @property
    def content_hash(self) -> str:
        """sha256 over the names, so over all that the records are made from."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()


def chunks(source: FileSource, *, chunk_reports: int = DEFAULT_CHUNK_REPORTS) -> Iterator[Chunk]:
    """The source in chunks of `chunk_reports`, the last one may be smaller."""
    reports = source.reports()
    index = 0
    while some := tuple(islice(reports, chunk_reports)):
        yield Chunk(index, some)
        index += 1


def plan(source: FileSource, *, chunk_reports: int = DEFAULT_CHUNK_REPORTS) -> Plan:
    """Reads the whole input once. Raises SourceError for files, columns or ids that cannot be used, two equal ids among them."""
    names: list[str] = []
    ids, texts = bytearray(), bytearray()
    for chunk in chunks(source, chunk_reports=chunk_reports):
        names.append(chunk.name)
        for report in chunk.reports:
            digest = _digest(report.report_id)
            ids += digest
            # a row without a usable text is like no other
            texts += digest if isinstance(report, UnusableRow) else _digest(report.text, kind=b"text")
    same_id = _repeats(ids)
    if len(same_id):
        raise _repetition_error(source, int(same_id.firsts[0]), int(same_id.places[0]))
    return Plan(tuple(names), len(ids) // DIGEST_BYTES, _repeats(texts))


def _digest(text: str, *, kind: bytes = b"id") -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES, person=kind).digest()


def _repeats(digests: bytearray) -> Repeats:
    import numpy as np

    halves = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal digests stay in input order
    same = np.zeros(len(order), dtype=bool)
    same[1:] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    group_starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    places, firsts = order[same], order[group_starts[same]]
    ascending = np.argsort(places)
    return Repeats(places[ascending], firsts[ascending])


def _repetition_error(source: FileSource, before: int, again: int) -> SourceError:
    rows = list(islice(source.rows(), before, again + 1, again - before))
    return SourceError(f"{rows[1][1].where}: report id '{rows[1][1].report_id}' stands a second time; first at {rows[0][1].where}")
