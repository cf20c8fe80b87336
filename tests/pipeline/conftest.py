"""Small stages that can be seen through, and input files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from configs.contracts import EntityFinding, EntityFlags, Reading, Relation, Report, Span, Unread
from configs.schema import Task, load_task

TASK_FILE = """
task: tiny
title: Two findings and two sides
entities:
  nodule: {label: nodule, keywords: {en: ['nodules?'], ko: [결절]}}
  mass: {label: mass, keywords: {en: [mass]}}
values:
  right_side: {label: right side, keywords: {en: [right], ko: [우측]}}
  left_side: {label: left side, keywords: {en: [left]}}
steps:
  - name: sides
    kind: relation
    subjects: [nodule, mass]
    values: [right_side, left_side]
    heading: Findings
    instruction: Say where.
    examples: [{report: nodule right, hints: [nodule], answer: {nodule: [right_side]}}]
"""


class WordMapper:
    """Present when its word stands in the text; "CANNOT" cannot be read, "BUG" raises. Remembers what it was given."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.seen: list[str] = []

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        self.seen.extend(report.text for report in reports)
        return [self._read(report.text) for report in reports]

    def _read(self, text: str) -> Reading | Unread:
        if "CANNOT" in text:
            return Unread("answer is cut after 12 tokens")
        if "BUG" in text:
            raise ValueError(f"quotes the report: {text}")
        entities = tuple(self._find(key, text) for key in self.task.keys)
        side = next((m for pattern in self.task.values["right_side"].patterns if (m := pattern.search(text))), None)
        relations = tuple(
            Relation(finding.key, "right_side", 0.98765, finding.spans[0], Span(*side.span()))
            for finding in entities
            if finding.present and side is not None
        )
        return Reading(entities, relations)

    def _find(self, key: str, text: str) -> EntityFinding:
        spans = tuple(Span(*m.span()) for pattern in self.task.entities[key].patterns for m in pattern.finditer(text))
        return EntityFinding(key, bool(spans), 0.123456, spans)


class MoodyMapper(WordMapper):
    """Reads nothing that holds "CANNOT" while it is `down`, everything afterwards."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.down = True
        self.token_counts: dict[str, int] = {}

    def _read(self, text: str) -> Reading | Unread:
        return super()._read(text if self.down else text.replace("CANNOT", "......"))


class WordFlagger:
    """Flags what the text mentions."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def flag(self, texts: Sequence[str]) -> list[EntityFlags]:
        flags = []
        for text in texts:
            if "NOFLAG" in text:
                raise ValueError(f"quotes the report: {text}")
            keys = tuple(key for key, entity in self.task.entities.items() if any(p.search(text) for p in entity.patterns))
            flags.append(EntityFlags({key: float(key in keys) for key in self.task.keys}, keys, keys))
        return flags


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TASK_FILE, encoding="utf-8")
    return path


@pytest.fixture
def task(task_file: Path) -> Task:
    return load_task(task_file)


@pytest.fixture
def mapper(task: Task) -> WordMapper:
    return WordMapper(task)


@pytest.fixture
def flagger(task: Task) -> WordFlagger:
    return WordFlagger(task)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Sequence[object], name: str = "reports.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def report_rows(n_reports: int) -> list[dict[str, object]]:
    texts = ("A nodule in the right lung.", "Nothing to see.", "우측 결절 있음.", "mass on the left", "CANNOT be read", "   ")
    return [
        {"report_id": f"r{n}", "text": f"{texts[n % len(texts)]}{'' if n % len(texts) == 5 else f' #{n}'}"}
        for n in range(n_reports)
    ]


@pytest.fixture
def sixty_one_reports(write_jsonl: Callable[..., Path]) -> Callable[[], Path]:
    """Replaces the file of many_reports by one with a report more."""
    return lambda: write_jsonl(report_rows(61))


@pytest.fixture
def many_reports(write_jsonl: Callable[..., Path]) -> Path:
    """60 reports: 10 of each kind; 10 cannot be read, 10 are blank."""
    return write_jsonl(report_rows(60))


@pytest.fixture
def radtag() -> Callable[..., Result]:
    """Runs the real command line in this process."""

    def invoke(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
        from pipeline.cli import app

        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)

    return invoke


@pytest.fixture
def word_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--system rules` runs the stages above instead of the rules."""
    from pipeline import run

    def build(filled: object, provenance: Mapping[str, str]) -> run.Pipeline:
        task = load_task(filled.task)  # type: ignore[attr-defined]
        return run.Pipeline(task, WordFlagger(task), WordMapper(task), provenance)

    monkeypatch.setattr(run, "build_pipeline", build)


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch, task_file: Path) -> MoodyMapper:
    """The stage 2 of `--system rules`; set `down` to False and it reads everything."""
    from pipeline import run

    task = load_task(task_file)
    mapper = MoodyMapper(task)
    monkeypatch.setattr(run, "build_pipeline", lambda filled, prov: run.Pipeline(task, WordFlagger(task), mapper, prov))
    return mapper


@pytest.fixture
def rows_of() -> Callable[[int], list[dict[str, object]]]:
    """So many report rows, six kinds in turn."""
    return report_rows


@pytest.fixture
def parts_of() -> Callable[[Path], dict[str, bytes]]:
    """Name and bytes of every file under `parts` of a run directory."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted((folder / "parts").iterdir())}


@pytest.fixture
def records_of() -> Callable[[Path], list[dict[str, object]]]:
    """The records of a run directory."""
    return lambda folder: [
        json.loads(line) for path in sorted((folder / "parts").glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]
