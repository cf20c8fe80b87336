"""Reliability and triage against tables computed by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from configs.contracts import EntityFinding, Relation, TaggedReport
from configs.schema import load_task
from eval.calibration import Decision, entity_decisions, relation_decisions, reliability, report_decisions, triage
from eval.gold import Answer, Labels
from eval.score import scope_of

TASK = load_task("chest_ct")
SCOPE = scope_of(TASK)


def decision(probability: float, *, there: bool) -> Decision:
    present = probability >= 0.5
    return Decision(probability, there, max(probability, 1 - probability), wrong=present != there)


def test_the_calibration_error_equals_a_table_computed_by_hand() -> None:
    some = [decision(0.9, there=True), decision(0.95, there=False), decision(0.1, there=False), decision(1.0, there=True)]
    found = reliability(some)
    # bin 0.9–1: mean probability 0.95, share 2/3, n 3; bin 0.1–0.2: 0.1 against 0, n 1
    assert found.ece == pytest.approx((3 * abs(0.95 - 2 / 3) + 1 * 0.1) / 4)
    assert [b.n for b in found.bins] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert math.isnan(found.bins[5].share_there)


@given(st.lists(st.tuples(st.floats(0.001, 0.999), st.booleans()), min_size=2, max_size=50))
def test_bins_equal_those_of_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    if any(abs(p * 10 - round(p * 10)) < 1e-6 for p, _ in rows):
        return  # on a border the two put it on different sides
    found = reliability([decision(p, there=there) for p, there in rows])
    if len({there for _, there in rows}) == 2:
        share, probability = calibration_curve([there for _, there in rows], [p for p, _ in rows], n_bins=10)
        filled = [b for b in found.bins if b.n]
        assert [b.share_there for b in filled] == pytest.approx(list(share))
        assert [b.mean_probability for b in filled] == pytest.approx(list(probability))
    assert 0 <= found.ece <= 1


def test_triage_equals_a_table_computed_by_hand() -> None:
    """Ten decisions; the two least sure hold one of the two errors."""
    some = [Decision(0.5, False, 0.50 + i / 100, wrong=i in (1, 7)) for i in range(10)]
    found = triage(some)
    assert (found.n, found.n_wrong) == (10, 2)
    assert found.error_least_sure == pytest.approx(1 / 2)
    assert found.error_rest == pytest.approx(1 / 8)
    assert found.errors_found == pytest.approx(1 / 2)
    assert found.curve[0] == (0, 0)
    assert found.curve[-1] == (1, 1)


def test_ties_at_the_cut_share_their_errors_whatever_the_order() -> None:
    tied = [Decision(0.5, False, 0.5, wrong=i < 5) for i in range(10)]
    for some in (tied, tied[::-1]):
        found = triage(some)
        assert found.error_least_sure == pytest.approx(0.5)
        assert found.errors_found == pytest.approx(0.2)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_reviewed_and_rest_hold_all_errors(rows: list[tuple[float, bool]]) -> None:
    found = triage([Decision(c, False, c, wrong=wrong) for c, wrong in rows])
    n = len(rows)
    assert found.error_least_sure * 0.2 * n + found.error_rest * 0.8 * n == pytest.approx(found.n_wrong, abs=1e-9)
    shares = np.array(found.curve)
    assert (np.diff(shares[:, 0]) > 0).all()


def test_nothing_with_a_confidence_is_undefined() -> None:
    assert math.isnan(reliability([]).ece)
    assert math.isnan(triage([]).error_least_sure)
    assert math.isnan(triage([Decision(0.5, True, 0.5, wrong=False)]).errors_found)


def test_decisions_come_from_confidences_and_those_without_do_not_count() -> None:
    entities = (EntityFinding("nodule", True, 0.9), EntityFinding("mass", False, 0.3), EntityFinding("ggo", True, None))
    relations = (Relation("nodule", "rul", 0.7), Relation("nodule", "rll", 0.6), Relation("ggo", "rul", None))
    record = TaggedReport("r", "chest_ct", "ok", entities, relations, None, None)
    gold = [Labels("r", {"nodule": frozenset({"rul"}), "mass": frozenset()})]
    answers = [Answer(None, record)]
    found = entity_decisions(gold, answers, SCOPE)
    assert [(d.probability, d.there, round(d.certainty, 6), d.wrong) for d in found] == [
        (0.9, True, 0.9, False),
        (0.3, True, 0.7, True),
    ]
    assert [(d.probability, d.wrong) for d in relation_decisions(gold, answers, SCOPE)] == [(0.7, False), (0.6, True)]
    (report,) = report_decisions(gold, answers, SCOPE, [False])
    assert (report.certainty, report.wrong) == (0.6, True)
    assert report_decisions(gold, [Answer(gold[0])], SCOPE, [True]) == []
