"""Reports that nothing is trained on: the splits that a corpus is measured with.

The reports that people annotate are drawn from the archive that also gives weak labels and unlabelled texts. Those of them that
stand in a measured split are left out of both, by their id, their patient or their text.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from configs.contracts import Report
from pipeline.text_as_given import stage_text
from training.corpus import read_texts

MEASURED_SPLITS = ("dev", "test", "test_hard", "test_fresh", "test_sealed")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Ids, patients and texts of the measured splits; `report in held_out` where any of the three is one of them.

    Texts are compared in NFC, all white space alike: an archive that went through another program is still recognised.
    """

    report_ids: frozenset[str] = frozenset()
    patient_ids: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()
    content_hash: str = ""

    @classmethod
    def of(cls, corpora: Iterable[Path]) -> HeldOut:
        """Of the measured splits that the corpus folders have. Raises CorpusError."""
        reports: list[Report] = []
        digest = hashlib.sha256()
        for folder in corpora:
            for path in (folder / f"{split}.jsonl" for split in MEASURED_SPLITS):
                if path.is_file():
                    reports.extend(read_texts(path))
                    digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return cls(
            frozenset(report.report_id for report in reports),
            frozenset(report.patient_id for report in reports if report.patient_id is not None),
            frozenset(_comparable(report.text) for report in reports),
            digest.hexdigest(),
        )

    def __contains__(self, report: Report) -> bool:
        return (
            report.report_id in self.report_ids
            or (report.patient_id is not None and report.patient_id in self.patient_ids)
            or _comparable(report.text) in self.texts
        )


NOTHING = HeldOut()


def tell_left_out(path: Path, *, n_left_out: int, n_reports: int) -> None:
    """One line on standard error where any report of `path` was left out."""
    if n_left_out:
        logger.warning(
            "%s: %d of %d reports are left out: report_id, patient_id or text stands in %s",
            path,
            n_left_out,
            n_reports,
            " or ".join(f"{split}.jsonl" for split in MEASURED_SPLITS),
        )


def _comparable(text: str) -> str:
    return " ".join(stage_text(text).text.split())
