from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.run import build_pipeline
from pipeline.settings import SettingsError, encoder_hash, fingerprint, free_cores, provenance_parts, settings, with_files


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("model.onnx", "tokenizer.json", "config.json", "MODEL_CARD.md"):
        (folder / name).write_text(name)
    return folder


def parts(**changes: object) -> dict[str, str]:
    return provenance_parts(settings(**{"task": "chest_ct", "system": "encoder", **changes}))


def test_what_changes_a_record_changes_the_fingerprint(weights: Path, task_file: Path) -> None:
    seen = [
        parts(encoder=weights),
        parts(encoder=weights, task="brain_mri"),
        parts(encoder=weights, task=str(task_file)),
        parts(encoder=weights, max_report_chars=5),
        parts(system="rules"),
        parts(system="published-rules"),
    ]
    for name in ("model.onnx", "tokenizer.json", "config.json"):
        (weights / name).write_text("changed")
        seen.append(parts(encoder=weights))
    task_file.write_text(task_file.read_text() + "# a comment\n")
    seen.append(parts(encoder=weights, task=str(task_file)))
    assert len({fingerprint(some) for some in seen}) == len(seen)


def test_a_model_and_its_grounding_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    fingerprints = set()
    for content, grounding in (("one", True), ("two", True), ("two", False)):
        model.write_text(content)
        fingerprints.add(fingerprint(parts(system="llm", model=model, grounding=grounding)))
    assert len(fingerprints) == 3


def test_speed_and_a_model_card_are_not_part_of_the_fingerprint(weights: Path) -> None:
    before = encoder_hash(weights)
    (weights / "MODEL_CARD.md").write_text("new words")
    assert encoder_hash(weights) == before
    assert parts(encoder=weights, threads=1, gpu_layers=0) == parts(encoder=weights, threads=7, gpu_layers=-1)


@pytest.mark.parametrize("system", ["two-stage", "encoder", "llm"])
def test_settings_without_their_files_build_nothing_else_instead(system: str) -> None:
    with pytest.raises(ValueError, match="call with_files first"):
        build_pipeline(settings(task="chest_ct", system=system), {})


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no encoder weights for task 'chest_ct'"):
        with_files(settings(task="chest_ct", encoder=tmp_path / "none"))


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("max_report_chars", 0), ("gpu_layers", -2), ("grouning", True)])
def test_settings_that_cannot_be_used_are_named(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        settings(**{"task": "chest_ct", "system": "rules", name: value})


def test_at_least_one_core_is_free() -> None:
    assert free_cores() >= 1
