"""Writes a KeyFlagModel as ONNX, float32 or int8, reads it back, and gives the logits of both to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from stage1_encoder.encoder import open_session, run_window
from stage1_encoder.int8 import FloatArray, layer_inputs
from stage1_encoder.marks import MarkedWindow, mark_matrix
from stage1_encoder.model import EncoderShape, KeyFlagModel
from stage1_encoder.onnx_graph import encoder_graph


def export_float(model: KeyFlagModel, path: Path) -> None:
    """Writes the float32 model: the yardstick for int8, and proof that the graph is the torch model."""
    _write(encoder_graph(model.eval().float().cpu(), None), path)


def export_int8(model: KeyFlagModel, path: Path, *, windows: Sequence[MarkedWindow]) -> None:
    """Writes the model with int8 dense layers and tables.

    Args:
        windows: Of training reports; they say how large the layers' inputs get. 150 are enough.

    Raises:
        ValueError: there is no window.
    """
    model = model.eval().float().cpu()
    _write(encoder_graph(model, layer_inputs(model, windows)), path)


def _write(graph: onnx.ModelProto, path: Path) -> None:
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def read_back(path: Path) -> KeyFlagModel:
    """The torch model whose float32 weights are those that an int8 file stands for."""
    graph = onnx.load(path).graph
    found = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    heads = next(helper.get_node_attr_value(node, "num_heads") for node in graph.node if node.op_type == "MultiHeadAttention")
    n_layers = sum(node.op_type == "MultiHeadAttention" for node in graph.node)
    n_tokens, width = found["positions"].shape
    wide = found["layer0/wide/bias"].shape[0]
    shape = EncoderShape(n_layers, width, heads, wide, n_tokens, 0.0)
    n_keys, n_marks = found["head/bias"].shape[0], found["marks/own"].shape[0]
    model = KeyFlagModel(shape, vocabulary_size=found["words"].shape[0], pad_id=0, n_keys=n_keys, n_marks=n_marks).eval()
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    state |= {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    state["body.embeddings.word_embeddings.weight"] = found["words"].float() * found["words/scales"]
    state["body.embeddings.position_embeddings.weight"] = found["positions"]
    state["mark_embeddings"], state["shared_mark_embedding"] = found["marks/own"], found["marks/shared"]
    _put_norm(state, "body.embeddings.LayerNorm", found, "norm")
    for number in range(n_layers):
        layer, place = f"body.encoder.layer.{number}", f"layer{number}"
        _put_dense(state, [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")], found, f"{place}/attention")
        _put_dense(state, [f"{layer}.attention.output.dense"], found, f"{place}/attended")
        _put_norm(state, f"{layer}.attention.output.LayerNorm", found, f"{place}/attended/norm")
        _put_dense(state, [f"{layer}.intermediate.dense"], found, f"{place}/wide")
        _put_dense(state, [f"{layer}.output.dense"], found, f"{place}/narrow")
        _put_norm(state, f"{layer}.output.LayerNorm", found, f"{place}/narrow/norm")
    vectors: tuple[torch.Tensor, ...] = torch.split(found["head/vectors"].T, n_keys)
    state["head.queries"], state["head.weights"], state["head.mention_weights"] = vectors
    for name in ("mark_pull", "bias", "mention_bias"):
        state[f"head.{name}"] = found[f"head/{name}"]
    model.load_state_dict(state)
    return model


def _put_norm(state: dict[str, torch.Tensor], name: str, found: Mapping[str, torch.Tensor], place: str) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = found[f"{place}/weight"], found[f"{place}/bias"]


def _put_dense(state: dict[str, torch.Tensor], names: Sequence[str], found: Mapping[str, torch.Tensor], place: str) -> None:
    whole = found[f"{place}/weights"].float() * found[f"{place}/scales"] * found[f"{place}/smoothing"][:, None]
    parts = zip(names, whole.T.chunk(len(names)), found[f"{place}/bias"].chunk(len(names)), strict=True)
    for name, weight, bias in parts:
        state[f"{name}.weight"], state[f"{name}.bias"] = weight.contiguous(), bias


def torch_logits(model: KeyFlagModel, windows: Sequence[MarkedWindow]) -> FloatArray:
    """Logits [windows, keys] of the torch model, one window at a time in float32."""
    model = model.eval().float()
    n_marks = model.mark_embeddings.shape[0]
    with torch.inference_mode():
        rows = [
            model(torch.tensor([window.ids]), torch.from_numpy(mark_matrix(window, n_marks))[None]).numpy() for window in windows
        ]
    return np.concatenate(rows)


def onnx_logits(path: Path, windows: Sequence[MarkedWindow], *, n_marks: int) -> FloatArray:
    """Logits [windows, keys] of an exported model."""
    session = open_session(path)
    return np.stack([run_window(session, window, n_marks) for window in windows])
