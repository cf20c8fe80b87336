"""The encoder written down as an ONNX graph, operator by operator.

torch's exporter spells attention out in twenty operators a layer and knows none of ONNX Runtime's fused ones; the graph alone took
a report from 29 to 25 ms. What is written here is compared with torch on every export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from stage1_encoder.int8 import FloatArray, LayerInputs, int8_layer, rounded_table
from stage1_encoder.model import UNMARKED, KeyAttention, KeyFlagModel

OPSET = 18
# The oldest format that ONNX Runtime 1.31 and opset 18 agree on; onnx would write its newest.
IR_VERSION = 9
FUSED = "com.microsoft"
Inputs = Mapping[nn.Module, LayerInputs]


def encoder_graph(model: KeyFlagModel, inputs: Inputs | None) -> onnx.ModelProto:
    """`token_ids` [1, tokens] (int64) and `marks` [1, tokens, marks] (float32, 0 or 1) to `logits` [1, keys].

    Args:
        inputs: What the body's dense layers are given, of `layer_inputs`; they and the tables are then int8. None means float32.
    """
    graph = _Graph()
    config = model.body.config
    hidden = _embeddings(graph, model, int8=inputs is not None)
    layers: Any = model.body.encoder.layer
    for number, layer in enumerate(layers):
        place = f"layer{number}"
        attention = layer.attention
        own = attention.self
        parts = graph.split(_dense(graph, hidden, [own.query, own.key, own.value], inputs, f"{place}/attention"))
        heads = config.num_attention_heads
        context = graph.add("MultiHeadAttention", *parts, domain=FUSED, num_heads=heads)
        output = _dense(graph, context, [attention.output.dense], inputs, f"{place}/attended")
        hidden = _norm(graph, graph.add("Add", output, hidden), attention.output.LayerNorm, f"{place}/attended/norm")
        wide = graph.add("Gelu", _dense(graph, hidden, [layer.intermediate.dense], inputs, f"{place}/wide"), domain=FUSED)
        output = _dense(graph, wide, [layer.output.dense], inputs, f"{place}/narrow")
        hidden = _norm(graph, graph.add("Add", output, hidden), layer.output.LayerNorm, f"{place}/narrow/norm")
    n_marks = model.mark_embeddings.shape[0]
    marks = "marks" if n_marks == model.n_keys else graph.first("marks", model.n_keys, axis=2)
    return graph.model(logits=_head(graph, hidden, marks, model.head), n_keys=model.n_keys, n_marks=n_marks)


class _Graph:
    """Nodes and constants in the order in which they were asked for."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, numbers: Any, dtype: type[np.generic] = np.float32, *, name: str = "") -> str:
        name = name or f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(numbers, dtype=dtype).reshape(np.shape(numbers)), name))
        return name

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output = f"value_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def split(self, whole: str) -> list[str]:
        """Three equal parts of the last axis."""
        outputs = [f"value_{len(self._nodes)}_{part}" for part in range(3)]
        self._nodes.append(helper.make_node("Split", [whole], outputs, axis=2, num_outputs=3))
        return outputs

    def first(self, whole: str, n_first: int, *, axis: int) -> str:
        """The first elements along an axis."""
        zero, end, along = (self.constant([number], np.int64) for number in (0, n_first, axis))
        return self.add("Slice", whole, zero, end, along)

    def model(self, *, logits: str, n_keys: int, n_marks: int) -> onnx.ModelProto:
        nodes = [*self._nodes, helper.make_node("Identity", [logits], ["logits"])]
        graph = helper.make_graph(
            nodes,
            "encoder",
            [
                helper.make_tensor_value_info("token_ids", TensorProto.INT64, [1, "tokens"]),
                helper.make_tensor_value_info("marks", TensorProto.FLOAT, [1, "tokens", n_marks]),
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, n_keys])],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)])
        model.ir_version = IR_VERSION
        return model


def _numbers(tensor: Tensor) -> FloatArray:
    numbers: FloatArray = tensor.detach().float().cpu().numpy()
    return numbers


def _embeddings(graph: _Graph, model: KeyFlagModel, *, int8: bool) -> str:
    body = model.body.embeddings
    words = _numbers(body.word_embeddings.weight)
    if int8:
        rounded, scales = rounded_table(words, axis=1)
        steps = graph.add("Gather", graph.constant(rounded, np.int8, name="words"), "token_ids")
        row_scales = graph.add("Gather", graph.constant(scales, name="words/scales"), "token_ids")
        named = graph.add("Mul", graph.add("Cast", steps, to=TensorProto.FLOAT), row_scales)
    else:
        named = graph.add("Gather", graph.constant(words, name="words"), "token_ids")
    # Every token is of type 0.
    positions = _numbers(body.position_embeddings.weight) + _numbers(body.token_type_embeddings.weight)[0]
    n_tokens, zero = graph.add("Shape", "token_ids", start=1, end=2), graph.constant([0], np.int64)
    placed = graph.add("Slice", graph.constant(positions, name="positions"), zero, n_tokens, zero)
    any_key = graph.add("ReduceMax", "marks", graph.constant([2], np.int64), keepdims=1)
    shared = graph.add("Mul", any_key, graph.constant(_numbers(model.shared_mark_embedding), name="marks/shared"))
    own = graph.add("MatMul", "marks", graph.constant(_numbers(model.mark_embeddings), name="marks/own"))
    marked = graph.add("Add", graph.add("Add", named, graph.add("Add", own, shared)), placed)
    return _norm(graph, marked, body.LayerNorm, "norm")


def _norm(graph: _Graph, whole: str, norm: nn.LayerNorm, name: str) -> str:
    weight = graph.constant(_numbers(norm.weight), name=f"{name}/weight")
    bias = graph.constant(_numbers(norm.bias), name=f"{name}/bias")
    return graph.add("LayerNormalization", whole, weight, bias, epsilon=norm.eps)


def _dense(graph: _Graph, given: str, layers: Sequence[nn.Linear], inputs: Inputs | None, name: str) -> str:
    """The outputs of layers that share an input, side by side."""
    weights = np.concatenate([_numbers(layer.weight).T for layer in layers], axis=1)
    bias = graph.constant(np.concatenate([_numbers(layer.bias) for layer in layers]), name=f"{name}/bias")
    if inputs is None:
        return graph.add("Add", graph.add("MatMul", given, graph.constant(weights, name=f"{name}/weights")), bias)
    layer = int8_layer(weights, inputs[layers[0]])
    scale, zero = graph.constant(layer.input_scale), graph.constant(layer.zero_point, np.uint8)
    smooth = graph.add("Mul", given, graph.constant(layer.smoothing, name=f"{name}/smoothing"))
    rounded = graph.add("QuantizeLinear", smooth, scale, zero)
    weight_zero = graph.constant(np.zeros(weights.shape[1]), np.int8)
    return graph.add(
        "MatMulIntegerToFloat",
        rounded,
        graph.constant(layer.weights, np.int8, name=f"{name}/weights"),
        scale,
        graph.constant(layer.weight_scales, name=f"{name}/scales"),
        zero,
        weight_zero,
        bias,
        domain=FUSED,
    )


def _head(graph: _Graph, hidden: str, marks: str, head: KeyAttention) -> str:
    """`KeyAttention` on one window: the weighted mean of the tokens' own logits is the logit of their weighted mean."""
    vectors = [
        _numbers(own + shared)
        for own, shared in (
            (head.queries, head.shared_query),
            (head.weights, head.shared_weights),
            (head.mention_weights, head.shared_mention_weights),
        )
    ]
    scores, logits, mentions = graph.split(
        graph.add("MatMul", hidden, graph.constant(np.concatenate(vectors).T, name="head/vectors"))
    )
    tokens = graph.constant([1], np.int64)
    pulled = graph.add("Add", scores, graph.add("Mul", marks, graph.constant(_numbers(head.mark_pull), name="head/mark_pull")))
    attended = graph.add("Mul", graph.add("Softmax", pulled, axis=1), logits)
    by_attention = graph.add(
        "Add", graph.add("ReduceSum", attended, tokens, keepdims=0), graph.constant(_numbers(head.bias), name="head/bias")
    )
    unmarked = graph.add("Mul", graph.add("Sub", marks, graph.constant(1.0)), graph.constant(UNMARKED))
    asserted = graph.add(
        "Add", graph.add("Add", mentions, graph.constant(_numbers(head.mention_bias), name="head/mention_bias")), unmarked
    )
    any_asserted = graph.add("ReduceLogSumExp", asserted, tokens, keepdims=0)
    any_marked = graph.add("ReduceMax", marks, tokens, keepdims=0)
    return graph.add("Add", by_attention, graph.add("Mul", any_asserted, any_marked))
