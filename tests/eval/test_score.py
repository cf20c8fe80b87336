"""Every figure against a table computed by hand, against a second implementation, and under resampling weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from configs.schema import load_task
from eval.gold import Labels, ScoredPair
from eval.metrics import report_f1
from eval.score import HEADLINES, denominators, headline, measures, scope_of, score

TASK = load_task("chest_ct")
SCOPE = scope_of(TASK)
KEYS = ("nodule", "mass", "ggo")
VALUES = ("rul", "rll", "lll", "bll")


def labels(given: str) -> Labels:
    """`nodule:rul+rll mass ggo:bll` as labels."""
    values = {}
    for item in given.split():
        key, _, some = item.partition(":")
        values[key] = frozenset(filter(None, some.split("+")))
    return Labels("r", values)


def pairs(*rows: tuple[str, str | None]) -> list[ScoredPair]:
    return [ScoredPair(labels(gold), None if said is None else labels(said)) for gold, said in rows]


label_sets = st.dictionaries(st.sampled_from(KEYS), st.frozensets(st.sampled_from(VALUES)), max_size=3).map(
    lambda v: Labels("r", v)
)
scored = st.builds(ScoredPair, label_sets, st.none() | label_sets)
reports = st.lists(scored, min_size=1, max_size=12)

BY_HAND = pairs(
    ("nodule:rul", "nodule:rul"),  # exact
    ("nodule:rul+rll mass", "nodule:rul"),  # one key and one value missed
    ("ggo:bll", "ggo:rll+lll"),  # right only as parts
    ("", ""),  # rightly empty
    ("", "mass:rul"),  # a subject that gold lacks
    ("mass:lll", None),  # failed
)


def test_all_figures_equal_a_table_computed_by_hand() -> None:
    table = score(TASK, BY_HAND)
    keys_precision, keys_recall = (1 + 1 + 1 + 0) / 4, (1 + 1 / 2 + 1 + 0) / 4
    expected = {
        "keys_accuracy": 3 / 6,
        "keys_precision": keys_precision,
        "keys_recall": keys_recall,
        "keys_f1": 2 * keys_precision * keys_recall / (keys_precision + keys_recall),
        "keys_specificity": 1 / 2,
        "keys_micro_f1": 2 * 3 / (4 + 5),  # 3 right, 4 said, 5 in gold
        "keys_macro_f1": (1 + 1 + 0) / 3,  # nodule, ggo, mass
        "pairs_exact": 2 / 6,
        # nodule: reports 1, 2; ggo: report 3; mass: reports 2 (no value in gold, none said: exact) and 6 (failed)
        "pairs_macro_accuracy": (1 / 2 + 0 + 1 / 2) / 3,
        "pairs_macro_f1": (2 * 1 * 0.75 / 1.75 + 0) / 2,  # mass: precision has no report, so its F1 is undefined
        "pairs_macro_f1_expanded": (2 * 1 * 0.75 / 1.75 + 1) / 2,
        "pairs_macro_accuracy_second": (1 / 2 + 0 + 1 / 3) / 3,
        "pairs_macro_f1_second": (2 * 1 * 0.75 / 1.75 + 0 + 0) / 3,  # mass: precision 0/1, recall 0/1
        "pairs_macro_f1_second_expanded": (2 * 1 * 0.75 / 1.75 + 1 + 0) / 3,
        "pairs_micro_f1": 2 * 2 / (5 + 5),  # said: rul, rul, rll, lll, rul; gold: rul, rul, rll, bll, lll
        "pairs_micro_f1_expanded": 2 * 4 / (5 + 6),
    }
    assert set(expected) == {item.name for item in HEADLINES}
    for name, value in expected.items():
        assert table.headline[name] == pytest.approx(value), name
    n = denominators(table)
    assert (n["keys_accuracy"], n["keys_precision"], n["keys_recall"], n["keys_specificity"]) == (6, 4, 4, 2)
    assert (n["keys_micro_f1"], n["keys_macro_f1"], n["pairs_micro_f1"], n["pairs_micro_f1_expanded"]) == (9, 3, 10, 11)
    assert (n["pairs_macro_accuracy"], n["pairs_macro_f1"], n["pairs_macro_f1_second"]) == (3, 2, 3)
    assert table.n_failed == 1
    assert (table.per_pair["nodule:rul"].n_hit, table.per_pair["ggo:bll"].n_gold, table.per_pair["mass:rul"].n_predicted) == (
        2,
        1,
        1,
    )


def test_a_subject_said_without_a_value_where_gold_lacks_it_counts_in_the_second_reading_only() -> None:
    table = score(TASK, pairs(("nodule:rul", "nodule:rul"), ("", "nodule")))
    assert table.pair_scores["nodule"].n_reports == 1
    assert table.pair_scores["nodule"].accuracy == 1
    assert table.pair_scores_second["nodule"].n_reports == 2
    assert table.pair_scores_second["nodule"].accuracy == 0.5


@given(reports)
def test_key_figures_equal_scikit_learn(rows: list[ScoredPair]) -> None:
    binarizer = MultiLabelBinarizer(classes=list(KEYS))
    gold = binarizer.fit_transform([row.gold.keys for row in rows])
    failed = [row.predicted is None for row in rows]
    said = binarizer.transform([row.predicted.keys if row.predicted is not None else [] for row in rows])
    table = score(TASK, rows)
    exact = [False if bad else bool((a == b).all()) for bad, a, b in zip(failed, gold, said, strict=True)]
    assert table.keys.accuracy == pytest.approx(sum(exact) / len(rows))
    if not any(failed):
        assert table.keys.accuracy == pytest.approx(accuracy_score(gold, said))
        mean_f1 = np.mean([report_f1(row.gold.keys, row.predicted.keys) for row in rows if row.predicted is not None])
        assert mean_f1 == pytest.approx(f1_score(gold, said, average="samples", zero_division=1))
    if not math.isnan(table.key_micro_f1):
        assert table.key_micro_f1 == pytest.approx(f1_score(gold, said, average="micro", zero_division=0))
        seen = [i for i in range(len(KEYS)) if gold[:, i].any() or said[:, i].any()]
        each = f1_score(gold, said, average=None, zero_division=0)
        assert table.key_macro_f1 == pytest.approx(float(np.mean(each[seen])))


@given(reports)
def test_published_pair_figures_equal_a_plain_loop(rows: list[ScoredPair]) -> None:
    table = score(TASK, rows)
    f1s, accuracies = [], []
    for subject in SCOPE.subjects:
        has = [row for row in rows if subject in row.gold.values]
        if not has:
            continue
        sets = [(row.gold.values[subject], (row.predicted.values.get(subject) if row.predicted else None) or set()) for row in has]
        accuracies.append(
            sum(
                row.predicted is not None and row.predicted.values.get(subject, frozenset()) == row.gold.values[subject]
                for row in has
            )
            / len(has)
        )
        precision = [len(gold & said) / len(said) for gold, said in sets if said]
        recall = [len(gold & said) / len(gold) for gold, said in sets if gold]
        if precision and recall:
            p, r = sum(precision) / len(precision), sum(recall) / len(recall)
            f1s.append(2 * p * r / (p + r) if p + r else 0.0)
    assert table.pair_macro_accuracy == pytest.approx(np.mean(accuracies) if accuracies else math.nan, nan_ok=True)
    assert table.pair_macro_f1 == pytest.approx(np.mean(f1s) if f1s else math.nan, nan_ok=True)


@settings(max_examples=40)
@given(st.lists(st.tuples(scored, st.integers(0, 3)), min_size=1, max_size=8))
def test_a_weight_counts_a_report_as_often_as_it_says(weighted: Sequence[tuple[ScoredPair, int]]) -> None:
    rows = [row for row, _ in weighted]
    weights = np.array([[float(times) for _, times in weighted]])
    repeated = [row for row, times in weighted for _ in range(times)]
    by_weight = headline(measures(TASK, SCOPE, rows), weights)
    by_repetition = headline(measures(TASK, SCOPE, repeated), np.ones((1, len(repeated))))
    for name, value in by_weight.items():
        assert value[0] == pytest.approx(by_repetition[name][0], nan_ok=True), name


@given(reports)
def test_every_figure_is_a_share_or_undefined_and_gold_itself_is_perfect(rows: list[ScoredPair]) -> None:
    for value in score(TASK, rows).headline.values():
        assert math.isnan(value) or 0 <= value <= 1
    for value in score(TASK, [ScoredPair(row.gold, row.gold) for row in rows]).headline.values():
        assert math.isnan(value) or value == pytest.approx(1)


def test_a_scope_leaves_other_keys_out_on_both_sides() -> None:
    rows = pairs(("nodule:rul fibrosis", "nodule:rul mass"))
    table = score(TASK, rows, scope=scope_of(TASK, keys=["nodule", "ggo"], subjects=[]))
    assert table.keys.accuracy == 1
    assert math.isnan(table.headline["pairs_exact"])
    assert math.isnan(table.pair_macro_f1)
    with pytest.raises(ValueError, match="key 'opacity' is not one of task 'chest_ct'"):
        scope_of(TASK, keys=["opacity"])


def test_figures_of_no_report_and_of_an_all_negative_key_are_undefined() -> None:
    assert all(math.isnan(value) for value in score(TASK, []).headline.values())
    table = score(TASK, pairs(("", ""), ("mass", "mass")))
    assert math.isnan(table.per_key["nodule"].recall)
    assert math.isnan(table.per_key["nodule"].f1)
    assert table.headline["keys_macro_f1"] == 1  # over the one key that gold or the system has
