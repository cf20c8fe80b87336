from __future__ import annotations

import itertools
import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stage1_encoder.checkpoint import CheckpointError, latest_checkpoint
from stage1_encoder.model import EncoderShape, KeyFlagModel, MaskedTokenModel
from training import loop as module
from training.loop import Progress, TrainingError, TrainingStopped, length_batches, parameter_groups, rate_factor, read_run, train
from training.settings import LoopSettings

SETTINGS = LoopSettings(
    seed=3,
    epochs=4,
    batch_size=3,
    learning_rate=0.01,
    head_learning_rate=0.02,
    patience_epochs=4,
    checkpoint_every_steps=3,
    device="cpu",
    bf16=False,
)
SHAPE = EncoderShape(layers=1, width=16, heads=2, feed_forward=32, window_tokens=16)


class SumLearner:
    """Learns sums of numbers, with dropout so that the generator's state matters, and a score that can be scripted."""

    def __init__(self, scores: Sequence[float] = ()) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.scores = list(scores)
        self.n_evaluations = 0

    def examples(self, epoch: int) -> list[tuple[float, ...]]:
        rng = random.Random(epoch)
        return [tuple(rng.random() for _ in range(4)) for _ in range(11)]

    def n_tokens(self, example: tuple[float, ...]) -> int:
        return int(example[0] * 100)

    def loss(self, batch: Sequence[tuple[float, ...]], device: torch.device) -> Tensor:
        numbers = torch.tensor(batch)
        return (self.model(numbers)[:, 0] - numbers.sum(dim=1)).square().mean()

    def evaluate(self, device: torch.device) -> dict[str, float]:
        self.n_evaluations += 1
        if self.scores:
            return {"score": self.scores[self.n_evaluations - 1]}
        numbers = torch.ones(2, 4)
        return {"score": -float((self.model(numbers)[:, 0] - 4).square().mean())}


def _ignore(_: Progress) -> None:
    return None


def _run(learner: SumLearner, folder: Path, *, settings: LoopSettings = SETTINGS, progress: object = _ignore) -> dict[str, Tensor]:
    return dict(train(learner, settings, folder, fingerprint={"corpus": "a"}, progress=progress).best)  # type: ignore[arg-type]


@pytest.mark.parametrize("stop_at", [1, 4, 5, 9, 15])
def test_a_killed_and_resumed_run_ends_as_an_undisturbed_one(tmp_path: Path, stop_at: int) -> None:
    whole = SumLearner()
    _run(whole, tmp_path / "whole")

    def kill(progress: Progress) -> None:
        if progress.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStopped, match=f"stopped at step {stop_at} of 16"):
        _run(SumLearner(), tmp_path / "parts", progress=kill)
    torch.rand(7)  # another state of the generator than at the kill
    resumed = SumLearner()
    best = _run(resumed, tmp_path / "parts")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    expected, _ = read_run(tmp_path / "whole")
    assert all(torch.equal(best[name], expected[name]) for name in expected)
    assert (tmp_path / "whole" / "log.csv").read_text() == (tmp_path / "parts" / "log.csv").read_text()


def test_a_power_cut_costs_only_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    whole = SumLearner()
    _run(whole, tmp_path / "whole")

    def cut(progress: Progress) -> None:
        if progress.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(SumLearner(), tmp_path / "parts", progress=cut)
    latest = latest_checkpoint(tmp_path / "parts")
    assert latest is not None
    assert latest.name == "step-00000006"
    resumed = SumLearner()
    _run(resumed, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = _run(SumLearner(), tmp_path)
    again = SumLearner()
    assert all(torch.equal(first[name], tensor) for name, tensor in _run(again, tmp_path).items())
    assert again.n_evaluations == 0


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    _run(SumLearner(), tmp_path)
    with pytest.raises(TrainingError, match="was made with corpus a, now it is b"):
        train(SumLearner(), SETTINGS, tmp_path, fingerprint={"corpus": "b"}, progress=_ignore)


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    _run(SumLearner(), tmp_path)
    other = SumLearner()
    other.model = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.3), nn.Linear(9, 1))
    with pytest.raises(TrainingError, match="holds the weights of another model"):
        _run(other, tmp_path)


def test_a_corrupted_checkpoint_is_named_and_not_passed_over(tmp_path: Path) -> None:
    _run(SumLearner(), tmp_path)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    file = latest / "optimiser.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"optimiser\.safetensors: does not match its sha256"):
        _run(SumLearner(), tmp_path)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"patience_epochs": 2})
    learner = SumLearner(scores=[0.1, 0.9, 0.5, 0.8])
    result = train(learner, settings.model_copy(update={"epochs": 9}), tmp_path, fingerprint={}, progress=_ignore)
    assert (result.best_epoch, result.best_score, len(result.history)) == (2, 0.9, 4)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class Exploding(SumLearner):
        def loss(self, batch: Sequence[tuple[float, ...]], device: torch.device) -> Tensor:
            return super().loss(batch, device) * float("nan")

    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        _run(Exploding(), tmp_path)


def test_the_optimiser_holds_every_parameter() -> None:
    """Mistake 3: parameters of the attention head missing from the optimiser."""
    models: list[nn.Module] = [
        KeyFlagModel(SHAPE, vocabulary_size=50, pad_id=0, n_keys=3),
        MaskedTokenModel(SHAPE, vocabulary_size=50, pad_id=0),
    ]
    for model in models:
        groups = parameter_groups(model, SETTINGS)
        held = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
        for group in groups:
            assert (group["weight_decay"] > 0) == all(parameter.ndim >= 2 for parameter in group["params"])
    head = {id(parameter) for name, parameter in models[0].named_parameters() if not name.startswith("body.")}
    rates = {id(p): group["peak_rate"] for group in parameter_groups(models[0], SETTINGS) for p in group["params"]}
    assert all((rate == 0.02) == (parameter in head) for parameter, rate in rates.items())


def test_a_step_moves_every_parameter_of_the_head(tmp_path: Path) -> None:
    """Mistake 3 again, by what a step does."""
    torch.manual_seed(0)
    model = KeyFlagModel(SHAPE, vocabulary_size=50, pad_id=0, n_keys=3)

    class OneStep(SumLearner):
        def __init__(self) -> None:
            super().__init__(scores=[1.0])
            self.model = model

        def examples(self, epoch: int) -> list[tuple[float, ...]]:
            return [(5.0, 6.0, 7.0, 8.0)]

        def loss(self, batch: Sequence[tuple[float, ...]], device: torch.device) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(
                model(torch.tensor(batch).long(), torch.eye(4, 3)[None]), torch.ones(1, 3)
            )

    before = {name: parameter.clone() for name, parameter in model.head.named_parameters()}
    train(OneStep(), SETTINGS.model_copy(update={"epochs": 1}), tmp_path, fingerprint={}, progress=_ignore)
    for name, parameter in model.head.named_parameters():
        assert not torch.equal(before[name], parameter), name


def test_batches_hold_every_example_once_and_near_lengths() -> None:
    lengths = [random.Random(n).randint(1, 300) for n in range(205)]
    batches = length_batches(lengths, batch_size=8, rng=random.Random(0))
    assert sorted(index for batch in batches for index in batch) == list(range(205))
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)
    assert batches == length_batches(lengths, batch_size=8, rng=random.Random(0))


def test_the_rate_rises_and_falls_to_zero() -> None:
    factors = [rate_factor(step, n_steps=100, warmup_share=0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[100] == 0
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_log_and_curve_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _run(SumLearner(), tmp_path)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "epoch,step,train_loss,score"
    assert len(rows) == 5
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "result.json").read_text())["fingerprint"] == {"corpus": "a"}


def test_an_unfinished_run_cannot_be_a_start(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"result\.json: file does not exist; the run is not finished"):
        read_run(tmp_path)
    assert module.RESULT_FILE == "result.json"
