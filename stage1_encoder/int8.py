"""Dense layers in int8: what their inputs look like, and how inputs and weights are rounded.

Inputs are rounded with one scale and zero point that are fixed when the model is written: a report's flags depend on nothing but
the report. A few input channels are ten times larger than the rest; each is divided by a factor of its own and its weights are
multiplied by it (SmoothQuant, Xiao et al. 2023), with the exponent that rounds this layer's output best on training reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stage1_encoder.marks import MarkedWindow, mark_matrix
from stage1_encoder.model import KeyFlagModel

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
# Seven bits: the sum of two products with an unsigned byte then fits 16 bits, so processors without VNNI get the same sums.
WEIGHT_TOP = 63
INPUT_TOP = 255
TABLE_TOP = 127
EXPONENTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Every so many tokens are kept to compare exponents on.
ROW_STRIDE = 32
SMALLEST = 1e-6


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What a dense layer was given: smallest and largest value [inputs] of each channel, and some rows [rows, inputs]."""

    low: FloatArray
    high: FloatArray
    rows: FloatArray


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """`x · W` as `(round(x · smoothing / input_scale) + zero_point - zero_point) · weights`, times both scales.

    Attributes:
        smoothing: [inputs], what each channel is multiplied by before it is rounded.
        weights: int8 [inputs, outputs]; `weight_scales` [outputs].
    """

    smoothing: FloatArray
    input_scale: float
    zero_point: int
    weights: np.ndarray[Any, np.dtype[np.int8]]
    weight_scales: FloatArray

    def rounded_product(self, rows: FloatArray) -> FloatArray:
        """What the int8 layer gives for `rows`, without bias."""
        steps = np.rint(rows * self.smoothing / self.input_scale) + self.zero_point
        whole = (np.clip(steps, 0, INPUT_TOP) - self.zero_point).astype(np.float32)
        product: FloatArray = whole @ self.weights.astype(np.float32) * (self.input_scale * self.weight_scales)
        return product


def layer_inputs(model: KeyFlagModel, windows: Sequence[MarkedWindow]) -> dict[nn.Module, LayerInputs]:
    """What each dense layer of the body is given when the float model reads `windows`.

    Raises:
        ValueError: there is no window.
    """
    if not windows:
        raise ValueError("no window to measure the layers' inputs on")
    seen: dict[nn.Module, list[LayerInputs]] = {}

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = given[0].reshape(-1, given[0].shape[-1]).numpy()
        taken = sum(len(part.rows) for part in seen.get(layer, ()))
        kept = rows[(len(seen.get(layer, ())) * 7) % ROW_STRIDE :: ROW_STRIDE].copy() if taken < 1024 else rows[:0]
        seen.setdefault(layer, []).append(LayerInputs(rows.min(axis=0), rows.max(axis=0), kept))

    hooks = [layer.register_forward_pre_hook(look) for layer in model.body.encoder.modules() if isinstance(layer, nn.Linear)]
    try:
        model.eval()
        with torch.inference_mode():
            for window in windows:
                marks = torch.from_numpy(mark_matrix(window, model.mark_embeddings.shape[0]))
                model(torch.tensor([window.ids]), marks[None])
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: _together(parts) for layer, parts in seen.items()}


def _together(parts: Sequence[LayerInputs]) -> LayerInputs:
    return LayerInputs(
        np.min([part.low for part in parts], axis=0),
        np.max([part.high for part in parts], axis=0),
        np.concatenate([part.rows for part in parts]),
    )


def int8_layer(weights: FloatArray, inputs: LayerInputs) -> Int8Layer:
    """The layer of float `weights` [inputs, outputs] with the exponent of `EXPONENTS` whose output is nearest on `inputs.rows`."""
    exact = inputs.rows @ weights
    layers = [_smoothed(weights, inputs, exponent) for exponent in EXPONENTS]
    errors = [float(np.square(layer.rounded_product(inputs.rows) - exact).mean()) for layer in layers]
    return layers[int(np.argmin(errors))]


def _smoothed(weights: FloatArray, inputs: LayerInputs, exponent: float) -> Int8Layer:
    largest_input = np.maximum(np.maximum(-inputs.low, inputs.high), SMALLEST)
    largest_weight = np.maximum(np.abs(weights).max(axis=1), SMALLEST)
    factors = largest_input**exponent / largest_weight ** (1 - exponent)
    low = min(0.0, float((inputs.low / factors).min()))
    high = max(0.0, float((inputs.high / factors).max()))
    scale = max(high - low, SMALLEST) / INPUT_TOP
    rounded, scales = rounded_table(weights * factors[:, None], axis=0, top=WEIGHT_TOP)
    return Int8Layer((1 / factors).astype(np.float32), scale, round(-low / scale), rounded, scales[0])


def rounded_table(table: FloatArray, *, axis: int, top: int = TABLE_TOP) -> tuple[np.ndarray[Any, np.dtype[np.int8]], FloatArray]:
    """Rounded numbers and their scales; one scale for each slice that `axis` runs through (0: a column, 1: a row)."""
    scales = np.maximum(np.abs(table).max(axis=axis, keepdims=True), SMALLEST) / top
    return np.rint(table / scales).astype(np.int8), scales.astype(np.float32)
