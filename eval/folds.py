"""Cross-validation of stage 1 on a public data set: the files for `radtag train finetune`, and the out-of-fold answers after it.

Evaluation does not import training: what passes between them are corpus folders and weights folders.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

import configs
from configs.contracts import Reading, Report
from configs.schema import Task
from configs.yaml_lines import YamlFile
from eval.benchmarks import by_subset
from eval.gold import Answer, GoldError, GoldReport, read_gold_reports
from eval.public_sets import Benchmark
from eval.results import Results
from eval.run import RECORDS_FOLDER, evaluate
from eval.significance import N_RESAMPLES
from eval.systems import System, SystemAnswers, TaggingSystem, system_answers
from pipeline.annotations import AnnotationError, read_annotations
from pipeline.sinks import whole_file
from pipeline.tagging import Progress
from stage2_relations.rules import CarefulRules

SETTINGS_FILE = "finetune.yaml"
CORPUS_FOLDER = "corpus"
WEIGHTS_FOLDER = "weights"
DEV_EVERY = 10
FILLED_NOTE = "labels from a public data set; keys that it has no code for are read by the careful rules: "


@dataclass(frozen=True, slots=True)
class Fold:
    """One training: its folder, and how many reports each split has. `n_test` 0: the whole file is for training."""

    folder: Path
    n_train: int
    n_dev: int
    n_test: int

    def command(self) -> str:
        """What trains it."""
        return f"radtag train finetune {self.folder / SETTINGS_FILE} --out {self.folder / 'run'}"


def default_settings(task: Task) -> Path:
    """The fine-tuning settings that ship for the task."""
    return Path(configs.__file__).parent / "training" / f"finetune_{task.name}.yaml"


def write_folds(
    benchmark: Benchmark, out: Path, *, n_folds: int, settings: Path | None = None, add_training: Path | None = None
) -> list[Fold]:
    """`out/fold1/{corpus/*.jsonl, finetune.yaml}` and so on. The same file gives the same folds, whatever the order of its rows.

    Reports of equal text go to the same fold. A tenth of each training part is its dev split, with a tenth of each key. Keys that
    the set does not label are filled by the careful rules, for a training report needs every key; they are not scored.

    Args:
        n_folds: 1 puts the whole file into training, for a test on another file.
        settings: Fine-tuning YAML to start from; None means the one that ships for the task.
        add_training: Annotated reports that every fold trains on as well.

    Raises:
        GoldError: fewer texts than folds, an added report has the id of one of the set, the folder holds folds already.
        ConfigError: the settings cannot be read.
    """
    base: dict[str, Any] = YamlFile(settings or default_settings(benchmark.task)).data
    texts = sorted({_digest(report.text or "") for report in benchmark.gold})
    if len(texts) < n_folds:
        raise GoldError(f"{benchmark.name}: {len(texts)} different texts cannot make {n_folds} folds")
    if out.exists() and any(out.glob("fold*")):
        raise GoldError(f"{out}: holds folds already; give a new folder, or score them with --weights {out}")
    fold_of = {digest: place % n_folds for place, digest in enumerate(texts)}
    rows = _training_rows(benchmark)
    added = _added_rows(add_training, benchmark)
    keys_of: dict[str, set[str]] = {digest: set() for digest in texts}
    for digest, row in rows:
        keys_of[digest] |= set(row["labels"])
    folds = []
    for number in range(n_folds):
        folder = out / f"fold{number + 1}"
        inside = [d for d in texts if n_folds == 1 or fold_of[d] != number]
        dev = _dev_part(inside, keys_of)
        train = set(inside) - dev
        splits = {
            "train": [row for digest, row in rows if digest in train] + added,
            "dev": [row for digest, row in rows if digest in dev],
            "test": [row for digest, row in rows if digest not in train | dev],
        }
        for split, some in splits.items():
            if some:
                _write(folder / CORPUS_FOLDER / f"{split}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in some))
        values = base | {
            "task": benchmark.task.name,
            CORPUS_FOLDER: str(folder / CORPUS_FOLDER),
            WEIGHTS_FOLDER: str(folder / WEIGHTS_FOLDER),
        }
        fold = Fold(folder, *(len(splits[split]) for split in ("train", "dev", "test")))
        _write(folder / SETTINGS_FILE, f"# {fold.command()}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}")
        folds.append(fold)
    return folds


def out_of_fold_answers(
    system: TaggingSystem,
    benchmark: Benchmark,
    folder: Path,
    *,
    workers: int = 1,
    progress: Callable[[str], Progress] | None = None,
) -> SystemAnswers:
    """The answers of `system` in gold order, every report read with the weights of the fold that it was kept out of.

    Raises:
        GoldError: a fold is missing or was not trained, or the folds are not those of this file.
    """
    folds = sorted(folder.glob("fold*"), key=lambda path: (len(path.name), path.name))
    if not folds:
        raise GoldError(f"{folder}: holds no fold1, fold2, …; --folds N writes them")
    gold = {report.report_id: report for report in benchmark.gold}
    answers: dict[str, Answer] = {}
    parts: dict[str, str] = {}
    n_tagged = 0
    for fold in folds:
        members = _members(fold, benchmark, gold)
        weights = fold / WEIGHTS_FOLDER
        if not weights.is_dir():
            raise GoldError(f"{weights}: does not exist; train it with: {Fold(fold, 0, 0, 0).command()}")
        twice = [report.report_id for report in members if report.report_id in answers]
        if twice:
            raise GoldError(f"{fold}: report '{twice[0]}' is in the test part of two folds")
        trained = replace(system, settings=system.settings.model_copy(update={"encoder": weights}))
        shown = None if progress is None else progress(f"{system.name}, {fold.name}")
        found = system_answers(trained, benchmark.task, members, fold / "records", progress=shown, workers=workers)
        answers |= {report.report_id: answer for report, answer in zip(members, found.answers, strict=True)}
        parts |= {f"{fold.name} {name}": part for name, part in found.provenance.items()}
        n_tagged += found.n_tagged
    missing = [report_id for report_id in gold if report_id not in answers]
    if missing:
        raise GoldError(f"{folder}: {len(missing)} of {len(gold)} reports are in no fold; the first is '{missing[0]}'")
    return SystemAnswers(
        system.name,
        tuple(answers[report.report_id] for report in benchmark.gold),
        states_relations=system.settings.system != "encoder",
        provenance=parts,
        n_tagged=n_tagged,
    )


def run_with_folds(
    benchmark: Benchmark,
    systems: Sequence[System],
    folder: Path,
    *,
    out: Path,
    n_resamples: int = N_RESAMPLES,
    workers: int = 1,
    progress: Callable[[str], Progress] | None = None,
) -> dict[str, Results]:
    """As `benchmarks.run_benchmark`; systems with an encoder read every report with the weights of its fold."""
    answers = []
    for system in systems:
        if isinstance(system, TaggingSystem) and system.settings.needs_encoder:
            answers.append(out_of_fold_answers(system, benchmark, folder, workers=workers, progress=progress))
        else:
            shown = None if progress is None else progress(system.name)
            found = system_answers(system, benchmark.task, benchmark.gold, out / RECORDS_FOLDER, progress=shown, workers=workers)
            answers.append(found)
    name = f"{benchmark.name}, out of fold"
    whole = evaluate(benchmark.task, benchmark.gold, answers, gold_name=name, scope=benchmark.scope, n_resamples=n_resamples)
    return by_subset(benchmark, whole, n_resamples=n_resamples)


def _dev_part(texts: Sequence[str], keys_of: Mapping[str, set[str]]) -> set[str]:
    """A tenth of the texts, with a tenth of those that state each key: rare keys need some in dev for their thresholds."""
    having = Counter(key for text in texts for key in keys_of[text])
    dev: dict[str, None] = {}
    for key, n_texts in sorted(having.items(), key=lambda item: (item[1], item[0])):
        wanted = n_texts // DEV_EVERY or int(n_texts > 1)
        n_there = sum(key in keys_of[text] for text in dev)
        others = (text for text in texts if key in keys_of[text] and text not in dev)
        dev |= dict.fromkeys(islice(others, max(wanted - n_there, 0)))
    n_missing = len(texts) // DEV_EVERY - len(dev)
    dev |= dict.fromkeys(islice((text for text in texts if text not in dev), max(n_missing, 0)))
    return set(dev)


def _members(fold: Path, benchmark: Benchmark, gold: dict[str, GoldReport]) -> list[GoldReport]:
    path = fold / CORPUS_FOLDER / "test.jsonl"
    if not path.is_file():
        raise GoldError(
            f"{path}: does not exist; a fold that trained on the whole file is tested on another: --encoder {fold}/weights"
        )
    members = []
    for row in read_gold_reports(path, benchmark.task):
        if row.report_id not in gold or gold[row.report_id].text != row.text:
            raise GoldError(
                f"{path}: report '{row.report_id}' is not in the data set, or with another text; give the file of the folds"
            )
        members.append(gold[row.report_id])
    return members


def _training_rows(benchmark: Benchmark) -> list[tuple[str, dict[str, Any]]]:
    """Every report as an annotation row, with the digest of its text."""
    task = benchmark.task
    reports = [Report(report.report_id, report.text or "") for report in benchmark.gold]
    unlabelled = [key for key in task.keys if key not in benchmark.scope.keys]
    rows = []
    for report, reading in zip(benchmark.gold, CarefulRules(task).relate(reports, [None] * len(reports)), strict=True):
        labels = {key: sorted(values) for key, values in report.labels.values.items()}
        labels |= {key: values for key, values in _read(reading).items() if key in unlabelled}
        row: dict[str, Any] = {"report_id": report.report_id, "task": task.name, "text": report.text, "labels": labels}
        if unlabelled:
            row["notes"] = FILLED_NOTE + ", ".join(unlabelled)
        rows.append((_digest(report.text or ""), row))
    return rows


def _read(reading: object) -> dict[str, list[str]]:
    if not isinstance(reading, Reading):
        raise GoldError("the careful rules could not read a report of the set")
    return {
        finding.key: [relation.value for relation in reading.relations if relation.subject == finding.key]
        for finding in reading.entities
        if finding.present
    }


def _added_rows(path: Path | None, benchmark: Benchmark) -> list[dict[str, Any]]:
    if path is None:
        return []
    try:
        added = read_annotations(path, benchmark.task)
    except AnnotationError as error:
        raise GoldError(str(error)) from None
    known = {report.report_id for report in benchmark.gold}
    rows = []
    for item in added:
        if item.report.report_id in known:
            raise GoldError(f"{path}:{item.line}: report_id '{item.report.report_id}' is one of the data set's too")
        labels = {key: list(values) for key, values in item.labels.items()}
        row = {"report_id": item.report.report_id, "task": benchmark.task.name, "text": item.report.text, "labels": labels}
        about = {"style": item.style, "patient_id": item.report.patient_id, "date": item.report.study_date}
        rows.append(row | {name: value for name, value in about.items() if value is not None})
    return rows


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
