"""`radtag train combine`: the weights that bring stage 1, the language model and the rules to one calibrated probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from sklearn.linear_model import LogisticRegression

from configs.contracts import EntityFlags, Flagger
from configs.schema import Task, load_task
from stage1_encoder.encoder import Encoder, default_weights
from stage1_encoder.pair_encoder import PairEncoder, has_pairs, pairs_hash
from stage2_relations.adapter_folder import adapter_file, check_adapter
from stage2_relations.combine import (
    COMBINE_FILE,
    PRESENCE_FEATURES,
    RELATION_FEATURES,
    Combination,
    Readers,
    combination_json,
    feature_names,
)
from stage2_relations.llama_cpp import LlamaCppModel
from stage2_relations.model_file import default_model, file_sha256
from stage2_relations.score import BranchMapper, presence_features, relation_features
from training.corpus import AnnotatedReport, read_corpus
from training.loop import TrainingError
from training.settings import AdapterSettings

# Inverse strength of the ridge penalty: a dev split has some hundred rows and a handful of weights.
RIDGE_C = 1.0
FEWEST_OF_A_CLASS = 10
# Weights for reading scores alone.
PLAIN = Combination("", 0.0, dict.fromkeys(PRESENCE_FEATURES, 0.0), 0.0, dict.fromkeys(RELATION_FEATURES, 0.0))

Rows = list[tuple[dict[str, float], bool]]


@dataclass(frozen=True, slots=True)
class CombineResult:
    """The weights by what reads relations, `model` alone where there is no pair encoder; and how many rows each was fitted on."""

    combinations: Mapping[Readers, Combination]
    n_presence: int
    n_relations: int


def combine(settings: AdapterSettings) -> CombineResult:
    """Fits on the dev split of the settings' corpus and writes combine.json into the adapter folder.

    Raises:
        ConfigError, CorpusError, EncoderError, ModelFileError, LanguageModelError, TrainingError
    """
    task = load_task(settings.task)
    corpus = read_corpus(settings.corpus, task)
    encoder = Encoder.load(settings.encoder or default_weights(task.name), task=task)
    model_path = settings.model or default_model()
    check_adapter(settings.adapter, model=model_path, task_name=task.name)
    model = LlamaCppModel.load(model_path, adapter=adapter_file(settings.adapter))
    folder = settings.encoder or default_weights(task.name)
    pairs = PairEncoder.load(folder, task=task) if has_pairs(folder) else None
    result = fit_combination(task, corpus.splits["dev"], encoder, BranchMapper(task, model, PLAIN, pairs=pairs))
    fitted: dict[str, str | int] = {
        "corpus": corpus.content_hash,
        "encoder": encoder.content_hash,
        "adapter": file_sha256(adapter_file(settings.adapter)),
        "n_reports": len(corpus.splits["dev"]),
    }
    if (hashed := pairs_hash(folder)) is not None:
        fitted["pairs"] = hashed
    write_combination(result, settings.adapter / COMBINE_FILE, fitted=fitted)
    return result


def fit_combination(task: Task, reports: Sequence[AnnotatedReport], flagger: Flagger, mapper: BranchMapper) -> CombineResult:
    """Weights from annotated reports that neither the encoders nor the adapter were trained on.

    Presence: a row for every subject asked. Relations: a row for every value offered to a subject that is present by the labels.

    Raises:
        TrainingError: fewer than 10 rows of a class.
        LanguageModelError: the model cannot read a report.
    """
    flags = flagger.flag([item.report.text for item in reports])
    presence, relations = _rows(task, reports, flags, mapper)

    def fitted(readers: Readers) -> Combination:
        of_presence, of_relations = feature_names(readers)
        return Combination(task.name, *_fit("presence", presence, of_presence), *_fit("relations", relations, of_relations))

    choices: tuple[Readers, ...] = get_args(Readers) if mapper.has_pairs else ("model",)
    return CombineResult({readers: fitted(readers) for readers in choices}, len(presence), len(relations))


def write_combination(result: CombineResult, path: Path, *, fitted: dict[str, str | int]) -> None:
    """Writes combine.json with the numbers of rows and what `fitted` says."""
    counts: dict[str, str | int] = {"n_presence": result.n_presence, "n_relations": result.n_relations}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(combination_json(result.combinations, fitted=fitted | counts), encoding="utf-8")
    temporary.replace(path)


def _rows(task: Task, reports: Sequence[AnnotatedReport], flags: Sequence[EntityFlags], mapper: BranchMapper) -> tuple[Rows, Rows]:
    presence: Rows = []
    relations: Rows = []
    for item, flag in zip(reports, flags, strict=True):
        evidence, scores = mapper.scores(item.report.text, flag)
        for key in scores.presence:
            features = presence_features(key, evidence, flag, model=scores.presence[key])
            presence.append((features, key in item.labels))
            if key not in item.labels:
                continue
            for value in scores.values[key]:
                features = relation_features(key, value, evidence, scores)
                relations.append((features, value in item.labels[key]))
    return presence, relations


def _fit(name: str, rows: Rows, features: Sequence[str]) -> tuple[float, dict[str, float]]:
    truth = np.array([label for _, label in rows], dtype=bool)
    if min(truth.sum(), (~truth).sum()) < FEWEST_OF_A_CLASS:
        raise TrainingError(
            f"{name}: {int(truth.sum())} rows hold, {int((~truth).sum())} do not; at least {FEWEST_OF_A_CLASS} of each are expected"
        )
    model: Any = LogisticRegression(C=RIDGE_C, max_iter=1000).fit(
        np.array([[row[name] for name in features] for row, _ in rows]), truth
    )
    return float(model.intercept_[0]), {
        name: round(float(weight), 6) for name, weight in zip(features, model.coef_[0], strict=True)
    }
