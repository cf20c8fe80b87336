from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1_encoder.flags import FlagConfig, FlagConfigError, KeyThresholds, flags_of, probability

CONFIG = FlagConfig(
    task="chest_ct",
    thresholds={"nodule": KeyThresholds(hint=0.1, decision=0.6), "mass": KeyThresholds(hint=0.2, decision=0.5)},
    temperature=2.0,
    window_tokens=256,
    overlap_tokens=64,
    trained={"tokenizer": "abc"},
)


@given(st.floats(-1e6, 1e6), st.floats(0.25, 8))
def test_probability_is_a_sigmoid_without_overflow(logit: float, temperature: float) -> None:
    value = probability(logit, temperature=temperature)
    assert 0 <= value <= 1
    assert value == pytest.approx(1 - probability(-logit, temperature=temperature))


def test_two_thresholds_give_hints_and_decisions() -> None:
    logits = [2.0 * math.log(0.3 / 0.7), 2.0 * math.log(0.9 / 0.1)]
    flags = flags_of(logits, CONFIG)
    assert flags.probability == pytest.approx({"nodule": 0.3, "mass": 0.9})
    assert flags.hinted == ("nodule", "mass")
    assert flags.decided == ("mass",)


def test_a_logit_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        flags_of([1.0], CONFIG)


def test_config_comes_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(CONFIG.to_json(), encoding="utf-8")
    assert FlagConfig.load(path) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature"),
        ({"thresholds": {"nodule": {"hint": 1.2, "decision": 0.5}}}, "thresholds.nodule.hint"),
        ({"thresholds": {}}, "thresholds"),
        ({"format_version": 9}, "format_version is 9; 1 is expected"),
        ({"colour": "red"}, "colour"),
        ({"trained": {}}, "trained.tokenizer is missing"),
    ],
)
def test_a_broken_config_names_the_field(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(CONFIG.to_json()), **change}), encoding="utf-8")
    with pytest.raises(FlagConfigError, match=f"config.json: .*{message}"):
        FlagConfig.load(path)
