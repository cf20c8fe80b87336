from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from stage1_encoder.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)

TENSORS = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "best": {}}


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, step=7, tensors=TENSORS, state={"epoch": 1, "history": [{"loss": 0.5}]})
    assert latest_checkpoint(tmp_path) == path
    loaded = load_checkpoint(path)
    assert loaded.state == {"epoch": 1, "history": [{"loss": 0.5}]}
    assert torch.equal(loaded.tensors["weights"]["a"], TENSORS["weights"]["a"])
    assert loaded.tensors["best"] == {}


def test_a_newer_checkpoint_replaces_the_older(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step=step, tensors=TENSORS, state={})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000100"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, step=1, tensors=TENSORS, state={})
    assert sorted(file.name for file in path.iterdir()) == ["best.safetensors", "state.json", "weights.safetensors"]
    json.loads((path / "state.json").read_text())


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = save_checkpoint(tmp_path, step=1, tensors=TENSORS, state={}) / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            content[: len(content) // 2] if damage == "cut" else content[:-3] + bytes([content[-3] ^ 255]) + content[-2:]
        )
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path.parent)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = save_checkpoint(tmp_path, step=1, tensors=TENSORS, state={})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(tmp_path, step=2, tensors=TENSORS, state={})
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path) == earlier
    load_checkpoint(earlier)
    assert list(tmp_path.iterdir()) == [earlier]


def test_an_unfinished_checkpoint_is_not_the_latest(tmp_path: Path) -> None:
    earlier = save_checkpoint(tmp_path, step=1, tensors=TENSORS, state={})
    (tmp_path / "step-00000002.tmp").mkdir()
    assert latest_checkpoint(tmp_path) == earlier
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_weights_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.safetensors"
    save_tensors(path, TENSORS["weights"])
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match=r"best\.safetensors: cannot be written"):
        save_tensors(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="file does not exist"):
        load_tensors(tmp_path / "best.safetensors")
    (tmp_path / "best.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        load_tensors(tmp_path / "best.safetensors")
