"""A causal model for training, with the weights of the very GGUF file that tags; LoRA matrices by peft; and their GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.loop import TrainingError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def load_causal_model(path: Path, *, dtype: torch.dtype) -> Any:
    """A frozen LlamaForCausalLM with the weights of a GGUF file unpacked to `dtype`.

    transformers' own GGUF reader keeps the weights packed and multiplies in float32, ten times slower here.

    Raises:
        TrainingError: no GGUF file of the llama architecture.
    """
    from gguf import GGUFReader, dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise TrainingError(f"{path}: cannot be read as GGUF: {error}") from None
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise TrainingError(f"{path}: holds a '{architecture}' model; adapters are trained for the llama architecture")
    tensors = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).astype(np.float32)) for t in reader.tensors}
    n_heads = int(_field(reader, "llama.attention.head_count"))
    n_kv_heads = int(_field(reader, "llama.attention.head_count_kv"))
    config = LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=int(_field(reader, "llama.embedding_length")),
        intermediate_size=int(_field(reader, "llama.feed_forward_length")),
        num_hidden_layers=int(_field(reader, "llama.block_count")),
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=int(_field(reader, "llama.context_length")),
        rms_norm_eps=float(_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(_field(reader, "llama.rope.freq_base"))},
        tie_word_embeddings="output.weight" not in tensors,
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    state = {}
    for name, tensor in tensors.items():
        own = _transformers_name(name)
        if own is None:
            raise TrainingError(f"{path}: has a tensor '{name}' that a plain llama model has not")
        for part, heads in (("q_proj", n_heads), ("k_proj", n_kv_heads)):
            if f".{part}." in own:
                tensor = _rotation_halves_apart(tensor, heads)
        state[own] = tensor.to(dtype)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError:  # its message lists every tensor
        raise TrainingError(f"{path}: its tensors are not those of a llama model with these fields") from None
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # its buffers are no weights: made anew off "meta"
    return model.requires_grad_(False).eval()


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise TrainingError(f"the GGUF file has no '{name}'")
    return field.contents()


def _transformers_name(name: str) -> str | None:
    plain = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in plain:
        return plain[name]
    if not name.startswith("blk."):
        return None
    _, layer, part, kind = name.split(".")
    inner = {short: long for long, short in GGUF_NAMES.items()} | {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    return f"model.layers.{layer}.{inner[part]}.weight" if part in inner and kind == "weight" else None


def attach_lora(model: Any, *, rank: int, alpha: int, first_layer: int = 0) -> dict[str, nn.Parameter]:
    """Puts LoRA matrices beside every linear layer from `first_layer` on, named as `layers.N.self_attn.q_proj.lora_A`."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = list(range(first_layer, model.config.num_hidden_layers))
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), layers_to_transform=layers, lora_dropout=0.0)
    inject_adapter_in_model(config, model)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            found[name.removeprefix("model.").removesuffix(".default.weight")] = parameter
        else:
            parameter.requires_grad_(False)
    return found


def save_adapter(path: Path, model: Any, lora: dict[str, Tensor], *, alpha: int, description: str) -> None:
    """Writes the matrices as a GGUF adapter file (float16), as llama.cpp's convert_lora_to_gguf.py lays them out.

    llama.cpp keeps the rows of q and k in another order than transformers (pairs of a rotation side by side); those of their B
    matrices are brought into its order.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_string("general.description", description)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name in sorted(lora):
        _, layer, block, linear, side = name.split(".")
        matrix = lora[name].detach().float().cpu()
        if side == "lora_B" and linear in heads:
            matrix = _rotation_pairs_together(matrix, heads[linear])
        writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[f'{block}.{linear}']}.weight.{side.lower()}", matrix.numpy().astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_adapter(path: Path, model: Any) -> tuple[dict[str, Tensor], float]:
    """The matrices of a GGUF adapter file by the names of `attach_lora`, float32, and its alpha: the inverse of `save_adapter`.

    Raises:
        TrainingError: no GGUF adapter, or one with a matrix that no linear layer has.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise TrainingError(f"{path}: cannot be read as a GGUF adapter: {error}") from None
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    own = {short: long for long, short in GGUF_NAMES.items()}
    found: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        match tensor.name.split("."):
            case ["blk", layer, part, "weight", ("lora_a" | "lora_b") as side] if part in own:
                pass
            case _:
                raise TrainingError(f"{path}: has '{tensor.name}', which is no LoRA matrix of a linear layer")
        matrix = torch.from_numpy(tensor.data.astype(np.float32))
        linear = own[part].split(".")[1]
        if side == "lora_b" and linear in heads:
            if matrix.shape[0] % (2 * heads[linear]):
                raise TrainingError(f"{path}: '{tensor.name}' has {matrix.shape[0]} rows, which this model's heads cannot share")
            matrix = _rotation_halves_apart(matrix, heads[linear])
        found[f"layers.{layer}.{own[part]}.{side[:-1]}{side[-1].upper()}"] = matrix
    return found, float(_field(reader, "adapter.lora.alpha"))


def _rotation_pairs_together(matrix: Tensor, n_heads: int) -> Tensor:
    rows, width = matrix.shape
    return matrix.reshape(n_heads, 2, rows // n_heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _rotation_halves_apart(matrix: Tensor, n_heads: int) -> Tensor:
    rows, width = matrix.shape
    return matrix.reshape(n_heads, rows // n_heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width).contiguous()
