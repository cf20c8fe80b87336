"""`--where`: which rows of the input are tagged, by their columns. A condition is compared, never executed.

    COLUMN = VALUE    COLUMN != VALUE    COLUMN < VALUE    <=  >  >=    COLUMN in A, B, C    COLUMN is empty    COLUMN is not empty

`=`, `!=` and `in` compare the spelling; only two plain numbers (no sign but a minus, no leading zero, no exponent) by their value.
`<`, `<=`, `>` and `>=` compare two dates of one precision as dates, two numbers as numbers, and with a value that is neither as
text; a cell that cannot be compared with a date or a number is refused, never passed over. An empty or missing cell fits `is empty`
alone. Column and value may stand in quotes: `"Study Date" >= 2020-01-01`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

_WORD = r'"[^"]*"|\'[^\']*\''
_CONDITION = re.compile(
    rf"\s*(?P<column>{_WORD}|[^\s=!<>\"']+)\s*"
    r"(?:(?P<sign><=|>=|!=|=|<|>)\s*(?P<value>.*?)|(?P<list>\sin)\s(?P<values>.+?)|\sis\s+(?P<empty>(?:not\s+)?empty))\s*",
    re.DOTALL,
)
_LISTED = re.compile(rf"\s*({_WORD}|[^,\"']+?)\s*(?:,|$)")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_DATE = re.compile(
    r"(?P<year>[0-9]{4})(?:(?P<hyphen>-?)(?P<month>[0-9]{2})(?:(?P=hyphen)(?P<day>[0-9]{2})"
    r"(?:[T ]?(?P<hour>[0-9]{2}):?(?P<minute>[0-9]{2})(?::?(?P<second>[0-9]{2})(?P<fraction>\.[0-9]+)?)?"
    r"(?P<zone>Z|[+-][0-9]{2}:?[0-9]{2})?)?)?)?"
)
_YEARS = range(1800, 2200)  # four digits of another size are a number and no year
_SPELLINGS = {1: "YYYY", 2: "YYYY-MM or YYYYMM", 3: "YYYY-MM-DD or YYYYMMDD", 6: "YYYY-MM-DDTHH:MM:SS"}  # by how many parts it has
_N_DAY_PARTS, _N_TIME_PARTS = 3, 6
_SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class RowFilterError(Exception):
    """A condition that cannot be read, or not be compared with a cell: the condition or the column, what is expected."""


class _Date(NamedTuple):
    """Year; month; day; hour, minute and second with its fraction: as many as are spelled. `zone` as written, "" for none."""

    parts: tuple[Decimal, ...]
    zone: str = ""

    @property
    def n_parts(self) -> int:
        return len(self.parts)

    def day(self) -> _Date:
        return _Date(self.parts[:_N_DAY_PARTS])


@dataclass(frozen=True, slots=True)
class Condition:
    """One `--where`. `sign` is one of `=`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `is empty`, `is not empty`."""

    column: str
    sign: str
    values: tuple[str, ...]

    def fits(self, cell: object) -> bool:
        """Whether a row with this cell is tagged.

        Raises:
            RowFilterError: the cell is a list or an object, or cannot be compared with the value; the cell is not quoted.
        """
        found = cell_text(cell, self.column)
        if self.sign.startswith("is "):
            return (found is None) == (self.sign == "is empty")
        if found is None:
            return False
        if isinstance(cell, float) and math.isfinite(cell):
            found = f"{cell:.0f}" if cell.is_integer() else format(Decimal(found), "f")  # no exponent
        if self.sign in ("=", "!=", "in"):
            return any(_equal(found, value) for value in self.values) != (self.sign == "!=")
        return self._in_order(found, self.values[0])

    def _in_order(self, found: str, value: str) -> bool:
        compare = _SIGNS[self.sign]
        found_date, value_date = _date(found), _date(value)
        if found_date is not None and value_date is not None:
            if found_date.n_parts == _N_TIME_PARTS and value_date.n_parts == _N_DAY_PARTS:
                found_date = found_date.day()
            if (found_date.n_parts, found_date.zone) == (value_date.n_parts, value_date.zone):
                return compare(found_date.parts, value_date.parts)
            raise self._other_precision(found_date, value)
        found_number, value_number = _number(found), _number(value)
        if found_number is not None and value_number is not None:
            return compare(found_number, value_number)
        if value_number is not None or value_date is not None:
            kind = "number" if value_number is not None else "date"
            raise RowFilterError(
                f"column '{self.column}' holds no {kind}, and '{self.column} {self.sign} {value}' compares {kind}s; "
                "leave such rows out with another --where before this one"
            )
        return compare(found, value)

    def _other_precision(self, found: _Date, value: str) -> RowFilterError:
        zone = " with its time zone" if found.zone else ""
        number = f", or {value}.0 to compare numbers" if value.isdecimal() else ""
        return RowFilterError(
            f"column '{self.column}' holds a date spelled {_SPELLINGS[found.n_parts]}{zone}, and "
            f"'{self.column} {self.sign} {value}' has another precision; spell its value in the same way{number}"
        )


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Conditions that must all hold, looked at in their order up to the first that does not. Without any, every row fits."""

    conditions: tuple[Condition, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are looked at, each once."""
        return tuple(dict.fromkeys(condition.column for condition in self.conditions))

    def fits(self, cells: Sequence[object]) -> bool:
        """Whether the row is tagged. `cells` are those of `columns`, in that order. Raises RowFilterError as `Condition.fits`."""
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


def _equal(found: str, value: str) -> bool:
    if _PLAIN_NUMBER.fullmatch(found) and _PLAIN_NUMBER.fullmatch(value):
        return Decimal(found) == Decimal(value)
    return found == value


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _date(text: str) -> _Date | None:
    """A year, a month, a day or a time of a day; None for what is no date of the calendar."""
    match = _DATE.fullmatch(text)
    if match is None or int(match["year"]) not in _YEARS:
        return None
    try:
        date(int(match["year"]), int(match["month"] or 1), int(match["day"] or 1))
    except ValueError:
        return None
    parts = [match["year"], match["month"], match["day"]]
    if match["hour"] is not None:
        if match["hour"] > "23" or match["minute"] > "59" or (match["second"] or "") > "60":
            return None
        parts += [match["hour"], match["minute"], (match["second"] or "0") + (match["fraction"] or "")]
    return _Date(tuple(Decimal(part) for part in parts if part is not None), match["zone"] or "")


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
