"""The input cut into chunks that are named by their content, and the plan of a run that is checked before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from configs.contracts import Report
from pipeline.sources import FileSource, SourceError
from pipeline.text_as_given import UnusableRow

DEFAULT_CHUNK_REPORTS = 64
ID_DIGEST_BYTES = 16  # all that is kept of an id: 160 MB for ten million reports


@dataclass(frozen=True)
class Chunk:
    """Some reports in input order. Equal reports at an equal place give an equal name, whoever reads them and when."""

    index: int
    reports: tuple[Report, ...]

    @cached_property
    def name(self) -> str:
        """`part-000012-<16 hexadecimal digits>`: index and sha256 of ids and texts."""
        content = hashlib.sha256()
        for report in self.reports:
            problem = report.problem if isinstance(report, UnusableRow) else None
            content.update(json.dumps([report.report_id, report.text, problem]).encode() + b"\n")
        return f"part-{self.index:06d}-{content.hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a whole run must hold: the names of its parts in order, and how many reports."""

    names: tuple[str, ...]
    n_reports: int

    @property
    def content_hash(self) -> str:
        """sha256 over the names, so over all ids and texts."""
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
    digests = bytearray()
    for chunk in chunks(source, chunk_reports=chunk_reports):
        names.append(chunk.name)
        for report in chunk.reports:
            digests += hashlib.blake2b(report.report_id.encode(), digest_size=ID_DIGEST_BYTES).digest()
    repeated = _first_repetition(bytes(digests))
    if repeated is not None:
        raise _repetition_error(source, *repeated)
    return Plan(tuple(names), len(digests) // ID_DIGEST_BYTES)


def _first_repetition(digests: bytes) -> tuple[int, int] | None:
    """Places of the first id that stood before, and where it stood; None when all differ."""
    import numpy as np

    halves = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal ids stay in input order
    same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    if not same.any():
        return None
    again, before = order[1:][same], order[:-1][same]
    first = int(again.argmin())
    return int(before[first]), int(again[first])


def _repetition_error(source: FileSource, before: int, again: int) -> SourceError:
    rows = list(islice(source.rows(), before, again + 1, again - before))
    return SourceError(f"{rows[1][1].where}: report id '{rows[1][1].report_id}' stands a second time; first at {rows[0][1].where}")
