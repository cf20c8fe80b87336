"""The one training loop: seeded, resumable, the same for pre-training and fine-tuning.

What a step does depends on the settings, the step's number and the checkpoint alone: examples and batches are drawn from (seed,
epoch), and the dropout generator's state is in the checkpoint. A run that was killed and resumed ends with the weights of an
undisturbed one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stage1_encoder.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from training.settings import LoopSettings

BEST_FILE = "best.safetensors"
RESULT_FILE = "result.json"
LOG_FILE = "log.csv"
CURVE_FILE = "curve.png"
BATCHES_PER_BUCKET = 20

Example = TypeVar("Example")


class TrainingError(Exception):
    """A run that cannot start or go on."""


class TrainingStopped(Exception):  # noqa: N818 - not an error: the user stopped the run and can resume it
    """Ctrl-C or SIGTERM, after the checkpoint was written."""


class Learner(Protocol[Example]):
    """What is trained: a model, its examples, its loss and its dev score."""

    model: nn.Module

    def examples(self, epoch: int) -> Sequence[Example]:
        """Training examples of an epoch, a pure function of the number; every epoch has as many."""
        ...

    def n_tokens(self, example: Example) -> int:
        """Length by which batches are built."""
        ...

    def loss(self, batch: Sequence[Example], device: torch.device) -> Tensor:
        """Mean loss of a batch; called under autocast."""
        ...

    def evaluate(self, device: torch.device) -> dict[str, float]:
        """Dev figures; `score` is the one to maximise."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. `loss` is the mean since the epoch began, `examples_per_s` since the process began (dev apart).

    `dev` holds the dev figures at the end of an epoch, else None.
    """

    step: int
    n_steps: int
    epoch: int
    loss: float
    examples_per_s: float
    dev: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class LoopResult:
    """`best` holds the weights of the best dev score; `seconds_s` counts every sitting of the run."""

    best: Mapping[str, Tensor]
    best_score: float
    best_epoch: int
    steps: int
    seconds_s: float
    history: Sequence[Mapping[str, float]]


def parameter_groups(model: nn.Module, settings: LoopSettings) -> list[dict[str, Any]]:
    """Every parameter in one of four groups: body or head rate, matrices with weight decay, vectors without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("body."), parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_rate": settings.learning_rate if in_body else settings.head_learning_rate,
            "lr": 0.0,
            "weight_decay": settings.weight_decay if is_matrix else 0.0,
        }
        for (in_body, is_matrix), parameters in groups.items()
    ]


def rate_factor(step: int, *, n_steps: int, warmup_share: float) -> float:
    """Share of the peak rate at a 0-based step: up over the warm-up, then linearly down to 0 after the last step."""
    warmup = max(1, round(n_steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (n_steps - step) / max(1, n_steps - warmup))


def length_batches(lengths: Sequence[int], *, batch_size: int, rng: random.Random) -> list[list[int]]:
    """Indices in batches of near lengths: shuffled, cut into buckets of 20 batches, sorted inside, batches shuffled."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    bucket = batch_size * BATCHES_PER_BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket):
        near = sorted(order[start : start + bucket], key=lambda index: lengths[index])
        batches.extend(near[at : at + batch_size] for at in range(0, len(near), batch_size))
    rng.shuffle(batches)
    return batches


def train(
    learner: Learner[Example],
    settings: LoopSettings,
    folder: Path,
    *,
    fingerprint: Mapping[str, str],
    progress: Callable[[Progress], None],
) -> LoopResult:
    """Trains, or goes on from the folder's checkpoint; leaves best.safetensors, result.json, log.csv and, if it can, curve.png.

    Args:
        fingerprint: Names and values of everything that decides the result; a checkpoint with another one is refused.
        progress: Called after every step.

    Raises:
        TrainingError: the checkpoint belongs to another configuration, or the loss is not finite.
        CheckpointError: the checkpoint is damaged or the disk refused.
        TrainingStopped: Ctrl-C or SIGTERM; the same call goes on.
    """
    run = _Run(learner, settings, folder, dict(fingerprint))
    path = latest_checkpoint(folder)
    if path is not None:
        run.restore(load_checkpoint(path))
    with _stop_signals() as stopped:
        while not run.finished:
            run.step(progress)
            if stopped() and not run.finished:
                run.save()
                raise TrainingStopped(f"stopped at step {run.steps_done} of {run.n_steps}; the same command goes on from there")
            if run.steps_done % settings.checkpoint_every_steps == 0 or run.finished:
                run.save()
    return run.result()


class _Run:
    """The state of one run; `save` and `restore` hold all of it."""

    def __init__(self, learner: Learner[Any], settings: LoopSettings, folder: Path, fingerprint: dict[str, str]) -> None:
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.learner, self.settings, self.folder, self.fingerprint = learner, settings, folder, fingerprint
        self.device = settings.torch_device()
        learner.model.to(self.device)
        self.optimiser = torch.optim.AdamW(parameter_groups(learner.model, settings), lr=settings.learning_rate)
        self.steps_done = 0
        self.history: list[dict[str, float]] = []
        self.loss_sum, self.seconds_s = 0.0, 0.0
        self.sitting_examples, self.sitting_s = 0, 0.0
        self.best: dict[str, Tensor] = {}
        self.best_score, self.best_epoch = -math.inf, 0
        self._start_epoch(0)
        self.n_steps = len(self.batches) * settings.epochs

    @property
    def epoch(self) -> int:
        return self.steps_done // len(self.batches)

    @property
    def finished(self) -> bool:
        waited = len(self.history) - self.best_epoch
        return self.steps_done >= self.n_steps or (bool(self.history) and waited >= self.settings.patience_epochs)

    def step(self, progress: Callable[[Progress], None]) -> None:
        began = time.perf_counter()
        position = self.steps_done % len(self.batches)
        if self.examples_epoch != self.epoch:
            self._start_epoch(self.epoch)
        if position == 0:
            self.loss_sum = 0.0
        epoch = self.epoch
        batch = [self.examples[index] for index in self.batches[position]]
        self.loss_sum += self._update(batch)
        self.steps_done += 1
        self.sitting_examples += len(batch)
        self.sitting_s += time.perf_counter() - began
        dev = None
        if position + 1 == len(self.batches):
            dev = self._end_epoch(epoch)
        self.seconds_s += time.perf_counter() - began
        rate = self.sitting_examples / self.sitting_s
        progress(Progress(self.steps_done, self.n_steps, epoch, self.loss_sum / (position + 1), rate, dev))

    def _update(self, batch: Sequence[Any]) -> float:
        self.learner.model.train()
        factor = rate_factor(self.steps_done, n_steps=self.n_steps, warmup_share=self.settings.warmup_share)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak_rate"] * factor
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            loss = self.learner.loss(batch, self.device)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"loss is {value} at step {self.steps_done + 1}; a lower learning_rate is expected to help")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learner.model.parameters(), self.settings.clip_norm)
        self.optimiser.step()
        return value

    def _start_epoch(self, epoch: int) -> None:
        self.examples = self.learner.examples(epoch)
        if not self.examples:
            raise TrainingError("no training example")
        self.examples_epoch = epoch
        rng = random.Random(f"{self.settings.seed}/{epoch}/batches")
        lengths = [self.learner.n_tokens(example) for example in self.examples]
        self.batches = length_batches(lengths, batch_size=self.settings.batch_size, rng=rng)

    def _end_epoch(self, epoch: int) -> dict[str, float]:
        self.learner.model.eval()
        with torch.inference_mode():
            dev = self.learner.evaluate(self.device)
        self.history.append({"epoch": epoch + 1, "step": self.steps_done, "train_loss": self.loss_sum / len(self.batches), **dev})
        if dev["score"] > self.best_score:
            self.best_score, self.best_epoch = dev["score"], epoch + 1
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.learner.model.state_dict().items()}
        self._write_log()
        return dev

    def save(self) -> None:
        tensors = {
            "weights": self.learner.model.state_dict(),
            "optimiser": {
                f"{index}.{name}": tensor
                for index, state in self.optimiser.state_dict()["state"].items()
                for name, tensor in state.items()
            },
            "best": self.best,
            "generators": {"torch": torch.get_rng_state(), **_cuda_generators()},
        }
        state = {
            "fingerprint": self.fingerprint,
            "loss_sum": self.loss_sum,
            "seconds_s": self.seconds_s,
            "history": self.history,
            "best_score": self.best_score if self.best else None,
            "best_epoch": self.best_epoch,
        }
        save_checkpoint(self.folder, step=self.steps_done, tensors=tensors, state=state)

    def restore(self, checkpoint: Checkpoint) -> None:
        state, tensors = checkpoint.state, checkpoint.tensors
        for name in sorted(set(state["fingerprint"]) | set(self.fingerprint)):
            was, now = state["fingerprint"].get(name), self.fingerprint.get(name)
            if was != now:
                raise TrainingError(
                    f"{checkpoint.path}: was made with {name} {was}, now it is {now}; choose another --out or delete the folder"
                )
        own = {name: tensor.shape for name, tensor in self.learner.model.state_dict().items()}
        if own != {name: tensor.shape for name, tensor in tensors["weights"].items()}:
            raise TrainingError(f"{checkpoint.path}: holds the weights of another model; choose another --out or delete the folder")
        self.learner.model.load_state_dict(dict(tensors["weights"]))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors["optimiser"].items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = tensor
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.steps_done = int(checkpoint.path.name.split("-")[1])
        self.loss_sum, self.seconds_s = state["loss_sum"], state["seconds_s"]
        self.history = list(state["history"])
        self.best = dict(tensors["best"])
        self.best_epoch = state["best_epoch"]
        self.best_score = -math.inf if state["best_score"] is None else state["best_score"]
        torch.set_rng_state(tensors["generators"]["torch"])
        cuda = [tensors["generators"][name] for name in sorted(tensors["generators"]) if name.startswith("cuda")]
        if cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(cuda)

    def result(self) -> LoopResult:
        save_tensors(self.folder / BEST_FILE, self.best)
        document = {
            "fingerprint": self.fingerprint,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "seconds_s": round(self.seconds_s, 1),
        }
        temporary = self.folder / (RESULT_FILE + ".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.folder / RESULT_FILE)  # noqa: PTH105
        _draw(self.history, self.folder / CURVE_FILE)
        return LoopResult(self.best, self.best_score, self.best_epoch, self.steps_done, self.seconds_s, self.history)

    def _write_log(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG_FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)


def read_run(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Best weights and fingerprint of a finished run. Raises TrainingError or CheckpointError."""
    path = folder / RESULT_FILE
    try:
        fingerprint = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    except FileNotFoundError:
        raise TrainingError(f"{path}: file does not exist; the run is not finished or {folder} is no run folder") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged ({type(error).__name__})") from None
    return load_tensors(folder / BEST_FILE), fingerprint


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Holds Ctrl-C and SIGTERM back until the step is done; a second one ends the process as usual."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    with contextlib.suppress(ValueError):  # not in the main thread: signals are the caller's business
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, remember)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cuda_generators() -> dict[str, Tensor]:
    if not torch.cuda.is_available():
        return {}
    return {f"cuda{index:02d}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}


def _draw(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss and dev score by epoch; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for name in ("train_loss", "dev_loss"):
        if name in history[0]:
            losses.plot(epochs, [row[name] for row in history], label=name)
    losses.set_xlabel("epoch")
    losses.legend()
    scores.plot(epochs, [row["score"] for row in history], label="dev score")
    scores.set_xlabel("epoch")
    scores.legend()
    figure.savefig(path, dpi=120)
