"""From logits to flags: temperature, sigmoid, two thresholds a key; and the config file that keeps them beside the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from configs.contracts import EntityFlags

CONFIG_FILE = "config.json"
FORMAT_VERSION = 1


class FlagConfigError(Exception):
    """A config.json that is missing or breaks a rule."""


class KeyThresholds(BaseModel):
    """Calibrated probabilities from which a key is hinted to stage 2, and decided by stage 1 alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hint: float = Field(ge=0, le=1)
    decision: float = Field(ge=0, le=1)


class FlagConfig(BaseModel):
    """What an encoder's folder says beside its weights.

    Attributes:
        thresholds: By key, in the order of the model's outputs, which is the order of the task file.
        temperature: Logits are divided by it before the sigmoid.
        window_tokens: Longest input of the model, [CLS] and [SEP] included.
        trained: Where the weights come from: names and sha256; `tokenizer`, the sha256 of its file, is needed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: int = FORMAT_VERSION
    task: str
    thresholds: dict[str, KeyThresholds] = Field(min_length=1)
    temperature: float = Field(gt=0, allow_inf_nan=False)
    window_tokens: int = Field(ge=8)
    overlap_tokens: int = Field(ge=0)
    trained: dict[str, str]

    @model_validator(mode="after")
    def _known_format(self) -> FlagConfig:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format_version is {self.format_version}; {FORMAT_VERSION} is expected")
        if "tokenizer" not in self.trained:
            raise ValueError("trained.tokenizer is missing")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """Entity keys in the order of the logits."""
        return tuple(self.thresholds)

    @classmethod
    def load(cls, path: Path) -> FlagConfig:
        """Raises FlagConfigError with the file and the field."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise FlagConfigError(f"{path}: file does not exist") from None
        except OSError as error:
            raise FlagConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise FlagConfigError(f"{path}: {where or 'content'}: {first['msg']}") from None

    def to_json(self) -> str:
        """The content of config.json."""
        return json.dumps(self.model_dump(), indent=1) + "\n"


def probability(logit: float, *, temperature: float) -> float:
    """Sigmoid of the tempered logit, without overflow."""
    tempered = logit / temperature
    if tempered >= 0:
        return 1.0 / (1.0 + math.exp(-tempered))
    grown = math.exp(tempered)
    return grown / (1.0 + grown)


def flags_of(logits: Sequence[float], config: FlagConfig) -> EntityFlags:
    """The flags of one report from one logit a key."""
    probabilities: Mapping[str, float] = {
        key: probability(logit, temperature=config.temperature) for key, logit in zip(config.keys, logits, strict=True)
    }
    return EntityFlags(
        probability=probabilities,
        hinted=tuple(key for key, value in probabilities.items() if value >= config.thresholds[key].hint),
        decided=tuple(key for key, value in probabilities.items() if value >= config.thresholds[key].decision),
    )
