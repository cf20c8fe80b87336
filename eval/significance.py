"""Is a difference real: tests and intervals over reports. scipy, statsmodels and scikit-learn compute them; undefined is nan.

Reports of one patient are not independent, so resamples draw patients, not reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics import NAN, Array

N_RESAMPLES = 1000
SEED = 20251
LEVEL = 0.95
EXACT_BELOW = 25  # discordant reports under which McNemar's test is the exact binomial one
SMALL_EXPECTED = 5.0


@dataclass(frozen=True, slots=True)
class Interval:
    """Two-sided, at LEVEL; nan ends where it is undefined. `n_undefined` resamples had no value and were left out."""

    low: float
    high: float
    n_undefined: int = 0

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside; False for an undefined interval."""
        return value < self.low or value > self.high


@dataclass(frozen=True, slots=True)
class McNemar:
    """Two systems on the same reports. `p_value` is two-sided; `exact` says which form of the test gave it."""

    n_both_right: int
    n_only_first: int
    n_only_second: int
    n_neither: int
    p_value: float
    exact: bool


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """Right and wrong in two groups of reports, with Yates' correction. nan where a row or column of the table is empty.

    `small` warns that an expected count is below 5, where the test is rough; `fisher_p_value` is exact.
    """

    n_right: tuple[int, int]
    n_reports: tuple[int, int]
    statistic: float
    p_value: float
    fisher_p_value: float
    small: bool


@dataclass(frozen=True, slots=True)
class Kappa:
    """Agreement of two raters on yes/no decisions. nan where chance agreement is 1 (both always say the same)."""

    n_decisions: int
    n_agreed: int
    kappa: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class TimeSaved:
    """Review times of the same reports without and with help, in seconds; `percent_saved` is below 0 when time is lost."""

    n_reports: int
    mean_without_s: float
    mean_with_s: float
    percent_saved: float
    t_statistic: float
    p_value: float
    difference_s: Interval


UNDEFINED = Interval(NAN, NAN)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's test on report-level correctness: exact for fewer than 25 discordant reports, else chi-square with correction."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    table = _cross(first, second)
    both, only_first, only_second, neither = table
    exact = only_first + only_second < EXACT_BELOW
    p_value = 1.0
    if only_first + only_second:
        p_value = float(test([[both, only_first], [only_second, neither]], exact=exact, correction=True).pvalue)
    return McNemar(both, only_first, only_second, neither, min(p_value, 1.0) if first else NAN, exact)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over the defined values; nan stays nan and does not count."""
    from statsmodels.stats.multitest import multipletests

    places = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    corrected = [NAN] * len(p_values)
    if places:
        for place, p in zip(places, multipletests([p_values[i] for i in places], method="holm")[1], strict=True):
            corrected[place] = float(p)
    return corrected


def resample_weights(patients: Sequence[str], *, n_resamples: int = N_RESAMPLES, seed: int = SEED) -> Array:
    """How often each report counts in each resample, (n_resamples, n_reports): patients are drawn with replacement, seeded."""
    names = {name: index for index, name in enumerate(dict.fromkeys(patients))}
    if not names:
        return np.zeros((n_resamples, 0))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    return drawn[:, [names[patient] for patient in patients]].astype(np.float64)


def percentile_interval(resampled: Array) -> Interval:
    """The middle 95 % of the resampled values. Undefined without at least two defined values."""
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < 2:
        return Interval(NAN, NAN, len(resampled) - len(defined))
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), len(resampled) - len(defined))


def bootstrap_mean(values: Sequence[float], weights: Array) -> Interval:
    """Interval of the mean of one value a report, such as the difference of two systems' F1 of it."""
    from eval.metrics import ratio

    return percentile_interval(ratio(weights @ np.asarray(values, dtype=np.float64), weights.sum(axis=1)))


def chi_square(right: Sequence[bool], in_group: Sequence[bool]) -> ChiSquare:
    """Correctness of reports inside the group against those outside it."""
    from scipy.stats import chi2_contingency, fisher_exact

    right_in, right_out, wrong_in, wrong_out = _cross(right, in_group)
    table = np.array([[right_in, wrong_in], [right_out, wrong_out]])
    counts = ((right_in, right_out), (right_in + wrong_in, right_out + wrong_out))
    if not table.sum(axis=0).all() or not table.sum(axis=1).all():
        return ChiSquare(*counts, NAN, NAN, NAN, small=True)
    found = chi2_contingency(table, correction=True)
    small = bool((found.expected_freq < SMALL_EXPECTED).any())
    return ChiSquare(*counts, float(found.statistic), float(found.pvalue), float(fisher_exact(table).pvalue), small=small)


def wilson(n_right: int, n: int) -> Interval:
    """Wilson's score interval of a proportion; undefined for n = 0."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return UNDEFINED
    low, high = proportion_confint(n_right, n, alpha=1 - LEVEL, method="wilson")
    return Interval(float(low), float(high))


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> Kappa:
    """Cohen's kappa of two raters' yes/no decisions on the same items, with its asymptotic interval."""
    from statsmodels.stats.inter_rater import cohens_kappa

    both, only_first, only_second, neither = _cross(first, second)
    n, n_agreed = len(first), both + neither
    if n == 0 or both == n or neither == n:
        return Kappa(n, n_agreed, NAN, UNDEFINED)
    with np.errstate(invalid="ignore", divide="ignore"):  # perfect agreement has no spread: its interval ends may be nan
        found = cohens_kappa([[both, only_first], [only_second, neither]])
        spread = Interval(float(found.kappa_low), float(found.kappa_upp))
        return Kappa(n, n_agreed, float(found.kappa), spread)


def time_saved(without_s: Sequence[float], with_s: Sequence[float]) -> TimeSaved:
    """Paired t-test of review times of the same reports, and the percentage of the total time that is saved.

    Raises:
        ValueError: the two lists differ in length, or hold a time that is not a positive number.
    """
    from scipy.stats import ttest_rel

    if len(without_s) != len(with_s):
        raise ValueError(f"{len(without_s)} times without and {len(with_s)} with help; one of each a report is expected")
    if not all(math.isfinite(s) and s > 0 for s in (*without_s, *with_s)):
        raise ValueError("a review time is no positive number of seconds")
    n = len(without_s)
    if n == 0:
        return TimeSaved(0, NAN, NAN, NAN, NAN, NAN, UNDEFINED)
    mean_without, mean_with = float(np.mean(without_s)), float(np.mean(with_s))
    percent = 100 * (1 - mean_with / mean_without)
    differences = np.asarray(without_s, dtype=np.float64) - np.asarray(with_s, dtype=np.float64)
    if n < 2 or np.ptp(differences) == 0:  # no spread: the test has no denominator
        return TimeSaved(n, mean_without, mean_with, percent, NAN, NAN, UNDEFINED)
    found = ttest_rel(without_s, with_s)
    spread = found.confidence_interval(LEVEL)
    interval = Interval(float(spread.low), float(spread.high))
    return TimeSaved(n, mean_without, mean_with, percent, float(found.statistic), float(found.pvalue), interval)


def _cross(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, int, int]:
    """Both, only the first, only the second, neither."""
    pairs = list(zip(first, second, strict=True))
    return (
        sum(a and b for a, b in pairs),
        sum(a and not b for a, b in pairs),
        sum(b and not a for a, b in pairs),
        sum(not a and not b for a, b in pairs),
    )
