from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.row_filter import Condition, RowFilterError, row_filter

CELLS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates())


def fits(condition: str, cell: object) -> bool:
    return row_filter([condition]).fits([cell])


@pytest.mark.parametrize(
    ("condition", "cell", "kept"),
    [
        ("modality = CT", "CT", True),
        ("modality=CT", " CT ", True),
        ("modality = CT", "ct", False),
        ("modality != CT", "MR", True),
        ("modality != CT", None, False),
        ("modality != CT", "", False),
        ("age >= 9", "10", True),
        ("age >= 9", 10, True),
        ("age < 9", "10", False),
        ("age = 10", "10.0", True),
        ("age > 9", "unknown", True),
        ("date >= 2020-01-01", "2019-12-31", False),
        ("date >= 2020-01-01", date(2020, 1, 1), True),
        ("site in A, B,'C, D'", "C, D", True),
        ("site in A, B", "C", False),
        ("n in 1, 2", 2.0, True),
        ("site is empty", float("nan"), True),
        ("site is empty", "  ", True),
        ("site is  not empty", 0, True),
        ('"Study Date" < 2020', "2019", True),
        ("final = true", True, True),
        ("검사 = 흉부", "흉부", True),
        ("code = A=B", "A=B", True),
        ("site = 'x y'", "x y", True),
    ],
)
def test_conditions(condition: str, cell: object, kept: bool) -> None:
    assert fits(condition, cell) is kept


@pytest.mark.parametrize(
    "condition", ["", "CT", "modality CT", "n in A,,B", "modality =", "= CT", "a b = c", "site in", "site in A,,B", "site is CT"]
)
def test_what_is_no_condition_is_refused_with_what_is_expected(condition: str) -> None:
    with pytest.raises(RowFilterError, match="--where"):
        row_filter([condition])


@pytest.mark.parametrize("cell", [["CT"], {"a": 1}, b"CT"])
def test_a_cell_that_is_no_plain_value_is_refused_without_its_content(cell: object) -> None:
    with pytest.raises(RowFilterError, match=r"^column 'modality' holds a (list|dict|bytes); "):
        fits("modality = CT", cell)


def test_code_is_compared_and_never_run() -> None:
    assert row_filter(["x = __import__('os')"]).conditions == (Condition("x", "=", ("__import__('os')",)),)


@given(CELLS, st.text(st.characters(exclude_characters="'\"", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1))
def test_a_cell_fits_exactly_one_of_empty_smaller_equal_larger(cell: object, value: str) -> None:
    signs = ["c is empty", f"c < '{value}'", f"c = '{value}'", f"c > '{value}'"]
    assert sum(fits(sign, cell) for sign in signs) == 1


def test_all_conditions_must_hold() -> None:
    both = row_filter(["a = 1", "b = 2", "a < 5"])
    assert both.columns == ("a", "b")
    assert [both.fits(cells) for cells in ([1, 2], [1, 3], [None, 2])] == [True, False, False]
    assert row_filter([]).fits([])
