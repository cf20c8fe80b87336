"""Training of an adapter: what a branch sees, that a stopped run goes on as if undisturbed, and one small run end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from configs.contracts import EntityFlags
from configs.schema import Task
from stage1_encoder.weak_labels import KeywordFlagger
from stage2_relations.adapter_folder import adapter_file, check_adapter
from stage2_relations.branches import BranchPrompt
from stage2_relations.combine import feature_names, load_combination
from stage2_relations.model_file import default_model, file_sha256
from training import combine as combine_module
from training import weights_folder
from training.adapter import TOKEN_STEP, AdapterLearner, LoraParameters, train_adapter, tree_batch
from training.adapter_examples import AdapterExamples
from training.causal_model import attach_lora
from training.cli import app
from training.combine import combine
from training.corpus import read_corpus
from training.loop import LoopResult, Progress, TrainingError, train
from training.settings import AdapterSettings, AugmentationSettings, HintSettings, LoopSettings, read_settings

CPU = torch.device("cpu")
TRUNKS = [[1, 5, 9, 3], [1, 7, 2, 8, 8, 4, 6]]
BRANCHES = [[[11, 12], [13, 14, 15], [16]], [[17, 18]]]


def tiny_llama(*, vocabulary: int = 32) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_llama()


def ends(llama: Any, trunks: Sequence[Sequence[int]], branches: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    batch = tree_batch(trunks, branches)
    hidden = llama.model(input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.positions, use_cache=False)
    return hidden.last_hidden_state[batch.ends]


def test_a_branch_is_read_as_if_it_stood_alone_after_its_trunk(llama: Any) -> None:
    found = ends(llama, TRUNKS, BRANCHES)
    plain = [
        llama.model(input_ids=torch.tensor([[*trunk, *branch]]), use_cache=False).last_hidden_state[0, -1]
        for trunk, of in zip(TRUNKS, BRANCHES, strict=True)
        for branch in of
    ]
    torch.testing.assert_close(found, torch.stack(plain), atol=1e-5, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.01  # branches are told apart


def test_a_branch_does_not_see_its_company(llama: Any) -> None:
    others = [[[11, 12], [20, 21, 22], [23]], [[24, 25]]]
    found, changed = ends(llama, TRUNKS, BRANCHES), ends(llama, TRUNKS, others)
    torch.testing.assert_close(changed[0], found[0], atol=1e-6, rtol=1e-5)
    assert all((changed[row] - found[row]).abs().max() > 0.01 for row in (1, 2, 3))


def test_a_batch_is_padded_to_few_lengths_and_padding_is_seen_by_nobody() -> None:
    batch = tree_batch(TRUNKS, BRANCHES)
    assert batch.ids.shape == batch.positions.shape == (2, TOKEN_STEP)
    sizes = [len(trunk) + sum(map(len, of)) for trunk, of in zip(TRUNKS, BRANCHES, strict=True)]
    for row, size in enumerate(sizes):
        assert not batch.attention[row, 0, :size, size:].any()
        assert batch.attention[row, 0].any(dim=-1).all()  # a row of a softmax over nothing would be nan
    assert tree_batch([[1] * 33], [[[2]]]).ids.shape == (1, 2 * TOKEN_STEP)


@pytest.fixture
def learner(tiny_task: Task, tiny_corpus: Path) -> AdapterLearner:
    """Of the tiny task, one token a byte, on a random model."""
    llama = tiny_llama(vocabulary=256)

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def maker(split: str) -> AdapterExamples:
        return AdapterExamples(
            tiny_task,
            read_corpus(tiny_corpus, tiny_task).splits[split],  # type: ignore[index]
            tokens,
            tokens,
            augmentation=AugmentationSettings(change_case=0.5),
            hints=HintSettings(wrong_named=1),
            copies=1,
            seed=1,
            limit_tokens=400,
        )

    lora = attach_lora(llama, rank=2, alpha=4.0)
    letters = [ord(letter.strip()) for letter in BranchPrompt(tiny_task).letters]
    return AdapterLearner(llama, LoraParameters(lora), maker("train"), maker("dev").examples(0), letters)


LOOP = LoopSettings(
    seed=3,
    epochs=2,
    batch_size=5,
    learning_rate=1e-2,
    head_learning_rate=1e-2,
    patience_epochs=2,
    checkpoint_every_steps=1,
    device="cpu",
    bf16=False,
)


class Killed(Exception):  # noqa: N818  # no error of the program
    """The process ends in the middle of a step."""


def run(learner: AdapterLearner, folder: Path, *, kill_at: int | None = None) -> LoopResult:
    def progress(now: Progress) -> None:
        if now.step == kill_at:
            raise Killed

    return train(learner, LOOP, folder, fingerprint={"kind": "adapter"}, progress=progress)


def test_a_killed_run_goes_on_to_the_weights_of_an_undisturbed_one(
    learner: AdapterLearner, tiny_task: Task, tiny_corpus: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    start = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    whole = run(learner, tmp_path / "whole")
    assert any(not torch.equal(whole.best[name], start[name]) for name in start)
    learner.model.load_state_dict(start)
    with pytest.raises(Killed):
        run(learner, tmp_path / "killed", kill_at=6)
    for parameter in learner.model.parameters():  # what was in memory is gone
        torch.nn.init.zeros_(parameter)
    resumed = run(learner, tmp_path / "killed")
    assert resumed.steps == whole.steps
    assert set(resumed.best) == set(whole.best)
    assert all(torch.equal(resumed.best[name], whole.best[name]) for name in whole.best)
    assert [row["dev_loss"] for row in resumed.history] == [row["dev_loss"] for row in whole.history]


def test_training_lowers_the_loss_on_what_it_was_shown(learner: AdapterLearner) -> None:
    batch = learner.examples(0)[:6]
    optimiser = torch.optim.AdamW(learner.model.parameters(), lr=5e-2)
    losses = []
    for _ in range(15):
        loss = learner.loss(batch, CPU)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_a_report_of_which_nothing_is_asked_teaches_nothing_and_breaks_nothing(learner: AdapterLearner) -> None:
    """Drawn hints can leave a report without a question, a batch of such reports too."""
    asked = learner.examples(0)[0]
    nothing = replace(asked, branches=())
    assert learner.log_odds([nothing.trunk], [[]], CPU).shape == (0, len(learner._letter_tokens))
    assert float(learner.loss([nothing], CPU).detach()) == 0.0
    torch.testing.assert_close(learner.loss([asked, nothing], CPU), learner.loss([asked], CPU))


SITES = {"rul": ["{} in the RUL.", "RUL {}."], "lul": ["{}, LUL, no change.", "LUL: {} seen."]}
WORDS = {"nodule": ["Nodule", "결절"], "mass": ["Mass", "종괴"]}


def placed_reports(n_reports: int, *, prefix: str) -> list[dict[str, object]]:
    """Short reports of every subset of the keys, whose labels follow their texts."""
    rows = []
    for number in range(n_reports):
        lines, labels = [], {}
        for bit, key in enumerate(("nodule", "mass")):
            site = ("rul", "lul")[(number // 8 + bit) % 2]
            word = WORDS[key][number % 2]
            if (number >> bit) & 1:
                lines.append(SITES[site][number % 2].format(word))
                labels[key] = [site]
            else:
                lines.append(f"No {key}.")
        if (number >> 2) & 1:
            lines.append("Pleural effusion.")
            labels["effusion"] = ["pleural"]
        else:
            lines.append("흉수 없음.")
        rows.append({"report_id": f"{prefix}{number}", "task": "tiny", "text": "\n".join(lines), "labels": labels})
    return rows


def write_split(folder: Path, name: str, rows: Sequence[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def adapter_yaml(tmp_path: Path, tiny_task_file: Path) -> Path:
    """Two steps on six reports, matrices in the last of 30 layers alone."""
    corpus = tmp_path / "placed"
    write_split(corpus, "train", placed_reports(6, prefix="t"))
    write_split(corpus, "dev", placed_reports(40, prefix="d")[1:7])
    content = {
        "task": str(tiny_task_file),
        "corpus": str(corpus),
        "adapter": str(tmp_path / "adapter"),
        "rank": 2,
        "alpha": 4.0,
        "first_layer": 29,
        "hints": {"wrong_named": 1},
        "loop": {**LOOP.model_dump(), "epochs": 1, "batch_size": 3, "head_learning_rate": 1e-3},
    }
    path = tmp_path / "adapter_tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


class KeywordStage1:
    """Stage 1 by keywords, in place of weights that the tiny task has not."""

    content_hash = "keywords"

    def __init__(self, task: Task) -> None:
        self._flagger = KeywordFlagger(task)

    @classmethod
    def load(cls, folder: Path, *, task: Task) -> KeywordStage1:
        return cls(task)

    def flag(self, texts: Sequence[str]) -> list[EntityFlags]:
        return self._flagger.flag(texts)


@pytest.mark.llm
@pytest.mark.slow
def test_a_small_run_ends_in_a_folder_that_llama_cpp_reads_as_torch_does_and_that_combine_completes(
    adapter_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_task: Task
) -> None:
    result = CliRunner().invoke(app, ["adapter", str(adapter_yaml), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "n=6 reports" in result.output
    folder = tmp_path / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == ["MODEL_CARD.md", "adapter.gguf", "config.json"]
    check_adapter(folder, model=default_model(), task_name="tiny")
    assert adapter_file(folder).stat().st_size < 1_000_000
    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    assert "reviewed by no radiologist" in card and "rank 2, alpha 4, layers from 29" in card

    settings = read_settings(adapter_yaml, AdapterSettings)
    for changed, message in (
        ({"rank": 3}, r"adapter\.gguf: its matrices are not those of `rank` and `first_layer`"),
        ({"alpha": 8}, r"adapter\.gguf: has alpha 4; the configuration has 8"),
    ):
        with pytest.raises(TrainingError, match=message):
            train_adapter(settings.model_copy(update={"start": folder, **changed}), tmp_path / "x", progress=lambda progress: None)

    corpus = tmp_path / "for_combine"
    write_split(corpus, "train", placed_reports(6, prefix="t"))
    write_split(corpus, "dev", placed_reports(40, prefix="d"))
    monkeypatch.setattr(combine_module, "Encoder", KeywordStage1)
    fitted = combine(settings.model_copy(update={"corpus": corpus}))
    combination = load_combination(folder / "combine.json", task_name="tiny", adapter=file_sha256(folder / "adapter.gguf"))
    assert fitted.combinations == {"model": combination}
    assert combination.task == "tiny"
    assert (tuple(combination.presence_weights), tuple(combination.relation_weights)) == feature_names("model")
    assert fitted.n_presence == 40 * 3
    assert combination.presence_weights["asserted"] > 0  # the texts are such that keywords are right
    assert combination.relation_weights["linked"] > 0
    said = json.loads((folder / "combine.json").read_text("utf-8"))["fitted"]
    assert said["adapter"] == json.loads((folder / "config.json").read_text("utf-8"))["adapter"]
    assert (said["encoder"], said["n_reports"], said["n_presence"]) == ("keywords", 40, 120)
    check_adapter(folder, model=default_model(), task_name="tiny")  # combine.json beside it changes nothing


@pytest.mark.parametrize("command", ["adapter", "combine"])
def test_an_adapter_that_ships_is_not_replaced_unasked(
    adapter_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(weights_folder, "PACKAGES", (tmp_path / "adapter",))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "combine.json").write_text("fitted before")
    result = CliRunner().invoke(app, [command, str(adapter_yaml)])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "ships with radtag; name another folder under 'adapter' in the settings, or give --replace" in result.output
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["combine.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rnak": 3}, "'rnak' is not known; did you mean 'rank'?"),
        ({"corpus": "nowhere"}, "nowhere: is no folder"),
        ({"model": "nowhere.gguf"}, "nowhere.gguf"),
    ],
)
def test_a_wrong_setting_is_one_line(adapter_yaml: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    adapter_yaml.write_text(yaml.safe_dump({**yaml.safe_load(adapter_yaml.read_text()), **change}), encoding="utf-8")
    result = CliRunner().invoke(app, ["adapter", str(adapter_yaml), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2, result.exception
    assert result.output.strip().count("\n") == 0
    assert message in result.output
    assert not (tmp_path / "adapter").exists()
