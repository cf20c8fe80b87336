"""Tests and intervals against values computed by hand and against a second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from eval.significance import (
    bootstrap_mean,
    chi_square,
    cohen_kappa,
    holm,
    mcnemar,
    percentile_interval,
    resample_weights,
    time_saved,
    wilson,
)

decisions = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def crossed(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@given(decisions)
def test_mcnemar_below_25_discordant_reports_is_the_binomial_test(rows: list[tuple[bool, bool]]) -> None:
    found = mcnemar([a for a, _ in rows], [b for _, b in rows])
    n = found.n_only_first + found.n_only_second
    if found.exact:
        expected = stats.binomtest(found.n_only_first, n, 0.5).pvalue if n else 1.0
        assert found.p_value == pytest.approx(min(expected, 1.0))
    assert found.n_both_right + n + found.n_neither == len(rows)
    assert found.exact == (n < 25)


def test_mcnemar_of_many_is_the_corrected_chi_square() -> None:
    found = mcnemar(*crossed(50, 30, 10, 10))
    statistic = (abs(30 - 10) - 1) ** 2 / 40
    assert not found.exact
    assert found.p_value == pytest.approx(stats.chi2.sf(statistic, 1))


def test_mcnemar_of_equal_systems_is_one_and_of_no_report_undefined() -> None:
    assert mcnemar(*crossed(3, 0, 0, 2)).p_value == 1
    assert math.isnan(mcnemar([], []).p_value)


def test_holm_equals_the_hand_computed_steps_and_passes_over_undefined_values() -> None:
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_makes_a_p_value_smaller_nor_larger_than_bonferroni(p_values: list[float]) -> None:
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert p - 1e-12 <= corrected <= min(1, p * len(p_values)) + 1e-12


def test_resamples_draw_patients_and_not_reports_and_are_seeded() -> None:
    patients = ["a", "a", "b", "c", "c", "c"]
    weights = resample_weights(patients, n_resamples=200, seed=7)
    assert weights.shape == (200, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()  # three patients drawn each time
    assert (weights == resample_weights(patients, n_resamples=200, seed=7)).all()
    assert (weights != resample_weights(patients, n_resamples=200, seed=8)).any()


def test_clustered_patients_make_the_interval_wider() -> None:
    values = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0] * 5
    alone = bootstrap_mean(values, resample_weights([str(i) for i in range(40)]))
    together = bootstrap_mean(values, resample_weights([str(i // 4) for i in range(40)]))
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_the_bootstrap_interval_of_a_mean_is_near_the_one_of_scipy() -> None:
    values = np.random.default_rng(3).normal(0.2, 1.0, 80)
    ours = bootstrap_mean(values.tolist(), resample_weights([str(i) for i in range(80)], n_resamples=4000))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=5).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)


def test_undefined_resamples_are_left_out_and_counted() -> None:
    interval = percentile_interval(np.array([0.1, math.nan, 0.3]))
    assert interval.n_undefined == 1
    assert 0.1 <= interval.low <= interval.high <= 0.3
    assert math.isnan(percentile_interval(np.array([math.nan, 0.3])).low)


@given(st.integers(0, 40), st.integers(0, 40))
def test_wilson_equals_scipy(right: int, wrong: int) -> None:
    interval = wilson(right, right + wrong)
    if right + wrong == 0:
        assert math.isnan(interval.low)
        return
    expected = stats.binomtest(right, right + wrong).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_chi_square_equals_the_formula_with_yates_correction() -> None:
    right, grouped = crossed(10, 30, 35, 5)  # in the group 10 of 45 right, outside 30 of 35
    found = chi_square(right, grouped)
    a, b, c, d = 10, 35, 30, 5
    expected = 80 * (abs(a * d - b * c) - 80 / 2) ** 2 / ((a + b) * (c + d) * (a + c) * (b + d))
    assert found.n_right == (10, 30)
    assert found.n_reports == (45, 35)
    assert found.statistic == pytest.approx(expected)
    assert not found.small


def test_chi_square_without_one_of_the_groups_is_undefined() -> None:
    found = chi_square([True, False], [True, True])
    assert math.isnan(found.p_value)
    assert found.n_reports == (2, 0)


@given(decisions)
def test_kappa_equals_scikit_learn_wherever_it_is_defined(rows: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in rows], [b for _, b in rows]
    found = cohen_kappa(first, second)
    if len({*first, *second}) == 1:
        assert math.isnan(found.kappa)
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert found.n_agreed == sum(a == b for a, b in rows)


def test_time_saved_equals_the_formula_of_the_paired_t_test() -> None:
    found = time_saved([100.0, 120.0, 90.0, 150.0], [60.0, 50.0, 55.0, 61.0])
    differences = np.array([40.0, 70.0, 35.0, 89.0])
    statistic = differences.mean() / (differences.std(ddof=1) / 2)
    assert found.t_statistic == pytest.approx(statistic)
    assert found.p_value == pytest.approx(2 * stats.t.sf(statistic, 3))
    assert found.percent_saved == pytest.approx(100 * (1 - 226 / 460))
    assert found.difference_s.low < differences.mean() < found.difference_s.high


def test_time_saved_of_one_report_has_no_test_and_of_odd_times_an_error() -> None:
    assert math.isnan(time_saved([10.0], [5.0]).p_value)
    assert time_saved([10.0], [5.0]).percent_saved == 50
    with pytest.raises(ValueError, match="1 times without and 2 with help"):
        time_saved([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no positive number"):
        time_saved([0.0], [1.0])
