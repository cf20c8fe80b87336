"""`radtag train distill`: labels unannotated reports with a stronger model and keeps the answers that can be trained on.

The model reads every report freely: no stage 1 hints a subject, no rule decides one, and any value of the task can be answered.
Keywords come in afterwards, as a judge: a report is kept only when everything said of it stands in its text and is sure.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from configs.contracts import EntityFinding, TaggedReport
from pipeline.archive import read_run
from pipeline.records import CONFIDENCE_DIGITS
from pipeline.settings import Settings, SettingsError, settings
from pipeline.show import ShownRecord, shown_records
from pipeline.sinks import whole_file
from pipeline.tagging import Progress, TagRequest, tag_archive
from pipeline.verify import run_source
from training.loop import TrainingError

SOURCE = "distilled"
DEFAULT_MIN_CONFIDENCE = 0.9
DIGEST_BYTES = 16  # all that is kept of a text that was written

DropReason = Literal["failed", "rejected", "ungrounded", "without_confidence", "unsure", "repeated"]
"""Why a report is left out; the first that holds, in this order.

`failed`: the model gave no answer, or none that is one of those offered. `rejected`: the row has no usable text. `ungrounded`: an
entity or a relation that the keywords do not find in the text. `without_confidence`: the model gives no probabilities. `unsure`:
an entity, present or absent, or a relation below the least confidence. `repeated`: the text was written before.
"""
DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)


@dataclass(slots=True)
class DistillResult:
    """How many reports were read, written, written without any finding, and left out for which reason."""

    n_reports: int = 0
    n_kept: int = 0
    n_without_findings: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)


def teacher_settings(**values: Any) -> Settings:
    """Settings of a free reading by the named model or server. Raises SettingsError, too when neither is named."""
    if values.get("model") is None and values.get("server") is None:
        raise SettingsError("--model or --server is expected: the packaged model is the one to learn, not the one to teach")
    return settings(**values, system="llm", read="generate", no_adapter=True, grounding=False)


def distill(request: TagRequest, out: Path, *, min_confidence: float, progress: Progress) -> DistillResult:
    """Tags the archive into `request.out`, or goes on with that run, and writes `out` from its records, whole or not at all.

    Another `min_confidence` over a finished run asks the model nothing.

    Args:
        request: Its settings come from `teacher_settings`.
        min_confidence: In [0, 1], for every entity and relation of a report; 0 also takes answers without probabilities.

    Raises:
        TrainingError: no report is left, or the input changed meanwhile.
        What `pipeline.tagging.tag_archive` raises, and SinkError for `out`.
    """
    if out.exists():
        raise TrainingError(f"{out}: exists already; a new file is expected")
    tag_archive(request, progress)
    run = read_run(request.out)
    result = DistillResult()
    with whole_file(out) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            for line in _lines(shown_records(request.out, run, run_source(run), status=None), result, min_confidence):
                stream.write(line + "\n")
        if result.n_kept == 0:
            raise TrainingError(f"no report is left of {result.n_reports} ({dropped_text(result)}); {out} was not written")
    return result


def dropped_text(result: DistillResult) -> str:
    """The counts of what was left out, for people; `none dropped` when nothing was."""
    counts = [f"{result.dropped[reason]} {reason.replace('_', ' ')}" for reason in DROP_REASONS if result.dropped[reason]]
    return "dropped: " + ", ".join(counts) if counts else "none dropped"


def drop_reason(record: TaggedReport, *, min_confidence: float) -> DropReason | None:
    """Why a record cannot be trained on by itself; None when it can."""
    if record.status in ("failed", "rejected"):
        return "failed" if record.status == "failed" else "rejected"
    if not _is_grounded(record):
        return "ungrounded"
    if min_confidence == 0:
        return None
    least = least_confidence(record)
    if least is None:
        return "without_confidence"
    return "unsure" if least < min_confidence else None


def least_confidence(record: TaggedReport) -> float | None:
    """How sure the least sure of a report's decisions is, absent entities included; None where that of one is not known."""
    sure = [_sureness(finding) for finding in record.entities or ()]
    sure += [relation.confidence for relation in record.relations or ()]
    known = [one for one in sure if one is not None]
    return min(known) if known and len(known) == len(sure) else None


def corpus_object(record: TaggedReport, text: str) -> dict[str, Any]:
    """The line of a corpus file, as `pipeline.annotations` reads it."""
    labels: dict[str, list[str]] = {finding.key: [] for finding in record.entities or () if finding.present}
    for relation in record.relations or ():
        labels[relation.subject].append(relation.value)
    about = {"patient_id": record.patient_id, "date": record.study_date, "confidence": least_confidence(record)}
    return {
        "report_id": record.report_id,
        "task": record.task,
        "text": text,
        "labels": labels,
        "source": SOURCE,
        **{name: value for name, value in about.items() if value is not None},
        "notes": f"labelled by the run with fingerprint {record.provenance['fingerprint']}",
    }


def _lines(shown: Iterator[ShownRecord], result: DistillResult, min_confidence: float) -> Iterator[str]:
    written: set[bytes] = set()
    for item in shown:
        record, text = item.record, item.text
        if text is None:
            raise TrainingError(f"report '{record.report_id}': its text is not in the input any more; the input changed meanwhile")
        result.n_reports += 1
        reason = drop_reason(record, min_confidence=min_confidence)
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()
        if reason is None and digest in written:
            reason = "repeated"
        if reason is not None:
            result.dropped[reason] += 1
            continue
        written.add(digest)
        result.n_kept += 1
        result.n_without_findings += record.status == "no_findings"
        yield json.dumps(corpus_object(record, text), ensure_ascii=False)


def _is_grounded(record: TaggedReport) -> bool:
    entities = all(finding.spans for finding in record.entities or () if finding.present)
    return entities and all(r.subject_span is not None and r.value_span is not None for r in record.relations or ())


def _sureness(finding: EntityFinding) -> float | None:
    if finding.confidence is None:
        return None
    return finding.confidence if finding.present else round(1.0 - finding.confidence, CONFIDENCE_DIGITS)
