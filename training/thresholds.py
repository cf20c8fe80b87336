"""Calibration and thresholds from the dev split, and the figures that say what they are worth.

Arrays: logits, probabilities float [reports, keys]; targets bool [reports, keys].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from stage1_encoder.flags import KeyThresholds

Array = np.ndarray[Any, np.dtype[Any]]
# A key with fewer present dev reports shares the threshold of all keys: its own would fit single reports.
FEWEST_FOR_DECISION = 8
# A recall of 0.98 of fewer reports than this is the recall of all of them, down to the strangest.
FEWEST_FOR_HINT = 50


def tempered(logits: Array, temperature: float) -> Array:
    """Sigmoid of logits / temperature."""
    result: Array = 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64) / temperature, -60, 60)))
    return result


def fit_temperature(logits: Array, targets: Array) -> float:
    """The temperature in [0.25, 8] with the least binary cross-entropy (Guo et al. 2017), by golden-section search on its log."""
    low, high = math.log(0.25), math.log(8.0)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        if _cross_entropy(logits, targets, math.exp(first)) < _cross_entropy(logits, targets, math.exp(second)):
            high = second
        else:
            low = first
    return round(math.exp((low + high) / 2), 4)


def choose_thresholds(probabilities: Array, targets: Array, keys: Sequence[str], *, hint_recall: float) -> dict[str, KeyThresholds]:
    """Two thresholds a key.

    `decision` has the best F1 of the key on dev, pulled half-way (in log-odds) to the best over all keys together; a key with fewer
    than 8 present reports takes the common one. `hint` is the highest threshold that keeps `hint_recall` of the present ones, over
    all keys together, or of the key alone where it has 50 present reports; it is never above `decision`.
    """
    common = best_f1_threshold(probabilities.ravel(), targets.ravel())
    common_hint = recall_threshold(probabilities.ravel(), targets.ravel(), recall=hint_recall)
    thresholds = {}
    for column, key in enumerate(keys):
        own, present = probabilities[:, column], targets[:, column]
        decision, hint = common, common_hint
        if present.sum() >= FEWEST_FOR_DECISION:
            decision = _midpoint(common, best_f1_threshold(own, present))
        if present.sum() >= FEWEST_FOR_HINT:
            hint = recall_threshold(own, present, recall=hint_recall)
        thresholds[key] = KeyThresholds(hint=_rounded_down(min(hint, decision)), decision=_rounded_down(decision))
    return thresholds


def best_f1_threshold(probabilities: Array, targets: Array) -> float:
    """The threshold of the best F1: midway, in log-odds, between the last probability taken and the first one left out."""
    order = np.argsort(-probabilities, kind="stable")
    ranked, present = probabilities[order], targets[order].astype(bool)
    hits = np.cumsum(present)
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + present.sum())
    # Equal probabilities cannot be parted.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1
    last = int(np.argmax(f1))
    return _midpoint(float(ranked[last]), float(ranked[last + 1])) if last + 1 < len(ranked) else float(ranked[last])


def recall_threshold(probabilities: Array, targets: Array, *, recall: float) -> float:
    """The highest threshold that keeps at least `recall` of the present ones."""
    present = np.sort(probabilities[targets.astype(bool)])[::-1]
    return float(present[math.ceil(recall * len(present) - 1e-9) - 1])


def key_figures(predicted: Array, targets: Array) -> dict[str, float]:
    """Micro and macro F1 over keys, micro recall and precision, and the share of reports whose key set is exactly right.

    Macro F1 leaves out keys that are neither present nor predicted; nan where nothing is defined.
    """
    predicted, targets = predicted.astype(bool), targets.astype(bool)
    hits = (predicted & targets).sum(axis=0)
    sums = predicted.sum(axis=0) + targets.sum(axis=0)
    per_key = 2 * hits[sums > 0] / sums[sums > 0]
    return {
        "micro_f1": _ratio(2 * hits.sum(), sums.sum()),
        "macro_f1": float(per_key.mean()) if len(per_key) else math.nan,
        "precision": _ratio(hits.sum(), predicted.sum()),
        "recall": _ratio(hits.sum(), targets.sum()),
        "exact_set": float((predicted == targets).all(axis=1).mean()),
    }


def _rounded_down(threshold: float) -> float:
    """Five digits; never up, or the lowest report that a threshold was chosen to keep would fall below it."""
    return math.floor(threshold * 1e5) / 1e5


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _cross_entropy(logits: Array, targets: Array, temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    return float(np.mean(np.logaddexp(0, scaled) - scaled * targets))


def _log_odds(probability: float) -> float:
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(clipped / (1 - clipped))


def _midpoint(first: float, second: float) -> float:
    return 1 / (1 + math.exp(-(_log_odds(first) + _log_odds(second)) / 2))
