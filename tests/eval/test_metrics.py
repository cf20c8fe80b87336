"""The metrics against hand-computed tables, against scikit-learn, and against their definitions on generated sets."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from eval.gold import Labels, ScoredPair
from eval.metrics import (
    count,
    expand_composites,
    harmonic_mean,
    key_sets,
    mean,
    per_key_counts,
    relation_sets,
    set_scores,
    value_sets,
)

KEYS = ("nodule", "mass", "ggo")
key_set = st.frozensets(st.sampled_from(KEYS))
pairs_of_sets = st.lists(st.tuples(key_set, key_set), min_size=1, max_size=30)


def sets(*pairs: tuple[str, str | None]) -> list[tuple[frozenset[str], frozenset[str] | None]]:
    return [(frozenset(gold.split()), None if said is None else frozenset(said.split())) for gold, said in pairs]


def labels(**values: str) -> Labels:
    return Labels("r", {key: frozenset(text.split()) for key, text in values.items()})


def test_published_metrics_equal_a_table_computed_by_hand() -> None:
    scores = set_scores(sets(("a b", "a"), ("a", "a"), ("b", "a c"), ("", ""), ("", "c")))
    assert scores.n_reports == 5
    assert scores.accuracy == pytest.approx(2 / 5)
    assert (scores.n_with_prediction, scores.precision) == (4, pytest.approx((1 + 1 + 0 + 0) / 4))
    assert (scores.n_with_gold, scores.recall) == (3, pytest.approx((0.5 + 1 + 0) / 3))
    assert (scores.n_gold_empty, scores.specificity) == (2, pytest.approx(0.5))
    assert scores.f1 == pytest.approx(0.5)


def test_a_failed_row_is_wrong_everywhere_and_never_a_correct_empty_report() -> None:
    scores = set_scores(sets(("", None), ("a", None)))
    assert (scores.accuracy, scores.recall, scores.specificity) == (0, 0, 0)
    assert math.isnan(scores.precision)
    assert count(sets(("a", None))).n_gold == 1


def test_undefined_figures_are_nan_and_not_zero() -> None:
    nothing = set_scores([])
    assert all(math.isnan(x) for x in (nothing.accuracy, nothing.precision, nothing.recall, nothing.f1, nothing.specificity))
    assert math.isnan(count(sets(("", ""))).f1)
    assert math.isnan(mean([]))
    assert harmonic_mean(0, 0) == 0


@given(pairs_of_sets)
def test_micro_and_label_macro_f1_equal_scikit_learn(pairs: list[tuple[frozenset[str], frozenset[str]]]) -> None:
    binarizer = MultiLabelBinarizer(classes=list(KEYS))
    gold = binarizer.fit_transform([gold for gold, _ in pairs])
    said = binarizer.transform([said for _, said in pairs])
    micro = count(pairs).f1
    assert (0.0 if math.isnan(micro) else micro) == pytest.approx(f1_score(gold, said, average="micro", zero_division=0))
    per_key = [0.0 if math.isnan(c.f1) else c.f1 for c in per_key_counts(pairs, KEYS).values()]
    assert per_key == pytest.approx(list(f1_score(gold, said, average=None, zero_division=0)))


@given(pairs_of_sets)
def test_a_system_that_says_gold_is_perfect_wherever_defined(pairs: list[tuple[frozenset[str], frozenset[str]]]) -> None:
    scores = set_scores([(gold, gold) for gold, _ in pairs])
    for figure in (scores.accuracy, scores.precision, scores.recall, scores.specificity, scores.f1):
        assert math.isnan(figure) or figure == 1


def test_pairs_run_over_reports_whose_gold_has_the_lesion_and_the_second_reading_over_all() -> None:
    pairs = [
        ScoredPair(labels(nodule="rul lul"), labels(nodule="rul")),
        ScoredPair(labels(), labels(nodule="rll")),
        ScoredPair(labels(nodule=""), labels(nodule="")),
    ]
    published = set_scores(value_sets(pairs, "nodule"))
    assert (published.n_reports, published.accuracy, published.precision, published.recall) == (2, 0.5, 1, 0.5)
    second = count(relation_sets(pairs, ["nodule"]))
    assert (second.n_hit, second.n_predicted, second.n_gold) == (1, 2, 2)
    assert key_sets(pairs)[1] == (frozenset(), frozenset({"nodule"}))


def test_composite_values_count_as_their_parts_when_expanded() -> None:
    expand = expand_composites({"bll": ("rll", "lll")})
    pairs = [ScoredPair(labels(ggo="bll"), labels(ggo="rll lll"))]
    assert set_scores(value_sets(pairs, "ggo")).accuracy == 0
    assert set_scores(value_sets(pairs, "ggo", expand)).accuracy == 1
