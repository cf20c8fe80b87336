"""What an evaluation found, and results.json: everything that the report, the tables and the figures print."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.schema import Task
from eval.calibration import Reliability, Triage
from eval.errors import Confusion, ReportError
from eval.gold import GoldReport
from eval.score import HEADLINES, Scope, ScoreTable, denominators
from eval.significance import LEVEL, ChiSquare, Interval, McNemar
from eval.systems import SystemAnswers
from pipeline.sinks import whole_file

REAL_BELOW = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class SubsetScore:
    """One system on one group of reports. Pair figures are nan for systems that state no relations."""

    group: str
    name: str
    n_reports: int
    n_exact_keys: int
    keys_accuracy: float
    keys_accuracy_interval: Interval
    keys_f1: float
    keys_micro_f1: float
    n_exact_pairs: int
    pairs_micro_f1: float


@dataclasses.dataclass(frozen=True, slots=True)
class Trust:
    """Reliability and triage of one kind of decision."""

    reliability: Reliability
    triage: Triage


@dataclasses.dataclass(frozen=True, slots=True)
class SystemResult:
    """One system's figures.

    Attributes:
        figures: Value by HEADLINES name; nan where undefined, for pair figures also where the system states no relations.
        intervals: Bootstrap interval of each, resampled by patient; `wilson` for the plain proportions.
        per_key_f1_interval: Bootstrap interval of each key's F1.
        negation: Exact keys on reports with a negated finding against those without; None where there is no text.
        trust: "entities", "relations", "reports"; only kinds that the system gives confidences for.
        confusions: By group of the task.
    """

    name: str
    answers: SystemAnswers
    score: ScoreTable
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    wilson: Mapping[str, Interval]
    per_key_f1_interval: Mapping[str, Interval]
    negation: ChiSquare | None
    subsets: tuple[SubsetScore, ...]
    trust: Mapping[str, Trust]
    errors: tuple[ReportError, ...]
    confusions: Mapping[str, Confusion]

    def shown_interval(self, figure: str) -> Interval:
        """The bootstrap interval; Wilson's for a proportion of 0 or 100 %, which no resample can vary."""
        return self.wilson[figure] if figure in self.wilson and self.figures[figure] in (0.0, 1.0) else self.intervals[figure]

    @property
    def states_relations(self) -> bool:
        """Whether pair figures are defined."""
        return self.answers.states_relations


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same reports, on their exact `what` ("keys" or "pairs").

    Attributes:
        p_holm: McNemar's p value after Holm's correction over all comparisons of the evaluation.
        f1_difference: Mean of first minus second of each report's own F1, with its bootstrap interval.
    """

    first: str
    second: str
    what: str
    n_reports: int
    mcnemar: McNemar
    p_holm: float
    f1_difference: float
    f1_interval: Interval

    @property
    def is_real(self) -> bool:
        """Whether the corrected test says that the difference in exact reports is no chance."""
        return self.p_holm < REAL_BELOW

    @property
    def better(self) -> str | None:
        """The system with more exact reports; None when they are level."""
        more = self.mcnemar.n_only_first - self.mcnemar.n_only_second
        return None if more == 0 else self.first if more > 0 else self.second


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """One evaluation. `gold_name` is the file's or data set's name, `notes` are whole sentences that a reader must know."""

    task: Task
    scope: Scope
    gold: tuple[GoldReport, ...]
    gold_name: str
    gold_sha256: str
    texts_sha256: str
    n_patients: int
    n_without_patient: int
    n_resamples: int
    seed: int
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def system(self, name: str) -> SystemResult:
        """Raises KeyError when there is none of this name."""
        return {system.name: system for system in self.systems}[name]

    @property
    def names(self) -> list[str]:
        """Of the systems, in the order in which they were asked for."""
        return [system.name for system in self.systems]

    def best(self, figure: str) -> SystemResult | None:
        """The system with the highest value of a HEADLINES figure, the first of equal ones; None where it is undefined for all."""
        defined = [s for s in self.systems if not math.isnan(s.figures[figure])]
        return max(defined, key=lambda s: s.figures[figure]) if defined else None

    def as_object(self) -> dict[str, Any]:
        """results.json; undefined figures are null. Holds ids, no report text."""
        return {
            "radtag_evaluation": 1,
            "task": {"name": self.task.name, "sha256": self.task.content_hash},
            "gold": {
                "name": self.gold_name,
                "sha256": self.gold_sha256,
                "texts_sha256": self.texts_sha256,
                "n_reports": len(self.gold),
                "n_patients": self.n_patients,
                "n_without_patient_id": self.n_without_patient,
            },
            "scope": plain(self.scope),
            "bootstrap": {"n_resamples": self.n_resamples, "seed": self.seed, "unit": "patient", "level": LEVEL},
            "notes": list(self.notes),
            "systems": {system.name: _system_object(system) for system in self.systems},
            "comparisons": [{**plain(c), "is_real": c.is_real, "better": c.better} for c in self.comparisons],
        }


def write_results(results: Results, path: Path) -> None:
    """results.json. Raises SinkError."""
    with whole_file(path) as temporary:
        text = json.dumps(results.as_object(), ensure_ascii=False, indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def plain(found: Any) -> Any:
    """Dataclasses, mappings and sets as JSON types; nan as None."""
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return {field.name: plain(getattr(found, field.name)) for field in dataclasses.fields(found)}
    if isinstance(found, Mapping):
        return {str(key): plain(value) for key, value in found.items()}
    if isinstance(found, (set, frozenset)):
        return sorted(found)
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [plain(item) for item in found]
    if isinstance(found, float):
        return None if math.isnan(found) else round(found, 6)
    return found


def _system_object(system: SystemResult) -> dict[str, Any]:
    score, n = system.score, denominators(system.score)
    return {
        "fingerprint": system.answers.fingerprint,
        "provenance": dict(system.answers.provenance),
        "n_reports": score.n_reports,
        "n_failed": score.n_failed,
        "states_relations": system.states_relations,
        "figures": {
            item.name: {
                "value": plain(system.figures[item.name]),
                "interval": plain(system.intervals[item.name]),
                **({"wilson": plain(system.wilson[item.name])} if item.name in system.wilson else {}),
                "n": n[item.name],
                "unit": item.unit,
            }
            for item in HEADLINES
        },
        "keys": plain(score.keys),
        "key_counts": plain(score.key_counts),
        "per_key": {
            key: {**plain(c), "f1": plain(c.f1), "interval": plain(system.per_key_f1_interval[key])}
            for key, c in score.per_key.items()
        },
        "subjects_published": {s: {**plain(x), "f1": plain(x.f1)} for s, x in score.pair_scores.items()},
        "subjects_second": {s: {**plain(x), "f1": plain(x.f1)} for s, x in score.pair_scores_second.items()},
        "pair_counts": plain(score.pair_counts),
        "pair_counts_expanded": plain(score.pair_counts_expanded),
        "per_pair": {name: {**plain(c), "f1": plain(c.f1)} for name, c in score.per_pair.items()},
        "subsets": plain(system.subsets),
        "negation": plain(system.negation),
        "trust": plain(system.trust),
        "errors": plain(system.errors),
        "confusions": plain(system.confusions),
    }
