"""Int8 layers: near the float product, with fixed scales, and the same sums on every processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stage1_encoder.int8 import INPUT_TOP, WEIGHT_TOP, LayerInputs, int8_layer, layer_inputs, rounded_table
from stage1_encoder.model import KeyFlagModel
from stage1_encoder.tokenizer import ReportTokenizer

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(0, 0.05, (64, 48)).astype(np.float32)


def _inputs(rows: np.ndarray) -> LayerInputs:
    return LayerInputs(rows.min(axis=0), rows.max(axis=0), rows)


def _relative_error(rows: np.ndarray) -> float:
    exact = rows @ WEIGHTS
    return float(np.sqrt(np.square(int8_layer(WEIGHTS, _inputs(rows)).rounded_product(rows) - exact).mean()) / exact.std())


def test_an_int8_layer_is_near_the_float_one() -> None:
    assert _relative_error(RNG.normal(0, 1, (200, 64)).astype(np.float32)) < 0.02


def test_a_channel_fifty_times_larger_does_not_drown_the_others() -> None:
    rows = RNG.normal(0, 1, (200, 64)).astype(np.float32)
    rows[:, 7] *= 50
    assert _relative_error(rows) < 0.02


def test_inputs_that_are_never_negative_use_the_whole_range() -> None:
    layer = int8_layer(WEIGHTS, _inputs(np.abs(RNG.normal(0, 1, (200, 64))).astype(np.float32)))
    assert layer.zero_point == 0


def test_a_layer_that_is_always_given_nought_gives_nought() -> None:
    rows = np.zeros((5, 64), dtype=np.float32)
    assert (int8_layer(WEIGHTS, _inputs(rows)).rounded_product(rows) == 0).all()


def test_two_products_always_fit_sixteen_bits() -> None:
    assert 2 * INPUT_TOP * WEIGHT_TOP < 2**15
    layer = int8_layer(WEIGHTS * 100, _inputs(RNG.normal(0, 3, (50, 64)).astype(np.float32)))
    assert np.abs(layer.weights.astype(int)).max() <= WEIGHT_TOP


def test_a_rounded_table_is_within_half_a_step() -> None:
    rounded, scales = rounded_table(WEIGHTS, axis=1)
    assert np.abs(rounded * scales - WEIGHTS).max() <= scales.max() / 2 * 1.001


def test_every_dense_layer_of_the_body_is_int8_and_its_scale_is_fixed(tiny_weights: Path) -> None:
    graph = onnx.load(tiny_weights / "model.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    dense = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(dense) == 2 * 4
    for node in dense:
        assert constants[node.input[1]].dtype == np.int8
        assert constants[node.input[2]].shape == ()
    assert not any("Dynamic" in node.op_type for node in graph.node)


def test_without_a_window_nothing_can_be_measured(tiny_model: tuple[KeyFlagModel, ReportTokenizer]) -> None:
    with pytest.raises(ValueError, match="no window"):
        layer_inputs(tiny_model[0], [])
