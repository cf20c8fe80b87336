"""The model that is trained is the one that tags: its weights out of the GGUF file, and its adapter back into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from configs.schema import load_task
from stage2_relations.branches import BranchPrompt
from stage2_relations.llama_cpp import LlamaCppModel
from stage2_relations.model_file import GGUF_MAGIC, default_model
from training.causal_model import (
    _rotation_halves_apart,
    _rotation_pairs_together,
    attach_lora,
    load_adapter,
    load_causal_model,
    save_adapter,
)
from training.loop import TrainingError

# llama.cpp rounds activations to 8 bits: on these texts scores differ from float32 by this much at most.
TOLERANCE = 0.75
TASK = load_task("chest_ct")
PROMPT = BranchPrompt(TASK)


def tiny_llama(*, layers: int = 3) -> Any:
    """Random weights, 2 query heads a key head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


@pytest.mark.llm
def test_scores_of_the_unpacked_file_are_those_of_llama_cpp() -> None:
    path = default_model()
    causal = load_causal_model(path, dtype=torch.float32)
    model = LlamaCppModel.load(path)
    letters = PROMPT.letters
    columns = [model.branch_tokens(letter)[0] for letter in letters]
    apart: dict[tuple[int, int], float] = {}
    texts = ["8 mm solid nodule in RUL. 좌하엽의 경화.", "Normal chest CT.", "LUL 종괴 3.2 cm, 흉수 동반."]
    questions = [PROMPT.question(text, ["nodule", "mass"], ["nodule"]) for text in texts]
    branch = "\nnodule:"
    trunks = [question.trunk + question.branches[0].removesuffix(branch) for question in questions]
    by_llama_cpp = [np.array(model.branch_logits(trunk, [branch], letters)[0]) for trunk in trunks]
    for row, trunk in enumerate(trunks):
        ids = torch.tensor([[*model.trunk_tokens(trunk), *model.branch_tokens(branch)]])
        with torch.inference_mode():
            by_torch = causal(input_ids=ids, use_cache=False).logits[0, -1, columns].numpy()
        for column, other in enumerate(by_llama_cpp):
            apart[row, column] = float(np.abs(by_torch - other).max())
    own = max(apart[row, row] for row in range(len(texts)))
    assert own <= TOLERANCE, apart
    assert min(value for (row, column), value in apart.items() if row != column) > own, apart  # other texts are told apart
    assert not any(parameter.requires_grad for parameter in causal.parameters())
    model.close()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 5), st.integers(0, 2**16))
def test_the_two_orders_of_a_rotation_lead_back_to_each_other(n_heads: int, half: int, width: int, seed: int) -> None:
    matrix = torch.from_numpy(np.random.default_rng(seed).standard_normal((n_heads * 2 * half, width)))
    assert torch.equal(_rotation_halves_apart(_rotation_pairs_together(matrix, n_heads), n_heads), matrix)
    assert torch.equal(_rotation_pairs_together(_rotation_halves_apart(matrix, n_heads), n_heads), matrix)


def test_rotation_rows_are_pairs_in_llama_cpp_and_halves_in_torch() -> None:
    rows = torch.arange(8.0)[:, None]  # two heads of four rows
    assert _rotation_pairs_together(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def gguf_file(path: Path, *, architecture: str = "llama", fields: bool = True, tensor: str = "token_embd.weight") -> Path:
    """A GGUF file of one tensor."""
    writer = GGUFWriter(path, architecture)
    if fields:
        writer.add_block_count(1)
        writer.add_context_length(16)
        writer.add_embedding_length(8)
        writer.add_feed_forward_length(8)
        writer.add_head_count(2)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
    writer.add_tensor("token_embd.weight", np.zeros((64, 8), dtype=np.float32))
    if tensor != "token_embd.weight":
        writer.add_tensor(tensor, np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, r"m\.gguf: holds a 'gpt2' model; adapters are trained for the llama architecture"),
        ({"fields": False}, "has no 'llama.attention.head_count'"),
        ({"tensor": "blk.0.attn_q.bias"}, r"m\.gguf: has a tensor 'blk\.0\.attn_q\.bias' that a plain llama model has not"),
        ({"tensor": "blk.0.ffn_gate_exps.weight"}, "has a tensor 'blk.0.ffn_gate_exps.weight'"),
        ({"tensor": "rope_freqs.weight"}, "has a tensor 'rope_freqs.weight'"),
        ({"tensor": "blk.0.attn_q.weight"}, r"m\.gguf: its tensors are not those of a llama model"),
    ],
)
def test_a_model_of_another_kind_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_causal_model(gguf_file(tmp_path / "m.gguf", **changes), dtype=torch.float32)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda whole: b"no model at all, but long enough to be read", id="other file"),
        pytest.param(lambda whole: GGUF_MAGIC, id="magic alone"),
        pytest.param(lambda whole: whole[:100], id="cut in the fields"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="cut in a tensor"),
    ],
)
def test_a_file_that_is_cut_or_none_is_named(tmp_path: Path, content: Any) -> None:
    whole = gguf_file(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content(whole))
    with pytest.raises(TrainingError, match=r"cut\.gguf: cannot be read as GGUF"):
        load_causal_model(path, dtype=torch.float32)


def test_lora_stands_from_the_first_layer_on_and_changes_nothing_before_it_is_trained() -> None:
    model = tiny_llama()
    ids = torch.tensor([[1, 2, 3, 4]])
    before = model(input_ids=ids).logits
    lora = attach_lora(model, rank=4, alpha=8.0, first_layer=1)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert {name.split(".")[1] for name in lora} == {"1", "2"}
    assert {name.split(".")[-1] for name in lora} == {"lora_A", "lora_B"}
    assert len(lora) == 2 * 7 * 2  # layers, linears, sides
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        f"model.{name}.default.weight" for name in lora
    }


def test_a_saved_adapter_has_llama_cpps_names_and_row_order(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    lora = attach_lora(model, rank=4, alpha=8.0, first_layer=1)
    for number, parameter in enumerate(lora.values()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    save_adapter(tmp_path / "a.gguf", model, {name: p.detach() for name, p in lora.items()}, alpha=8.0, description="radtag")
    reader = GGUFReader(tmp_path / "a.gguf")
    read = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    fields = {name: reader.get_field(name).contents() for name in ("general.architecture", "adapter.type", "adapter.lora.alpha")}
    assert fields == {"general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(read) == {f"blk.1.{part}.weight.lora_{side}" for part in parts for side in "ab"}

    def given(name: str) -> np.ndarray[Any, Any]:
        return lora[f"layers.1.self_attn.{name}"].detach().half().numpy()

    assert np.array_equal(read["blk.1.attn_q.weight.lora_a"], given("q_proj.lora_A"))
    assert np.array_equal(read["blk.1.attn_v.weight.lora_b"], given("v_proj.lora_B"))
    q, k = given("q_proj.lora_B"), given("k_proj.lora_B")
    assert np.array_equal(read["blk.1.attn_q.weight.lora_b"], _rotation_pairs_together(torch.from_numpy(q), 4).numpy())
    assert np.array_equal(read["blk.1.attn_k.weight.lora_b"], _rotation_pairs_together(torch.from_numpy(k), 2).numpy())
    assert not np.array_equal(read["blk.1.attn_k.weight.lora_b"], k)


def test_training_goes_on_from_a_saved_adapter(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    lora = attach_lora(model, rank=4, alpha=8.0, first_layer=1)
    for number, parameter in enumerate(lora.values()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    given = {name: parameter.detach().half().float() for name, parameter in lora.items()}
    save_adapter(tmp_path / "a.gguf", model, given, alpha=8.0, description="radtag")
    found, alpha = load_adapter(tmp_path / "a.gguf", model)
    assert alpha == 8.0
    assert set(found) == set(given)
    assert all(torch.equal(found[name], given[name]) for name in given)


@pytest.mark.parametrize(
    ("tensor", "message"), [("token_embd.weight", "which is no LoRA matrix"), (None, "cannot be read as a GGUF adapter")]
)
def test_what_is_no_adapter_is_no_start(tmp_path: Path, tensor: str | None, message: str) -> None:
    path = tmp_path / "a.gguf"
    if tensor is None:
        path.write_bytes(b"GGUF, but no more")
    else:
        gguf_file(path)
    with pytest.raises(TrainingError, match=rf"a\.gguf: .*{message}"):
        load_adapter(path, tiny_llama())
