"""`--where`: which rows of the input are tagged, by their columns. A condition is compared, never executed.

    COLUMN = VALUE    COLUMN != VALUE    COLUMN < VALUE    <=  >  >=    COLUMN in A, B, C    COLUMN is empty    COLUMN is not empty

Two numbers are compared as numbers, everything else as text, so ISO dates stand in their order. An empty or missing cell fits
`is empty` alone. Column and value may stand in quotes: `"Study Date" >= 2020-01-01`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

_WORD = r'"[^"]*"|\'[^\']*\''
_CONDITION = re.compile(
    rf"\s*(?P<column>{_WORD}|[^\s=!<>\"']+)\s*"
    r"(?:(?P<sign><=|>=|!=|=|<|>)\s*(?P<value>.*?)|(?P<list>\sin)\s(?P<values>.+?)|\sis\s+(?P<empty>(?:not\s+)?empty))\s*",
    re.DOTALL,
)
_LISTED = re.compile(rf"\s*({_WORD}|[^,\"']+?)\s*(?:,|$)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class RowFilterError(Exception):
    """A condition that cannot be read: the condition, what is expected."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One `--where`. `sign` is one of `=`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `is empty`, `is not empty`."""

    column: str
    sign: str
    values: tuple[str, ...]

    def fits(self, cell: object) -> bool:
        """Whether a row with this cell is tagged. Raises RowFilterError for a cell that is a list or an object."""
        found = cell_text(cell, self.column)
        if self.sign.startswith("is "):
            return (found is None) == (self.sign == "is empty")
        if found is None:
            return False
        if self.sign == "in":
            return any(_compared(operator.eq, found, value) for value in self.values)
        return _compared(_SIGNS[self.sign], found, self.values[0])


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Conditions that must all hold. Without any, every row fits."""

    conditions: tuple[Condition, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are looked at, each once."""
        return tuple(dict.fromkeys(condition.column for condition in self.conditions))

    def fits(self, cells: Sequence[object]) -> bool:
        """Whether the row is tagged. `cells` are those of `columns`, in that order."""
        if not self.conditions:
            return True
        row = dict(zip(self.columns, cells, strict=True))
        return all(condition.fits(row[condition.column]) for condition in self.conditions)


def row_filter(conditions: Sequence[str]) -> RowFilter:
    """Raises RowFilterError at the first condition that cannot be read."""
    return RowFilter(tuple(map(_condition, conditions)))


def cell_text(cell: object, column: str) -> str | None:
    """A cell as text; None when it is missing, blank or nan. Raises RowFilterError for a list, an object or bytes."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, date):
        return cell.isoformat()
    if isinstance(cell, (str, int, float)):
        return str(cell).strip() or None
    raise RowFilterError(f"column '{column}' holds a {type(cell).__name__}; a text, a number, a date or true/false is expected")


def _compared(compare: Callable[[Any, Any], bool], found: str, value: str) -> bool:
    if _NUMBER.fullmatch(found) and _NUMBER.fullmatch(value):
        return compare(float(found), float(value))
    return compare(found, value)


def _condition(given: str) -> Condition:
    match = _CONDITION.fullmatch(given)
    if match is None:
        raise RowFilterError(
            f"--where '{given}': is no condition; expected COLUMN and one of = != < <= > >= with a value, 'in A, B', 'is empty' or "
            "'is not empty'"
        )
    column = _unquoted(match["column"])
    if match["empty"]:
        return Condition(column, f"is {' '.join(match['empty'].split())}", ())
    if match["list"]:
        return Condition(column, "in", _listed(match["values"], given))
    value = _unquoted(match["value"])
    if not value:
        raise RowFilterError(f"--where '{given}': has no value; write '{column} is empty' for empty cells")
    return Condition(column, match["sign"], (value,))


def _listed(values: str, given: str) -> tuple[str, ...]:
    found, place = [], 0
    while place < len(values):
        match = _LISTED.match(values, place)
        if match is None:
            raise RowFilterError(f"--where '{given}': is no list of values; expected A, B, C")
        found.append(_unquoted(match[1]))
        place = match.end()
    return tuple(found)


def _unquoted(word: str) -> str:
    word = word.strip()
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" else word
