"""The systems that are compared: tagged here with the pipeline's own code and kept, or records that exist already."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from configs.schema import Task
from configs.yaml_lines import did_you_mean
from eval.gold import Answer, GoldError, GoldReport, answers_of, read_answers, texts_sha256
from pipeline.settings import (
    SYSTEMS,
    SYSTEMS_THAT_WEIGH,
    SYSTEMS_WITH_ENCODER,
    SYSTEMS_WITH_MODEL,
    Settings,
    SettingsError,
    fingerprint,
    provenance_parts,
    settings,
    with_files,
)
from pipeline.sinks import whole_file
from pipeline.tagging import Progress, TagRequest, tag_archive

SHORT_HEX = 12


@dataclass(frozen=True, slots=True)
class ModelReading:
    """How the systems with a model have it read: fields of pipeline.settings.Settings, with its defaults."""

    adapter: Path | None = None
    no_adapter: bool = False
    read: str | None = None
    server: str | None = None
    server_model: str | None = None
    server_plain: bool = False
    server_timeout_s: float = 120.0
    http_concurrency: int = 1

    def given(self) -> dict[str, Any]:
        """The fields that are not as they are without being given."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}


@dataclass(frozen=True, slots=True)
class TaggingSystem:
    """A system that tags the gold's texts."""

    name: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class RecordedSystem:
    """A system whose answers exist: a run directory, records (.jsonl, .parquet), or labels in the format of the gold (.jsonl)."""

    name: str
    path: Path


System = TaggingSystem | RecordedSystem


@dataclass(frozen=True, slots=True)
class SystemAnswers:
    """A system's answers in gold order.

    Attributes:
        fingerprint: None where the answers name none, or several.
        states_relations: False for the encoder alone and for answers without any relation: their pairs are undefined, not wrong.
        n_tagged: Reports that were tagged now; 0 when all answers were there.
    """

    name: str
    answers: tuple[Answer, ...]
    states_relations: bool
    fingerprint: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    n_tagged: int = 0


class _NoProgress:
    def warn(self, warning: str) -> None:
        """Somebody should hear it."""
        warnings.warn(warning, stacklevel=2)

    def begin(self, *, n_reports: int, n_done: int) -> None:
        """Nothing is shown."""

    def advance(self, n_reports: int) -> None:
        """Nothing is shown."""


def parse_systems(
    given: str,
    *,
    task: str,
    encoder: Path | None = None,
    model: Path | None = None,
    gpu_layers: int = 0,
    reading: ModelReading = ModelReading(),
    threads: int = 1,
    grounding: bool = True,
) -> list[System]:
    """`rules,encoder,ours=runs/ct` as systems; encoder, model and how it is read go to those that use one.

    Raises:
        SettingsError: an unknown or repeated name, a path that does not exist, or settings that go with no system.
    """
    systems: list[System] = []
    for item in (part.strip() for part in given.split(",")):
        name, named, path = item.partition("=")
        name = name.strip()
        if not name:
            raise SettingsError(f"systems '{given}' hold an empty name; expected {','.join(SYSTEMS)} or NAME=RECORDS")
        if name in {system.name for system in systems}:
            raise SettingsError(f"system '{name}' stands twice; give one of them another name: NAME=RECORDS")
        if named:
            if not Path(path.strip()).exists():
                raise SettingsError(f"system '{name}': {path.strip()} does not exist; records or a run directory are expected")
            systems.append(RecordedSystem(name, Path(path.strip())))
            continue
        if name not in SYSTEMS:
            raise SettingsError(f"system '{name}' is not known{did_you_mean(name, SYSTEMS)} (records: NAME=RECORDS)")
        chosen = settings(
            task=task,
            system=name,
            encoder=encoder if name in SYSTEMS_WITH_ENCODER else None,
            model=model if name in SYSTEMS_WITH_MODEL else None,
            gpu_layers=gpu_layers,
            threads=threads,
            grounding=grounding,
            **_given_to(name, reading),
        )
        systems.append(TaggingSystem(name, chosen))
    unused = next(iter(reading.given()), None)
    goes_with = SYSTEMS_THAT_WEIGH if unused == "adapter" else SYSTEMS_WITH_MODEL
    if unused is not None and not any(isinstance(one, TaggingSystem) and one.settings.system in goes_with for one in systems):
        option = "server-timeout" if unused == "server_timeout_s" else unused.replace("_", "-")
        raise SettingsError(f"--{option} goes with {' or '.join(goes_with)}; --systems '{given}' names none of them")
    return systems


def _given_to(system: str, reading: ModelReading) -> dict[str, Any]:
    """What is said of the reading, as far as it goes with a system."""
    if system in SYSTEMS_WITH_MODEL:
        return reading.given()
    return {name: value for name, value in reading.given().items() if name == "adapter" and system in SYSTEMS_THAT_WEIGH}


def system_answers(
    system: System, task: Task, gold: Sequence[GoldReport], folder: Path, *, progress: Progress | None = None, workers: int = 1
) -> SystemAnswers:
    """What `system` says of the gold.

    A system that tags keeps a run directory `folder/<system>-<fingerprint>-<sha256 of the texts>`: the same system on the same
    texts tags nothing again, a stopped one goes on.

    Raises:
        GoldError: a gold report has no text to be tagged, or no record.
        And what `pipeline.tagging.tag_archive` raises.
    """
    labels = [report.labels for report in gold]
    if isinstance(system, RecordedSystem):
        found = answers_of(labels, read_answers(system.path, task), where=str(system.path))
        return _recorded(system.name, found, task)
    untold = [report.report_id for report in gold if report.text is None]
    if untold:
        raise GoldError(
            f"{len(untold)} of {len(gold)} gold reports have no 'text' and cannot be tagged by '{system.name}'; the first is "
            f"'{untold[0]}' (records that exist need no text: NAME=RECORDS)"
        )
    parts = provenance_parts(with_files(system.settings))
    digest = texts_sha256(gold)[:SHORT_HEX]
    out = folder / f"{system.name}-{fingerprint(parts)[:SHORT_HEX]}-{digest}"
    summary = tag_archive(_request(system, gold, folder / f"reports-{digest}.jsonl", out, workers), progress or _NoProgress())
    return SystemAnswers(
        system.name,
        tuple(answers_of(labels, read_answers(out, task), where=str(out))),
        states_relations=system.settings.system != "encoder",
        fingerprint=fingerprint(parts),
        provenance=parts,
        n_tagged=summary.n_reports - summary.n_resumed,
    )


def _request(system: TaggingSystem, gold: Sequence[GoldReport], texts: Path, out: Path, workers: int) -> TagRequest:
    from pipeline.sources import Columns

    texts.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(texts) as temporary:
        rows = ({"report_id": report.report_id, "text": report.text} for report in gold)
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return TagRequest(str(texts), Columns(), system.settings, out, resume=True, workers=workers)


def _recorded(name: str, answers: Sequence[Answer], task: Task) -> SystemAnswers:
    prints = {a.record.provenance.get("fingerprint") for a in answers if a.record is not None}
    implied = {key: frozenset(entity.implied) for key, entity in task.entities.items()}
    states = any(
        values - implied[key] for answer in answers if answer.labels is not None for key, values in answer.labels.values.items()
    )
    return SystemAnswers(name, tuple(answers), states, prints.pop() if len(prints) == 1 else None)


__all__ = ["ModelReading", "RecordedSystem", "System", "SystemAnswers", "TaggingSystem", "parse_systems", "system_answers"]
