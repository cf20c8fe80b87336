"""Exports a KeyFlagModel to ONNX and to int8, and measures what each step costs in logits."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from stage1_encoder.encoder import open_session
from stage1_encoder.model import KeyFlagModel

OPSET = 18
# Weights with a side shorter than this stay float32: they are small, and the head's are among them.
SMALLEST_SIDE = 16
FloatArray = np.ndarray[Any, np.dtype[np.float32]]


def export_float(model: KeyFlagModel, path: Path, *, window_tokens: int) -> None:
    """Writes a float32 model: `token_ids` [1, tokens] (int64, 3 to `window_tokens`) to `logits` [1, keys]."""
    model = model.eval().float().cpu()
    # The exporter talks on standard output and through warnings whatever `verbose` says.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.zeros((1, 9), dtype=torch.int64),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["token_ids"],
            output_names=["logits"],
            dynamic_shapes={"token_ids": {1: torch.export.Dim("tokens", min=2, max=window_tokens)}},
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    graph = program.model_proto
    _strip(graph)
    onnx.save(graph, path)


def quantise(float_path: Path, path: Path) -> None:
    """Writes the model with int8 weights: a scale for every output of a dense layer, and for every row of an embedding table.

    Activations stay float. With int8 activations (onnxruntime's dynamic quantisation) a report takes 13 ms in place of 28, but dev
    average precision falls from 0.9375 to 0.9306 (n=80, one logit moves by 3), and flags differ between processors with and without
    VNNI. The weights are written as Cast(int8) * scale, which onnxruntime folds to float32 once when it opens the file.
    """
    model = onnx.load(float_path)
    graph = model.graph
    tables = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        name = "" if place is None else node.input[place]
        tensor = tables.get(name)
        if tensor is None or place is None or uses[name] > 1 or len(tensor.dims) != 2 or min(tensor.dims) < SMALLEST_SIDE:
            nodes.append(node)
            continue
        whole = numpy_helper.to_array(tensor)
        rounded, scales = _int8(whole, axis=1 - place)
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [numpy_helper.from_array(rounded, f"{name}/int8"), numpy_helper.from_array(scales, f"{name}/scale")]
        )
        nodes.extend(_folded_weight(node, name) if place == 1 else _gathered_rows(node, name))
    del graph.node[:]
    graph.node.extend(nodes)
    _strip(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _int8(whole: FloatArray, *, axis: int) -> tuple[np.ndarray[Any, np.dtype[np.int8]], FloatArray]:
    """Rounded weights and their scales; one scale for each slice that `axis` runs through (0: a column, 1: a row)."""
    scales = np.maximum(np.abs(whole).max(axis=axis, keepdims=True), 1e-12) / 127.0
    return np.rint(whole / scales).astype(np.int8), scales.astype(np.float32)


def _folded_weight(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    node.input[1] = f"{name}/float"
    return [
        helper.make_node("Cast", [f"{name}/int8"], [f"{name}/cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}/cast", f"{name}/scale"], [f"{name}/float"]),
        node,
    ]


def _gathered_rows(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    rows, output = node.input[1], node.output[0]
    return [
        helper.make_node("Gather", [f"{name}/int8", rows], [f"{name}/rows"], axis=0),
        helper.make_node("Gather", [f"{name}/scale", rows], [f"{name}/row_scales"], axis=0),
        helper.make_node("Cast", [f"{name}/rows"], [f"{name}/row_cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}/row_cast", f"{name}/row_scales"], [output]),
    ]


def torch_logits(model: KeyFlagModel, windows: Sequence[Sequence[int]]) -> FloatArray:
    """Logits [windows, keys] of the torch model, one window at a time in float32."""
    model = model.eval().float()
    with torch.inference_mode():
        return np.concatenate([model(torch.tensor([list(window)])).numpy() for window in windows])


def onnx_logits(path: Path, windows: Sequence[Sequence[int]]) -> FloatArray:
    """Logits [windows, keys] of an exported model."""
    session = open_session(path)
    return np.concatenate([session.run(None, {"token_ids": np.array([window], dtype=np.int64)})[0] for window in windows])


def _strip(graph: onnx.ModelProto) -> None:
    """Removes the exporter's stack traces: they hold paths of the machine and a twentieth of the file's size."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    graph.graph.doc_string = ""
    del graph.graph.metadata_props[:]
    for item in (*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.value_info, *graph.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in graph.functions:
        function.doc_string = ""
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
