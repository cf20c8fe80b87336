"""Kinds of errors and confusions of diagnoses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from configs.schema import load_task
from eval.errors import NONE, ReportError, confusion, report_errors
from eval.gold import Labels, ScoredPair
from eval.score import scope_of

TASK = load_task("chest_ct")
NAMES = ("demyelinating", "infection_inflammation", "hemorrhage_vascular", "stroke_infarction")


def labels(**values: str) -> Labels:
    return Labels("r", {key: frozenset(text.split()) for key, text in values.items()})


@pytest.mark.parametrize(
    ("gold", "said", "expected"),
    [
        (labels(nodule="rul"), labels(nodule="rul"), []),
        (labels(nodule="rul", ggo=""), labels(nodule="rul"), [("omission", None, ("ggo",), ())]),
        (labels(), labels(ggo="rul"), [("addition", None, (), ("ggo",))]),
        (labels(nodule=""), labels(mass=""), [("confusion", None, ("nodule",), ("mass",))]),
        (labels(nodule="rul"), None, [("invalid", None, ("nodule",), ())]),
        (labels(nodule="rul rll"), labels(nodule="rul"), [("omission", "nodule", ("rll",), ())]),
        (labels(nodule="rul"), labels(nodule="lll"), [("confusion", "nodule", ("rul",), ("lll",))]),
        (labels(nodule="bll"), labels(nodule="rll lll"), [("inexact", "nodule", ("bll",), ("rll", "lll"))]),
        (labels(nodule="right_lung"), labels(nodule="rul"), [("inexact", "nodule", ("right_lung",), ("rul",))]),
        (labels(nodule="rul rml"), labels(nodule="lll rll"), [("confusion", "nodule", ("rul", "rml"), ("rll", "lll"))]),
    ],
)
def test_an_error_has_one_kind(gold: Labels, said: Labels | None, expected: list[tuple[object, ...]]) -> None:
    found = report_errors(TASK, scope_of(TASK), [ScoredPair(gold, said)])
    assert found == [ReportError("r", *row) for row in expected]  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.sampled_from((*NAMES, NONE)), st.sampled_from((*NAMES, NONE))), max_size=40))
def test_a_confusion_of_single_diagnoses_equals_scikit_learn(rows: list[tuple[str, str]]) -> None:
    found = confusion([(frozenset({a} - {NONE}), frozenset({b} - {NONE})) for a, b in rows], NAMES)
    columns = [*NAMES, NONE]
    ours = [[found.counts[row][column] for column in columns] for row in columns]
    assert not rows or ours == confusion_matrix([a for a, _ in rows], [b for _, b in rows], labels=columns).tolist()


def test_several_diagnoses_count_each_where_they_belong() -> None:
    a, b, c, d = NAMES
    found = confusion([(frozenset({a, b}), frozenset({a, c})), (frozenset({d}), None), (frozenset({a}), frozenset({a, d}))], NAMES)
    assert found.counts[a] == {a: 2, b: 0, c: 0, d: 0, NONE: 0}
    assert found.counts[b][c] == 1
    assert found.counts[d][NONE] == 1
    assert found.counts[NONE][d] == 1
    assert found.counts[NONE][NONE] == 0
