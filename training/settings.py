"""What a training YAML says; every field is checked before anything is loaded. Paths are relative to the working folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from configs.yaml_lines import ConfigError, YamlFile
from stage1_encoder.model import EncoderShape

Settings = TypeVar("Settings", bound="_Strict")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapeSettings(_Strict):
    """Size of the encoder; `start: minilm` needs the defaults (fewer layers and shorter windows are possible)."""

    layers: int = Field(default=6, ge=1)
    width: int = Field(default=384, ge=8)
    heads: int = Field(default=12, ge=1)
    feed_forward: int = Field(default=1536, ge=8)
    window_tokens: int = Field(default=256, ge=8, le=512)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ShapeSettings:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; a multiple of heads ({self.heads}) is expected")
        return self

    def shape(self) -> EncoderShape:
        """The same as a plain value."""
        return EncoderShape(**self.model_dump())


class LoopSettings(_Strict):
    """How a training loop runs.

    Attributes:
        learning_rate: Peak of the body's; rises over `warmup_share` of all steps, then falls linearly to 0.
        head_learning_rate: Peak for everything outside the body.
        patience_epochs: Stop after so many epochs without a better dev score.
        device: `auto` takes a GPU where there is one.
        bf16: Autocast to bfloat16. On a processor with avx512_bf16 it trains 1.4 to 1.7 times as fast as float32.
    """

    seed: int = Field(ge=0)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    head_learning_rate: float = Field(gt=0)
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    patience_epochs: int = Field(ge=1)
    checkpoint_every_steps: int = Field(default=200, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    bf16: bool = True

    def torch_device(self) -> torch.device:
        """Raises ConfigError when `cuda` is asked for and there is none."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is cuda, but torch finds no CUDA device; use auto or cpu")
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")


class TokenizerSettings(_Strict):
    """configs/training/tokenizer.yaml. `corpora` maps a task to its corpus folder: texts come from train.jsonl alone."""

    corpora: dict[str, Path] = Field(min_length=1)
    texts: list[Path] = Field(default_factory=list)
    vocabulary_size: int = Field(ge=300)
    min_frequency: int = Field(default=2, ge=1)


class PretrainSettings(_Strict):
    """configs/training/pretrain.yaml.

    Attributes:
        start: `minilm`, `random` or the folder of an earlier run.
        glosses: For `minilm`: YAML file of tokens in a language that its vocabulary lacks, each with English words.
    """

    corpora: dict[str, Path] = Field(min_length=1)
    texts: list[Path] = Field(default_factory=list)
    tokenizer: Path
    start: str
    glosses: Path | None = None
    masked_share: float = Field(default=0.15, gt=0, lt=1)
    shape: ShapeSettings
    loop: LoopSettings


class AugmentationSettings(_Strict):
    """Share of the training reports of an epoch that each change is tried on; 0 turns it off.

    `lose_marks` is the share of keys of an augmented report whose keyword marks are left out.
    """

    exchange_entities: float = Field(default=0, ge=0, le=1)
    exchange_values: float = Field(default=0, ge=0, le=1)
    exchange_wording: float = Field(default=0, ge=0, le=1)
    order: float = Field(default=0, ge=0, le=1)
    join_reports: float = Field(default=0, ge=0, le=1)
    add_statements: float = Field(default=0, ge=0, le=1)
    typos: float = Field(default=0, ge=0, le=1)
    typo_share_of_words: float = Field(default=0.06, ge=0, le=1)
    change_case: float = Field(default=0, ge=0, le=1)
    remove_headers: float = Field(default=0, ge=0, le=1)
    particles: float = Field(default=0, ge=0, le=1)
    lose_marks: float = Field(default=0, ge=0, le=1)


class WeakLabelSettings(_Strict):
    """A file of `radtag train weak-label`, or unlabelled reports (JSON Lines with report_id and text) that keywords label.

    `weight` scales their loss.
    """

    path: Path
    weight: float = Field(default=0.3, gt=0, le=1)


class FinetuneSettings(_Strict):
    """configs/training/finetune_<task>.yaml.

    Attributes:
        task: Name of a task that ships with radtag, or the path of a task file.
        weights: Folder that gets model.onnx, tokenizer.json, config.json and MODEL_CARD.md.
        copies: Versions of every report in an epoch; the first is the report as given, the others are augmented.
        start, glosses: As in pre-training.
        positive_weighting: `sqrt` weighs present keys by the root of absent/present, at most 5.
        hint_recall: Share of the present keys of dev that a hint threshold must keep.
    """

    task: str
    corpus: Path
    tokenizer: Path
    start: str
    glosses: Path | None = None
    weights: Path
    shape: ShapeSettings
    overlap_tokens: int = Field(default=64, ge=0, validate_default=True)
    copies: int = Field(default=1, ge=1)
    positive_weighting: Literal["none", "sqrt"] = "none"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    hint_recall: float = Field(default=0.995, gt=0, le=1)
    augmentation: AugmentationSettings = AugmentationSettings()
    weak_labels: WeakLabelSettings | None = None
    loop: LoopSettings

    @field_validator("overlap_tokens")
    @classmethod
    def _windows_go_forward(cls, overlap_tokens: int, info: ValidationInfo) -> int:
        shape = info.data.get("shape")
        if shape is not None and overlap_tokens >= shape.window_tokens - 2:
            raise ValueError(f"windows of {shape.window_tokens} tokens can share at most {shape.window_tokens - 3}")
        return overlap_tokens


class PairSettings(_Strict):
    """configs/training/pairs_<task>.yaml.

    Attributes:
        start: Weights folder of stage 1 for the same task: its tokenizer is used, and its body is where training starts.
        weights: Folder that gets pairs.onnx and pairs.json; the folder of the flags' weights as a rule.
        augmented_share: Share of the reports of an epoch that are augmented.
        absent_share: Share of the subjects that a report names but does not state (negated, historical) that are asked about.
        unmentioned_weight: What a value that the report does not mention counts in the loss; grounding never offers it.
    """

    task: str
    corpus: Path
    start: Path
    weights: Path
    dropout: float = Field(default=0.1, ge=0, lt=1)
    augmented_share: float = Field(default=0.5, ge=0, le=1)
    absent_share: float = Field(default=0.5, ge=0, le=1)
    unmentioned_weight: float = Field(default=0.1, ge=0, lt=1)
    augmentation: AugmentationSettings = AugmentationSettings()
    loop: LoopSettings


class HintSettings(_Strict):
    """The errors of stage 1 that an adapter is trained with: shares of the keys of a report.

    Attributes:
        missed: Present keys that the hint line leaves out; they are asked all the same.
        wrong_named: Keys that are named but not present (negated, historical) and hinted.
        wrong_unnamed: Keys that the report does not name and that are hinted.
        none: Reports whose hint line is empty; every key that they name is asked, so that the model also reads without stage 1.
        unmentioned_weight: What a value that the report does not mention counts in the loss; grounding never offers it.
    """

    missed: float = Field(default=0.03, ge=0, le=1)
    wrong_named: float = Field(default=0.4, ge=0, le=1)
    wrong_unnamed: float = Field(default=0.02, ge=0, le=1)
    none: float = Field(default=0.1, ge=0, le=1)
    unmentioned_weight: float = Field(default=0.1, ge=0, le=1)


class AdapterSettings(_Strict):
    """configs/training/adapter_<task>.yaml.

    Attributes:
        model: GGUF file of the llama architecture; None means the packaged one.
        encoder: Stage-1 weights that `radtag train combine` weighs against the adapter; None means those that ship for the task.
        adapter: Folder that gets adapter.gguf, config.json, MODEL_CARD.md and combine.json.
        start: Adapter folder (or its GGUF file) of the same rank and layers whose matrices training starts from; None: from zero.
        rank, alpha: Of LoRA; the product of the matrices counts alpha / rank.
        first_layer: Layers before it get no matrices: less to learn, and backward passes end there.
        copies: Versions of every report in an epoch; the first of the first epoch is the report as given.
        limit_tokens: Questions longer than this are left out of training.
    """

    task: str
    corpus: Path
    model: Path | None = None
    encoder: Path | None = None
    adapter: Path
    start: Path | None = None
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, gt=0)
    first_layer: int = Field(default=0, ge=0)
    copies: int = Field(default=1, ge=1)
    limit_tokens: int = Field(default=512, ge=32)
    hints: HintSettings = HintSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    loop: LoopSettings


def read_settings(path: Path, model: type[Settings]) -> Settings:
    """Raises ConfigError with file, line and the nearest known name."""
    return YamlFile(path).check(model)
