"""What the results page holds radtag to: published figures, careful rules on reports kept apart, and the goals. In percent.

Published: Shin et al., Sci Rep 2025;15:31550, on real reports that are not public; its stage 1 stands beside ours. Careful rules: a
rule system tuned on 65 development reports, scored once on 60 chest CT and 65 brain MRI invented reports that nobody else has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PUBLISHED = "Shin et al., Sci Rep 2025;15:31550"
JUDGED_ALONE = "encoder"
JUDGED_TOGETHER = "two-stage"
RIVAL = "rules"
NEGATED_AT_LEAST = 92.0
SIGNIFICANT_BELOW = 0.05

Count = Literal[
    "reports", "reports with a key", "reports without a key", "reports with a negated finding", "keys", "values", "pairs"
]


@dataclass(frozen=True, slots=True)
class GoalLine:
    """A figure, what others reached and what is asked of ours. None: nothing is known, or asked.

    Attributes:
        figure: Its name in results.json.
        count: What of the gold it is out of; None: what the system itself said.
        at_most: The goal is an upper bound.
    """

    figure: str
    label: str
    count: Count | None
    published: float | None = None
    careful: float | None = None
    goal: float | None = None
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class GoalTable:
    """One table of the page; `judged` is the system that the goals are for."""

    title: str
    task: str
    judged: str
    lines: tuple[GoalLine, ...]


def _keys(exact: tuple[float, float, float], f1: tuple[float, float, float], micro_careful: float) -> tuple[GoalLine, ...]:
    return (
        GoalLine("keys_accuracy", "exact keys", "reports", *exact),
        GoalLine("keys_f1", "F1 as published", "reports", *f1),
        GoalLine("keys_micro_f1", "micro F1", "keys", None, micro_careful),
    )


def _pairs(f1: tuple[float, float, float], accuracy: tuple[float, None, float]) -> tuple[GoalLine, ...]:
    return (
        GoalLine("pairs_macro_f1", "macro F1 as published", "values", *f1),
        GoalLine("pairs_macro_accuracy", "macro accuracy as published", "values", *accuracy),
        GoalLine("pairs_macro_f1_second", "macro F1, second reading", "values"),
        GoalLine("pairs_micro_f1", "micro F1", "pairs"),
    )


def _hints(published: float | None) -> tuple[GoalLine, ...]:
    return (
        GoalLine("hint_recall", "hint recall as published", "reports with a key", published, None, 99.0),
        GoalLine("hint_micro_recall", "hint recall over all keys", "keys"),
    )


STAGE_1_TABLES = (
    GoalTable(
        "Chest CT: keys by stage 1 alone",
        "chest_ct",
        JUDGED_ALONE,
        (*_hints(98.9), *_keys((44.4, 86.7, 90.0), (80.5, 95.7, 97.0), 97.8)),
    ),
    GoalTable(
        "Brain MRI: keys by stage 1 alone",
        "brain_mri",
        JUDGED_ALONE,
        (*_hints(None), *_keys((80.6, 80.0, 87.0), (91.9, 93.7, 96.0), 92.8)),
    ),
    GoalTable(
        "Chest CT: reports with a negated finding, exact keys by stage 1 alone",
        "chest_ct",
        JUDGED_ALONE,
        (GoalLine("negated_accuracy", "exact keys", "reports with a negated finding", 0.5, None, 88.0),),
    ),
)
STAGE_2_TABLES = (
    GoalTable(
        "Chest CT: lesions and their locations", "chest_ct", JUDGED_TOGETHER, _pairs((77.39, 84.0, 93.0), (56.13, None, 85.0))
    ),
    GoalTable(
        "Brain MRI: tumours and their episodes", "brain_mri", JUDGED_TOGETHER, _pairs((70.58, 80.1, 90.0), (63.12, None, 82.0))
    ),
    GoalTable(
        "Chest CT: keys by both stages",
        "chest_ct",
        JUDGED_TOGETHER,
        (
            *_keys((73.9, 86.7, 93.0), (93.4, 95.7, 98.0), 97.8),
            GoalLine("keys_specificity", "specificity", "reports without a key", 79.6, None, 97.0),
        ),
    ),
    GoalTable(
        "Brain MRI: keys by both stages",
        "brain_mri",
        JUDGED_TOGETHER,
        (
            *_keys((80.6, 80.0, 90.0), (91.1, 93.7, 97.0), 92.8),
            GoalLine("keys_specificity", "specificity", "reports without a key", 52.0, None, 95.0),
        ),
    ),
)
PUBLISHED_NEGATION = {"chest_ct": (73.1, 74.7)}  # exact keys of reports with a negated lesion (n = 186), and without


def trust_lines() -> tuple[GoalLine, ...]:
    """Triage of reports, keys and relations, then calibration error."""
    kinds = (("reports", "reports"), ("entities", "keys"), ("relations", "relations"))
    return (
        *(GoalLine(f"error_surest_{k}", f"{w}: error of the surest 80 %", None, goal=2.0, at_most=True) for k, w in kinds),
        *(GoalLine(f"errors_found_{k}", f"{w}: share of all errors in the least sure 20 %", None, goal=50.0) for k, w in kinds),
        *(GoalLine(f"calibration_error_{k}", f"{w}: calibration error", None) for k, w in kinds[1:]),
    )


TRUST_TABLES = tuple(
    GoalTable(f"{name}: can its confidence be trusted?", task, JUDGED_TOGETHER, trust_lines())
    for name, task in (("Chest CT", "chest_ct"), ("Brain MRI", "brain_mri"))
)
