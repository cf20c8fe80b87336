"""How a run ended: counts, rates, times, tokens; for the screen, for summary.json and for a monitoring system."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.records import STATUSES


@dataclass(slots=True)
class Summary:
    """The counts are of the whole run, everything else of this start alone.

    Attributes:
        n_resumed: Reports whose records stood in whole parts before this start and were left as they are.
        n_read: Reports that went through the stages.
        n_repeated: Reports of the input whose text stood before.
        seconds: From the first look at the input to the end.
        stage_seconds: Wall time a stage, summed over workers.
        step_seconds: Wall time of check_input, load, tag and, inside tag, write.
        tokens: Tokens by kind, of the stages that count them, summed over workers: `stage1_read`, and of a model in process
            `stage2_decoded`, `stage2_kept`, `stage2_generated` (stage2_relations.llama_cpp).
        finished: Whether every report has its record.
        warnings: What was asked for and could not be had, though the records are as they should be.
    """

    task: str
    system: str
    fingerprint: str
    n_reports: int
    n_resumed: int = 0
    n_repeated: int = 0
    n_read: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    finished: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def reports_per_s(self) -> float | None:
        """Records written in this start a second of tagging; None when there were none."""
        tagged = sum(self.counts.values()) - self.n_resumed
        seconds = self.step_seconds.get("tag", 0.0)
        return tagged / seconds if tagged and seconds > 0 else None

    def add_records(self, records: bytes) -> None:
        """Counted in the bytes, which spares parsing: quotes inside an id are escaped, so each pattern is the field itself."""
        for status in STATUSES:
            self.counts[status] += records.count(f'"status":"{status}"'.encode())

    def add_work(self, *, n_read: int, stage_seconds: Mapping[str, float], tokens: Mapping[str, int]) -> None:
        """What one part took."""
        self.n_read += n_read
        for stage, s in stage_seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + s
        for kind, n_tokens in tokens.items():
            self.tokens[kind] = self.tokens.get(kind, 0) + n_tokens

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Adds the wall time inside to the step."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.step_seconds[name] = self.step_seconds.get(name, 0.0) + time.perf_counter() - begin

    def as_object(self) -> dict[str, Any]:
        """summary.json."""
        rate = self.reports_per_s
        return {
            "task": self.task,
            "system": self.system,
            "fingerprint": self.fingerprint,
            "finished": self.finished,
            "n_reports": self.n_reports,
            "counts": self.counts,
            "n_resumed": self.n_resumed,
            "n_read": self.n_read,
            "n_repeated": self.n_repeated,
            "seconds": round(self.seconds, 3),
            "step_seconds": {step: round(s, 3) for step, s in self.step_seconds.items()},
            "reports_per_s": None if rate is None else round(rate, 3),
            "stage_seconds": {stage: round(s, 3) for stage, s in self.stage_seconds.items()},
            "tokens": self.tokens,
            "peak_memory_mib": peak_memory_mib(),
            "warnings": self.warnings,
        }


def peak_memory_mib() -> int:
    """Of this process, or of its largest finished child when that had more."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // unit
