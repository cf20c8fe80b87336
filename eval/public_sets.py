"""What the public sets share: what a data set is in a task's terms, the mapping file, and how their CSV files are read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from configs.schema import Task, load_task
from configs.yaml_lines import ConfigError, YamlFile, did_you_mean
from eval.gold import GoldError, GoldReport
from eval.score import Scope, scope_of
from eval.verdict import percent

MAPPING_FILE = Path(__file__).parent / "benchmarks.yaml"
NAMES = ("ctrate", "openi", "negex")
ALL = "all"
MAX_CELL_CHARS = 1_000_000

RowOf = tuple[str, Mapping[str, str]]
"""A row's `file: row n` and its cells by column name."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A data set in the terms of a task.

    Attributes:
        scope: The keys that the set labels, and the subjects that it gives places for.
        subsets: Name to positions in `gold`; ALL is every report.
        notes: Whole sentences: what was left out, and what the comparison cannot show.
    """

    name: str
    title: str
    task: Task
    scope: Scope
    gold: tuple[GoldReport, ...]
    subsets: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = field(default=())


class Strict(BaseModel):
    """Fields that are not known are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _CtRateColumns(Strict):
    report_id: str
    text: str


class CtRateMapping(Strict):
    """`keys`: label column to entity key. `not_mapped`: label columns that no key stands for."""

    title: str
    source: str
    task: str
    columns: _CtRateColumns
    keys: dict[str, str] = Field(min_length=1)
    not_mapped: list[str]
    limits: list[str]


class _OpenIColumns(Strict):
    report_id: str
    codes: str
    texts: list[str] = Field(min_length=1)


class CodeMapping(Strict):
    """One entry of `codes`: what fits is in benchmarks.yaml."""

    heading: str
    key: str
    with_: list[str] = Field(default_factory=list, alias="with")
    without: list[str] = Field(default_factory=list)


class OpenIMapping(Strict):
    """Codes such as `Pulmonary Atelectasis/base/left` to keys and values; the fields are explained in benchmarks.yaml."""

    title: str
    source: str
    task: str
    columns: _OpenIColumns
    normal: list[str]
    unlabelled: list[str]
    codes: list[CodeMapping] = Field(min_length=1)
    sides: dict[str, list[str]]
    places: dict[str, dict[str, str]]
    other_places: list[str]
    unclear: list[str]
    limits: list[str]


class _NegExColumns(Strict):
    condition: str
    sentence: str
    negation: str
    temporality: str
    experiencer: str


class NegExMapping(Strict):
    """The words of the negation file; `tasks` are those whose keys its conditions are looked up in."""

    title: str
    source: str
    tasks: list[str] = Field(min_length=1)
    columns: _NegExColumns
    negated: str
    affirmed: str
    left_out: list[str]
    present_now: list[str]
    patient: str
    limits: list[str]


class BenchmarkMappings(Strict):
    """The whole of benchmarks.yaml."""

    ctrate: CtRateMapping
    openi: OpenIMapping
    negex: NegExMapping


def read_mapping(path: Path = MAPPING_FILE) -> BenchmarkMappings:
    """The mapping, with every key and value known to its task. Raises ConfigError with file, line and the nearest name."""
    file = YamlFile(path)
    mapping = file.check(BenchmarkMappings)
    ct_rate = load_task(mapping.ctrate.task)
    for column, key in mapping.ctrate.keys.items():
        _require(file, ("ctrate", "keys", column), key, ct_rate.keys, "key")
    open_i = load_task(mapping.openi.task)
    for place, code in enumerate(mapping.openi.codes):
        _require(file, ("openi", "codes", place), code.key, open_i.keys, "key")
    for name, by_side in mapping.openi.places.items():
        for side, value in by_side.items():
            _require(file, ("openi", "places", name, side), value, open_i.values, "value")
            _require(file, ("openi", "places", name, side), side, (*mapping.openi.sides, "any"), "side")
    for side, values in mapping.openi.sides.items():
        for value in values:
            _require(file, ("openi", "sides", side), value, open_i.values, "value")
    return mapping


def _require(file: YamlFile, where: Sequence[str | int], name: str, known: Sequence[str] | Mapping[str, object], what: str) -> None:
    if name not in known:
        raise file.error(where, f"{what} '{name}' is not known{did_you_mean(name, known)}")


def check_name(name: str) -> None:
    """Raises ConfigError for a benchmark that is not known."""
    if name not in NAMES:
        raise ConfigError(f"benchmark '{name}' is not known{did_you_mean(name, NAMES)}")


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[RowOf]:
    """The rows of a CSV file by column name. Raises GoldError: unreadable, no row, a column is missing or stands twice."""
    csv.field_size_limit(MAX_CELL_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, None)
            if header is None:
                raise GoldError(f"{path}: is empty; a header and rows are expected")
            for column in columns:
                if column not in header:
                    raise GoldError(f"{path}: has no column '{column}'{did_you_mean(column, header)}")
                if header.count(column) > 1:
                    raise GoldError(f"{path}: column '{column}' stands twice in the header")
            for number, cells in enumerate(reader, 1):
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise GoldError(f"{path}: row {number}: has {len(cells)} cells; the header has {len(header)}")
                yield f"{path}: row {number}", dict(zip(header, cells, strict=True))
    except OSError as error:
        raise GoldError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GoldError(f"{path}: is not UTF-8 at byte {error.start} of what was read last") from None
    except csv.Error as error:
        raise GoldError(f"{path}: line {reader.line_num}: {error}") from None


def once(seen: dict[str, str], report_id: str, where: str) -> None:
    """Notes an id. Raises GoldError when it is empty or was there before."""
    if not report_id.strip():
        raise GoldError(f"{where}: has no report id")
    if report_id in seen:
        raise GoldError(f"{where}: report id '{report_id}' stands twice; first in {seen[report_id]}")
    seen[report_id] = where


def benchmark_scope(task: Task, keys: Sequence[str], *, has_places: bool) -> Scope:
    """The keys, and as subjects those of them that have a choice of values when the set states places."""
    return scope_of(task, keys=keys, subjects=None if has_places else ())


def share_text(part: int, whole: int) -> str:
    """`12 of 800 (1.5 %)`."""
    return f"{part} of {whole} ({percent(part / whole if whole else math.nan)} %)"
