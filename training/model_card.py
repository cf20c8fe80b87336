"""The MODEL_CARD.md that lies beside a task's weights: written from measured figures, never by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stage1_encoder.flags import FlagConfig
from stage1_encoder.pair_encoder import PairConfig
from training.corpus import Corpus
from training.loop import LoopResult
from training.settings import FinetuneSettings, PairSettings

CARD_FILE = "MODEL_CARD.md"
PAIRS_CARD_FILE = "PAIRS_CARD.md"


@dataclass(frozen=True, slots=True)
class CardFigures:
    """Dev figures of the exported weights.

    Attributes:
        decision: key_figures at the decision thresholds; `hint` at the hint thresholds.
        per_key: Key to (present dev reports, F1 at the decision threshold, recall at the hint threshold).
        int8_logit_difference: Largest difference of a logit between float32 and int8.
    """

    n_dev: int
    decision: Mapping[str, float]
    hint: Mapping[str, float]
    per_key: Mapping[str, tuple[int, float, float]]
    float_f1: float
    int8_f1: float
    int8_logit_difference: float
    best_epoch: int
    training_s: float


_NAMES = ("micro_f1", "macro_f1", "precision", "recall", "exact_set")


def model_card(config: FlagConfig, figures: CardFigures, corpus: Corpus, settings: FinetuneSettings) -> str:
    """The card as Markdown."""
    rate, weak = settings.loop, settings.weak_labels
    lines = [
        f"# radtag encoder: {corpus.task.title}",
        "",
        f"Says for each of {len(config.keys)} entity keys how probably a report states it as present. Input: one report in English",
        "or in mixed Korean and English. Its flags select reports and hint stage 2; they are no diagnosis.",
        "",
        "## Training",
        f"- body: {settings.shape.layers} layers, width {settings.shape.width}; start: {config.trained['start']}",
        f"- windows of {config.window_tokens} tokens that share {config.overlap_tokens}; a key of one is a key of all",
        f"- {len(corpus.splits['train'])} annotated reports, {settings.copies} versions of each an epoch",
        f"- weakly labelled reports: {'none' if weak is None else weak.path.name}",
        f"- learning rate {rate.learning_rate:g} (body), {rate.head_learning_rate:g} (head); best epoch {figures.best_epoch}",
        f"- {figures.training_s / 60:.1f} minutes",
        "",
        f"## Figures on dev (n={figures.n_dev} reports)",
        "Temperature and thresholds were chosen on these same reports, so the figures flatter. The reports are invented: no figure",
        "here is evidence for real reports.",
        "",
        *_table(["", "micro F1", "macro F1", "precision", "recall", "exact key set"]),
        _row(["decision thresholds", *(_percent(figures.decision[name]) for name in _NAMES)]),
        _row(["hint thresholds", *(_percent(figures.hint[name]) for name in _NAMES)]),
        "",
        f"At 0.5, float32 has micro F1 {_percent(figures.float_f1)} and int8, which lies here, {_percent(figures.int8_f1)};",
        f"no logit differs by more than {figures.int8_logit_difference:.3f}.",
        "",
        *_table(["key", "present in dev", "F1", "hint recall", "decision from", "hint from"]),
    ]
    for key, (n_present, f1, recall) in figures.per_key.items():
        limits = config.thresholds[key]
        lines.append(_row([key, str(n_present), _percent(f1), _percent(recall), f"{limits.decision:.3f}", f"{limits.hint:.3f}"]))
    lines += ["", *(f"- {warning}" for warning in corpus.warnings), "## Provenance"]
    lines += [f"- {name}: `{value}`" for name, value in config.trained.items()]
    return "\n".join(lines) + "\n"


def pairs_card(config: PairConfig, figures: Mapping[str, float], corpus: Corpus, settings: PairSettings, loop: LoopResult) -> str:
    """The card of a pair encoder as Markdown; `figures` are those of training.pairs.export_pairs."""
    rate = settings.loop
    n_train, n_dev = len(corpus.splits["train"]), len(corpus.splits["dev"])
    lines = [
        f"# radtag pair encoder: {corpus.task.title}",
        "",
        f"Says of a subject ({len(config.subjects)} of them) which of its values a report gives it, as log-odds. Stage 2 weighs",
        "them with what the language model and the rules say; alone they are no relation.",
        "",
        "## Training",
        f"- body of the flag encoder beside it, then {rate.epochs} epochs; the best is epoch {loop.best_epoch}",
        f"- {loop.seconds_s / 60:.1f} minutes",
        f"- learning rate {rate.learning_rate:g} (body), {rate.head_learning_rate:g} (head)",
        f"- {n_train} annotated reports, {settings.augmented_share:.0%} of them augmented in an epoch",
        "- a question for each subject that a report states, and for a share of those that it only names",
        "",
        f"## Figures on dev (n={n_dev} reports, {figures['n_questions']:.0f} questions)",
        "Of values that the report mentions, and subjects that are present. The reports are invented: no figure here is evidence",
        "for real reports.",
        "",
        f"- average precision {figures['average_precision']:.4f}, micro F1 at 0.5 {_percent(figures['micro_f1'])}",
        f"- float32 has micro F1 {_percent(figures['float_micro_f1'])}; no logit of int8 differs from it by more than",
        f"  {figures['int8_logit_difference']:.3f}",
        "",
        "## Provenance",
        *(f"- {name}: `{value}`" for name, value in config.trained.items()),
    ]
    return "\n".join(lines) + "\n"


def _table(heads: list[str]) -> list[str]:
    return [_row(heads), "|" + "---|" * len(heads)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"
