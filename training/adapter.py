"""`radtag train adapter`: LoRA on a causal model, for the branch questions of one task, and its export to GGUF."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional

from configs.schema import Task, load_task
from stage2_relations.adapter_folder import ADAPTER_FILE, CONFIG_FILE, adapter_file
from stage2_relations.branches import QUESTION_FORMAT, BranchPrompt
from stage2_relations.llama_cpp import LlamaCppModel
from stage2_relations.model_file import default_model, file_sha256
from training.adapter_examples import AdapterExample, AdapterExamples
from training.causal_model import attach_lora, load_adapter, load_causal_model, save_adapter
from training.corpus import AnnotatedReport, read_corpus
from training.loop import LoopResult, Progress, TrainingError, train
from training.model_card import CARD_FILE
from training.pretrain import settings_hash
from training.settings import AdapterSettings, AugmentationSettings
from training.weights_folder import put_in_place

DEV_BATCH = 8
TOKEN_STEP = 32
LEAST_WEIGHT = 1e-6  # of a batch: hints can be drawn so that nothing is asked of any of its reports


class LoraParameters(nn.Module):
    """The trained matrices alone: what a checkpoint holds. The base model stays outside."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "/"), parameter)


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Trunks and branches as one padded batch: a branch attends to its trunk and itself, its positions follow the trunk's.

    ids, positions: int [reports, tokens]; attention: bool [reports, 1, tokens, tokens]; ends: (report, token) of branches' last.
    """

    ids: Tensor
    positions: Tensor
    attention: Tensor
    ends: tuple[Tensor, Tensor]


def tree_batch(trunks: Sequence[Sequence[int]], branches: Sequence[Sequence[Sequence[int]]]) -> TreeBatch:
    """One row a report; padded with id 0 to a multiple of 32 tokens."""
    sizes = [len(trunk) + sum(map(len, of)) for trunk, of in zip(trunks, branches, strict=True)]
    longest = -(-max(sizes) // TOKEN_STEP) * TOKEN_STEP
    ids = torch.zeros((len(trunks), longest), dtype=torch.int64)
    positions = torch.zeros_like(ids)
    attention = torch.eye(longest, dtype=torch.bool).repeat(len(trunks), 1, 1)
    rows, ends = [], []
    for row, (trunk, of) in enumerate(zip(trunks, branches, strict=True)):
        n_trunk = len(trunk)
        ids[row, :n_trunk] = torch.tensor(list(trunk))
        positions[row, :n_trunk] = torch.arange(n_trunk)
        attention[row, :n_trunk, :n_trunk] = torch.ones(n_trunk, n_trunk).tril().bool()
        at = n_trunk
        for branch in of:
            stop = at + len(branch)
            ids[row, at:stop] = torch.tensor(list(branch))
            positions[row, at:stop] = torch.arange(n_trunk, n_trunk + len(branch))
            attention[row, at:stop, :n_trunk] = True
            attention[row, at:stop, at:stop] = torch.ones(len(branch), len(branch)).tril().bool()
            rows.append(row)
            ends.append(stop - 1)
            at = stop
    places = (torch.tensor(rows, dtype=torch.int64), torch.tensor(ends, dtype=torch.int64))
    return TreeBatch(ids, positions, attention[:, None], places)


class AdapterLearner:
    """A Learner: cross-entropy of each letter against the reference; dev score = average precision over mentioned values."""

    def __init__(
        self, causal: Any, model: nn.Module, maker: AdapterExamples, dev: Sequence[AdapterExample], letter_tokens: Sequence[int]
    ) -> None:
        self.model = model
        self.causal, self._maker, self._dev = causal, maker, dev
        self._letter_tokens = torch.tensor(list(letter_tokens))

    def examples(self, epoch: int) -> Sequence[AdapterExample]:
        return self._maker.examples(epoch)

    def n_tokens(self, example: AdapterExample) -> int:
        return example.n_tokens

    def loss(self, batch: Sequence[AdapterExample], device: torch.device) -> Tensor:
        log_odds = self.log_odds([e.trunk for e in batch], [[b.tokens for b in e.branches] for e in batch], device)
        rows, columns, targets, weights = _flat(batch)
        chosen = log_odds[torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)]
        losses = functional.binary_cross_entropy_with_logits(chosen, torch.tensor(targets, device=chosen.device), reduction="none")
        weight = torch.tensor(weights, device=chosen.device)
        return (losses * weight).sum() / weight.sum().clamp(min=LEAST_WEIGHT)

    def evaluate(self, device: torch.device) -> dict[str, float]:
        odds, truth, counted, loss, weight = [], [], [], 0.0, 0.0
        for start in range(0, len(self._dev), DEV_BATCH):
            batch = self._dev[start : start + DEV_BATCH]
            with torch.autocast(device.type, dtype=torch.bfloat16):
                found = self.log_odds([e.trunk for e in batch], [[b.tokens for b in e.branches] for e in batch], device)
            rows, columns, targets, weights = _flat(batch)
            chosen = found[torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)].cpu()
            losses = functional.binary_cross_entropy_with_logits(chosen, torch.tensor(targets), reduction="none")
            loss += float((losses * torch.tensor(weights)).sum())
            weight += sum(weights)
            odds += chosen.tolist()
            truth += targets
            counted += [w == 1.0 for w in weights]
        kept = np.array(counted)
        predicted, present = np.array(odds)[kept], np.array(truth)[kept].astype(bool)
        hits = (predicted > 0) & present
        return {
            "score": float(average_precision_score(present, predicted)),
            "dev_loss": loss / weight,
            "dev_micro_f1": float(2 * hits.sum() / max(1, (predicted > 0).sum() + present.sum())),
        }

    def log_odds(
        self, trunks: Sequence[Sequence[int]], branches: Sequence[Sequence[Sequence[int]]], device: torch.device
    ) -> Tensor:
        """Letter scores minus the reference's, float [branches, letters]; branches in order, report by report."""
        batch = tree_batch(trunks, branches)
        hidden = self.causal.model(
            input_ids=batch.ids.to(device),
            attention_mask=batch.attention.to(device),
            position_ids=batch.positions.to(device),
            use_cache=False,
        ).last_hidden_state
        ends = hidden[batch.ends[0].to(device), batch.ends[1].to(device)]
        rows = self.causal.lm_head.weight[self._letter_tokens.to(device)]
        scores = functional.linear(ends.float(), rows.float())
        return scores - scores[:, -1:]


def _flat(batch: Sequence[AdapterExample]) -> tuple[list[int], list[int], list[float], list[float]]:
    rows: list[int] = []
    columns: list[int] = []
    targets: list[float] = []
    weights: list[float] = []
    for row, branch in enumerate(branch for example in batch for branch in example.branches):
        rows += [row] * len(branch.letters)
        columns += branch.letters
        targets += branch.targets
        weights += branch.weights
    return rows, columns, targets, weights


N_COMPARED = 50
# Share of clear answers (log-odds beyond ±1 by torch) in which llama.cpp, with 8-bit weights and activations, may say the contrary.
LARGEST_DISAGREEMENT = 0.02
CLEAR_LOG_ODDS = 1.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """llama.cpp against torch on the same questions: how many, share of clear ones on the same side of 0; differences.

    `same_side` is nan when torch gives no answer beyond ±1.
    """

    n_reports: int
    n_answers: int
    n_clear: int
    same_side: float
    mean_difference: float
    largest_difference: float


@dataclass(frozen=True, slots=True)
class AdapterResult:
    """The run, and how the exported file agrees with it."""

    loop: LoopResult
    agreement: Agreement
    n_left_out: int
    n_bytes: int


def train_adapter(settings: AdapterSettings, folder: Path, *, progress: Callable[[Progress], None]) -> AdapterResult:
    """Trains in `folder`, exports to `settings.adapter`, and compares llama.cpp with torch on dev reports.

    Raises:
        ConfigError, CorpusError, ModelFileError, TrainingError, CheckpointError, TrainingStopped
    """
    task = load_task(settings.task)
    corpus = read_corpus(settings.corpus, task)
    path = settings.model or default_model()
    device = settings.loop.torch_device()
    torch.set_num_threads(settings.loop.threads)
    torch.manual_seed(settings.loop.seed)
    causal = load_causal_model(path, dtype=torch.bfloat16 if settings.loop.bf16 else torch.float32).to(device)
    lora = attach_lora(causal, rank=settings.rank, alpha=settings.alpha, first_layer=settings.first_layer)
    if settings.start is not None:
        _go_on(lora, settings.start, causal, task, alpha=settings.alpha)
    model = LoraParameters(lora)
    tokens = LlamaCppModel.load(path)
    prompt = BranchPrompt(task)

    def maker(reports: Sequence[AnnotatedReport], copies: int, seed: int, augmentation: AugmentationSettings) -> AdapterExamples:
        return AdapterExamples(
            task,
            reports,
            tokens.trunk_tokens,
            tokens.branch_tokens,
            augmentation=augmentation,
            hints=settings.hints,
            copies=copies,
            seed=seed,
            limit_tokens=settings.limit_tokens,
        )

    training = maker(corpus.splits["train"], settings.copies, settings.loop.seed, settings.augmentation)
    dev = maker(corpus.splits["dev"], 1, 0, AugmentationSettings()).examples(0)
    letter_tokens = [tokens.branch_tokens(letter)[0] for letter in prompt.letters]
    learner = AdapterLearner(causal, model, training, dev, letter_tokens)
    fingerprint = {
        "kind": "adapter",
        "task": task.name,
        "task_file": task.content_hash,
        "model": tokens.content_hash,
        "corpus": corpus.content_hash,
        "start": file_sha256(adapter_file(settings.start)) if settings.start else "zero",
        "settings": settings_hash(settings),
    }
    result = train(learner, settings.loop, folder, fingerprint=fingerprint, progress=progress)
    model.load_state_dict(dict(result.best))
    return export(learner, lora, dev, task, settings, path, result, fingerprint=fingerprint, n_left_out=training.n_left_out)


def _go_on(lora: dict[str, nn.Parameter], start: Path, causal: Any, task: Task, *, alpha: float) -> None:
    path = adapter_file(start)
    given, given_alpha = load_adapter(path, causal)
    if start.is_dir():
        named = json.loads((start / CONFIG_FILE).read_text(encoding="utf-8")).get("task")
        if named != task.name:
            raise TrainingError(f"{start}: adapter of task '{named}'; one of task '{task.name}' is expected")
    if given_alpha != alpha:
        raise TrainingError(f"{path}: has alpha {given_alpha:g}; the configuration has {alpha:g}, which would rescale it")
    if {name: tensor.shape for name, tensor in given.items()} != {name: parameter.shape for name, parameter in lora.items()}:
        raise TrainingError(f"{path}: its matrices are not those of `rank` and `first_layer` of the configuration")
    for name, parameter in lora.items():
        parameter.data.copy_(given[name])


def export(
    learner: AdapterLearner,
    lora: dict[str, nn.Parameter],
    dev: Sequence[AdapterExample],
    task: Task,
    settings: AdapterSettings,
    model_path: Path,
    result: LoopResult,
    *,
    fingerprint: dict[str, str],
    n_left_out: int,
) -> AdapterResult:
    """Writes the adapter folder. Raises TrainingError when llama.cpp does not read the file as torch does."""
    target = settings.adapter
    building = target.with_name(target.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        file = building / ADAPTER_FILE
        matrices = {name: parameter.detach() for name, parameter in lora.items()}
        save_adapter(file, learner.causal, matrices, alpha=settings.alpha, description=f"radtag {task.name}")
        agreement = compare(learner, dev[:N_COMPARED], LlamaCppModel.load(model_path, adapter=file), BranchPrompt(task))
        if math.isnan(agreement.same_side):
            raise TrainingError("torch gives no clear answer on dev, so the exported file cannot be compared; train longer")
        if agreement.same_side < 1 - LARGEST_DISAGREEMENT:
            raise TrainingError(
                f"llama.cpp and torch differ in {1 - agreement.same_side:.1%} of {agreement.n_clear} clear answers; "
                f"at most {LARGEST_DISAGREEMENT:.0%} is expected"
            )
        config = {
            "format_version": 1,
            "task": task.name,
            "question": QUESTION_FORMAT,
            "letters": list(BranchPrompt(task).letters),
            "adapter": file_sha256(file),
            "trained": fingerprint,
        }
        (building / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (building / CARD_FILE).write_text(adapter_card(task, settings, result, agreement, fingerprint), encoding="utf-8")
        n_bytes = file.stat().st_size
        put_in_place(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return AdapterResult(result, agreement, n_left_out, n_bytes)


def compare(learner: AdapterLearner, examples: Sequence[AdapterExample], model: LlamaCppModel, prompt: BranchPrompt) -> Agreement:
    """Log-odds of every asked letter, by torch in float32 and by llama.cpp."""
    learner.causal.float()
    by_torch: list[float] = []
    by_llama_cpp: list[float] = []
    device = next(learner.causal.parameters()).device
    for example in examples:
        with torch.inference_mode():
            odds = learner.log_odds([example.trunk], [[b.tokens for b in example.branches]], device).cpu().numpy()
        texts = [branch.text for branch in example.branches]
        scores = model.branch_logits(example.text, texts, prompt.letters)
        for row, branch in enumerate(example.branches):
            by_torch += odds[row][list(branch.letters)].tolist()
            by_llama_cpp += [scores[row][column] - scores[row][-1] for column in branch.letters]
    first, second = np.array(by_torch), np.array(by_llama_cpp)
    clear = np.abs(first) >= CLEAR_LOG_ODDS
    same = float(((first > 0) == (second > 0))[clear].mean()) if clear.any() else math.nan
    apart = np.abs(first - second)
    return Agreement(len(examples), len(first), int(clear.sum()), same, float(apart.mean()), float(apart.max()))


def adapter_card(
    task: Task, settings: AdapterSettings, result: LoopResult, agreement: Agreement, fingerprint: dict[str, str]
) -> str:
    """The MODEL_CARD.md of an adapter folder, from measured figures."""
    best = result.history[result.best_epoch - 1]
    loop = settings.loop
    return "\n".join(
        [
            f"# radtag adapter: {task.title}",
            "",
            "LoRA matrices for a small language model that answers, for each hinted entity key of a report, whether it",
            "is present and which values it has. It answers by the scores of single letters and writes no text; no medical device.",
            "",
            "## Training",
            f"- base model: sha256 {fingerprint['model']}",
            f"- matrices start from: {fingerprint['start']}" + ("" if settings.start is None else " (sha256 of an adapter)"),
            f"- rank {settings.rank}, alpha {settings.alpha}, layers from {settings.first_layer}; loss on answer letters only",
            f"- text: train split of `{settings.corpus}` (sha256 {fingerprint['corpus']}): **invented reports, labelled by their",
            "  authors, language models; reviewed by no radiologist**",
            f"- {loop.epochs} epochs, {settings.copies} versions of each report (augmented), batch {loop.batch_size}, "
            f"rate {loop.head_learning_rate:g}, seed {loop.seed}; {result.seconds_s / 60:.0f} min, best epoch {result.best_epoch}",
            f"- hints: {settings.hints.missed:.0%} of present keys missing, {settings.hints.wrong_named:.0%} of named but absent",
            f"  and {settings.hints.wrong_unnamed:.0%} of the others hinted wrongly",
            "",
            "## On the dev split (used to choose the epoch; invented reports)",
            f"- answers about values that the report mentions, and about presence: average precision {best['score']:.4f}, "
            f"micro F1 {best['dev_micro_f1']:.4f}",
            f"- llama.cpp against torch: {agreement.n_reports} reports, {agreement.n_answers} answers; of {agreement.n_clear} "
            f"beyond ±1 {agreement.same_side:.2%} on the same side; log-odds differ by {agreement.mean_difference:.2f}, at most "
            f"{agreement.largest_difference:.2f}",
            "",
            "Licence: Apache-2.0.",
            "",
        ]
    )
