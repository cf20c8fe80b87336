"""Several reports on their way to a server at once; results in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from configs.contracts import EntityFlags, Reading, RelationMapper, Report, Unread

__all__ = ["ConcurrentMapper"]


class ConcurrentMapper:
    """A RelationMapper that has another read up to `n_at_once` reports at a time, each by itself, in threads of this process.

    A new report is begun when an earlier one is done, so a slow server is given no more than it has. The other mapper and its model
    must bear several threads: one over llama.cpp in this process does not.
    """

    def __init__(self, mapper: RelationMapper, *, n_at_once: int) -> None:
        self._mapper = mapper
        self._n_at_once = n_at_once

    @property
    def token_counts(self) -> Mapping[str, int]:
        """Those of the other mapper; empty where it counts none."""
        counts: Mapping[str, int] = getattr(self._mapper, "token_counts", {})
        return counts

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        """One result a report, in order. What the other mapper raises for one is raised, and reports not begun are left."""
        pool = ThreadPoolExecutor(self._n_at_once, thread_name_prefix="report")
        try:
            under_way = [pool.submit(self._mapper.relate, [report], [flag]) for report, flag in zip(reports, flags, strict=True)]
            return [reading for future in under_way for reading in future.result()]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
