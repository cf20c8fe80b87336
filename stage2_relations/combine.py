"""One probability from what stage 1, the language model and the rules say of an entity or a relation: logistic regression.

The weights of a task stand in combine.json beside its adapter, fitted on the dev split by `radtag train combine`: a set for each
choice of what reads relations beside the rules: the language model, the pair encoder, or both. Without stage 1 its log-odds count
as 0: it says nothing either way. combine.json names the encoder, the pair encoder and the adapter that it was fitted with. Another
adapter is an error, for the file stands beside it. Another encoder is allowed, but weighed as if it were the first one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

__all__ = [
    "COMBINE_FILE",
    "PRESENCE_FEATURES",
    "RELATION_FEATURES",
    "Combination",
    "CombineError",
    "FittedWith",
    "Readers",
    "bounded_log_odds",
    "feature_names",
    "fitted_with",
    "load_combination",
]

COMBINE_FILE = "combine.json"
# Beyond this a log-odds says "sure" and no more; it keeps one overconfident part from outvoting all others.
LARGEST_LOG_ODDS = 8.0
PRESENCE_FEATURES = ("encoder", "model", "asserted", "named")
RELATION_FEATURES = (
    "model",
    "linked",
    "linked_elsewhere",
    "same_sentence",
    "next_sentence",
    "other_side",
    "hidden",
    "loose",
    "linked_unnamed",
    "pairs",
)
Readers = Literal["model", "model and pairs", "pairs"]
"""What reads relations beside the rules."""
_OF_THE_MODEL = ("model", "hidden")


class CombineError(Exception):
    """A combine.json that is missing or breaks a rule. The message names the file and the command that writes it."""


class _Weights(BaseModel):
    # nan would make every entity absent without an error.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    intercept: float
    weights: dict[str, float]


class _Parts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    presence: _Weights
    relation: _Weights

    def check(self, readers: Readers) -> None:
        for part, names in zip((self.presence, self.relation), feature_names(readers), strict=True):
            if tuple(part.weights) != names:
                raise ValueError(f"weights are of {', '.join(part.weights)}; {', '.join(names)} is expected")


class _Fitted(BaseModel):
    """What else stands here (corpus, numbers of rows) is for people."""

    model_config = ConfigDict(extra="allow", frozen=True)
    encoder: str
    adapter: str
    pairs: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: Literal[2]
    task: str
    weights: dict[Readers, _Parts]
    fitted: _Fitted

    @model_validator(mode="after")
    def _all_features(self) -> _File:
        expected = get_args(Readers) if self.fitted.pairs is not None else ("model",)
        if tuple(self.weights) != expected:
            raise ValueError(f"weights are for {', '.join(self.weights)}; {', '.join(expected)} is expected")
        for readers, parts in self.weights.items():
            parts.check(readers)
        return self


def feature_names(readers: Readers) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of presence and of relations that weights for these readers have, in order."""
    left_out = _OF_THE_MODEL if readers == "pairs" else ()
    left_out = (*left_out, "pairs") if readers == "model" else left_out
    presence, relation = (tuple(n for n in names if n not in left_out) for names in (PRESENCE_FEATURES, RELATION_FEATURES))
    return presence, relation


@dataclass(frozen=True, slots=True)
class Combination:
    """Intercept and weights by feature name, for presence and for relations."""

    task: str
    presence_intercept: float
    presence_weights: Mapping[str, float]
    relation_intercept: float
    relation_weights: Mapping[str, float]

    def presence(self, features: Mapping[str, float]) -> float:
        """Probability in (0, 1) that the entity is present."""
        return _probability(self.presence_intercept, self.presence_weights, features)

    def relation(self, features: Mapping[str, float]) -> float:
        """Probability in (0, 1) that the subject, if present, has the value."""
        return _probability(self.relation_intercept, self.relation_weights, features)


@dataclass(frozen=True, slots=True)
class FittedWith:
    """What the weights were fitted with: an encoder's content hash, the sha256 of the adapter's matrices, a pair encoder's hash.

    `pairs` is None where there was no pair encoder: then there are no weights for one.
    """

    encoder: str
    adapter: str
    pairs: str | None = None


def load_combination(path: Path, *, task_name: str, adapter: str | None, readers: Readers = "model") -> Combination:
    """The weights in a combine.json for these readers. `adapter`: sha256 of the adapter in use, None is none; `pairs` uses none.

    Raises:
        CombineError: the file and the field, weights of another task or another adapter, or none for these readers.
    """
    found = _read(path)
    if found.task != task_name:
        raise CombineError(f"{path}: weights of task '{found.task}'; those of task '{task_name}' are expected")
    if readers != "pairs" and found.fitted.adapter != adapter:
        used = "there is none" if adapter is None else f"the one in use is {adapter[:12]}"
        raise CombineError(
            f"{path}: was fitted with adapter {found.fitted.adapter[:12]}, and {used}: one of the files is of another training; "
            "'radtag train combine' fits again"
        )
    parts = found.weights.get(readers)
    if parts is None:
        raise CombineError(
            f"{path}: has no weights for use with a pair encoder; 'radtag train combine' fits them where there is one"
        )
    presence, relation = parts.presence, parts.relation
    return Combination(found.task, presence.intercept, presence.weights, relation.intercept, relation.weights)


def fitted_with(path: Path) -> FittedWith:
    """What a combine.json says that it was fitted with. Raises CombineError with the file and the field."""
    fitted = _read(path).fitted
    return FittedWith(fitted.encoder, fitted.adapter, fitted.pairs)


def _read(path: Path) -> _File:
    try:
        return _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CombineError(f"{path}: cannot be read: {error.strerror}; 'radtag train combine' writes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise CombineError(
            f"{path}: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}; 'radtag train combine' writes it anew"
        ) from None


def combination_json(combinations: Mapping[Readers, Combination], *, fitted: Mapping[str, str | int]) -> str:
    """The content of combine.json; `fitted` says on what, and names `encoder`, `adapter` and `pairs` as in `FittedWith`."""
    document = {
        "format_version": 2,
        "task": combinations["model"].task,
        "weights": {readers: _parts(combination) for readers, combination in combinations.items()},
        "fitted": dict(fitted),
    }
    return json.dumps(document, indent=1) + "\n"


def _parts(combination: Combination) -> dict[str, dict[str, object]]:
    return {
        "presence": {"intercept": combination.presence_intercept, "weights": dict(combination.presence_weights)},
        "relation": {"intercept": combination.relation_intercept, "weights": dict(combination.relation_weights)},
    }


def bounded_log_odds(value: float) -> float:
    """Within ±LARGEST_LOG_ODDS."""
    return max(-LARGEST_LOG_ODDS, min(LARGEST_LOG_ODDS, value))


def log_odds(probability: float) -> float:
    """Bounded log-odds of a probability in [0, 1]."""
    if probability <= 0.0 or probability >= 1.0:
        return math.copysign(LARGEST_LOG_ODDS, probability - 0.5)
    return bounded_log_odds(math.log(probability / (1.0 - probability)))


def _probability(intercept: float, weights: Mapping[str, float], features: Mapping[str, float]) -> float:
    total = intercept + math.fsum(weight * features[name] for name, weight in weights.items())
    return 1.0 / (1.0 + math.exp(-total)) if total >= 0 else math.exp(total) / (1.0 + math.exp(total))
