from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.thresholds import (
    best_f1_threshold,
    choose_thresholds,
    fit_temperature,
    key_figures,
    recall_threshold,
    tempered,
)

SCORES = st.lists(st.tuples(st.floats(0.001, 0.999), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: any(p for _, p in rows)
)


def _f1(probabilities: np.ndarray, targets: np.ndarray, threshold: float) -> float:
    return key_figures((probabilities >= threshold)[:, None], targets[:, None])["micro_f1"]


@given(SCORES)
def test_no_other_threshold_has_a_better_f1(rows: list[tuple[float, bool]]) -> None:
    probabilities, targets = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    best = max(_f1(probabilities, targets, threshold) for threshold in probabilities)
    assert _f1(probabilities, targets, best_f1_threshold(probabilities, targets)) == pytest.approx(best)


@given(SCORES, st.floats(0.5, 1.0))
def test_the_recall_threshold_is_the_highest_that_keeps_the_recall(rows: list[tuple[float, bool]], recall: float) -> None:
    probabilities, targets = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    threshold = recall_threshold(probabilities, targets, recall=recall)
    present = probabilities[targets]
    assert (present >= threshold).mean() >= recall - 1e-9
    assert (present > threshold).mean() < recall


def test_temperature_finds_the_overconfidence_it_was_given() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, size=(4000, 3))
    targets = rng.random(logits.shape) < tempered(logits, 1.0)
    assert fit_temperature(logits, targets) == pytest.approx(1.0, abs=0.1)
    assert fit_temperature(logits * 3, targets) == pytest.approx(3.0, abs=0.3)


def test_hints_keep_recall_and_a_rare_key_takes_the_common_threshold() -> None:
    rng = np.random.default_rng(1)
    targets = np.column_stack([rng.random(200) < 0.4, np.arange(200) < 3])
    probabilities = tempered(rng.normal(0, 1.5, size=(200, 2)) + 3 * targets - 1.5, 1.0)
    thresholds = choose_thresholds(probabilities, targets, ["common", "rare"], hint_recall=0.98)
    hinted = probabilities[:, 0] >= thresholds["common"].hint
    assert hinted[targets[:, 0]].mean() >= 0.98
    assert all(limits.hint <= limits.decision for limits in thresholds.values())
    assert thresholds["rare"].decision == pytest.approx(best_f1_threshold(probabilities.ravel(), targets.ravel()), abs=1e-4)


def test_key_figures_by_hand() -> None:
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    predicted = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    figures = key_figures(predicted, targets)
    assert figures == pytest.approx({"micro_f1": 2 / 3, "macro_f1": 0.5, "precision": 2 / 3, "recall": 2 / 3, "exact_set": 1 / 3})


def test_undefined_figures_are_nan() -> None:
    figures = key_figures(np.zeros((2, 2)), np.zeros((2, 2)))
    assert math.isnan(figures["micro_f1"])
    assert math.isnan(figures["macro_f1"])
    assert figures["exact_set"] == 1.0
