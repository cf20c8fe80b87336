"""One probability from what stage 1, the language model and the rules say of an entity or a relation: logistic regression.

The weights of a task stand in combine.json beside its adapter, fitted on the dev split by `radtag train combine`. Without stage 1
its log-odds count as 0: it says nothing either way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

__all__ = [
    "COMBINE_FILE",
    "PRESENCE_FEATURES",
    "RELATION_FEATURES",
    "Combination",
    "CombineError",
    "bounded_log_odds",
    "load_combination",
]

COMBINE_FILE = "combine.json"
# Beyond this a log-odds says "sure" and no more; it keeps one overconfident part from outvoting all others.
LARGEST_LOG_ODDS = 8.0
PRESENCE_FEATURES = ("encoder", "model", "asserted", "named")
RELATION_FEATURES = ("model", "linked", "linked_elsewhere", "same_sentence", "next_sentence")


class CombineError(Exception):
    """A combine.json that is missing or breaks a rule. The message names the file and the command that writes it."""


class _Weights(BaseModel):
    # nan would make every entity absent without an error.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    intercept: float
    weights: dict[str, float]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: Literal[1]
    task: str
    presence: _Weights
    relation: _Weights
    fitted: dict[str, str | int]

    @model_validator(mode="after")
    def _all_features(self) -> _File:
        for part, names in ((self.presence, PRESENCE_FEATURES), (self.relation, RELATION_FEATURES)):
            if tuple(part.weights) != names:
                raise ValueError(f"weights are of {', '.join(part.weights)}; {', '.join(names)} is expected")
        return self


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


def load_combination(path: Path, *, task_name: str) -> Combination:
    """Raises CombineError with the file and the field, or when the weights are of another task."""
    try:
        found = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CombineError(f"{path}: cannot be read: {error.strerror}; 'radtag train combine' writes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise CombineError(f"{path}: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from None
    if found.task != task_name:
        raise CombineError(f"{path}: weights of task '{found.task}'; those of task '{task_name}' are expected")
    presence, relation = found.presence, found.relation
    return Combination(found.task, presence.intercept, presence.weights, relation.intercept, relation.weights)


def combination_json(combination: Combination, *, fitted: Mapping[str, str | int]) -> str:
    """The content of combine.json; `fitted` says on what."""
    document = {
        "format_version": 1,
        "task": combination.task,
        "presence": {"intercept": combination.presence_intercept, "weights": dict(combination.presence_weights)},
        "relation": {"intercept": combination.relation_intercept, "weights": dict(combination.relation_weights)},
        "fitted": dict(fitted),
    }
    return json.dumps(document, indent=1) + "\n"


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
