"""Which adapter a run takes, what it is compared with, and that it is part of the fingerprint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.settings import SettingsError, fingerprint, provenance_parts, settings, with_files
from stage2_relations import adapter_folder, model_file
from stage2_relations.branches import QUESTION_FORMAT
from stage2_relations.model_file import GGUF_MAGIC, ModelFileError, file_sha256

CONTENT = GGUF_MAGIC + (3).to_bytes(4, "little") + bytes(16)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "packaged.gguf"
    path.write_bytes(CONTENT + b"packaged")
    monkeypatch.setattr(model_file, "default_model", lambda: path)
    monkeypatch.setattr(adapter_folder, "_SHIPPED", tmp_path / "shipped")
    return path


@pytest.fixture
def make_adapter(tmp_path: Path, packaged: Path) -> Callable[..., Path]:
    def make(
        folder: str = "shipped/chest_ct",
        *,
        task: str = "chest_ct",
        content: bytes = b"matrices",
        model: Path = packaged,
        question: int = QUESTION_FORMAT,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "adapter.gguf").write_bytes(CONTENT + content)
        config = {
            "task": task,
            "question": question,
            "adapter": file_sha256(path / "adapter.gguf"),
            "trained": {"model": file_sha256(model)},
        }
        (path / "config.json").write_text(json.dumps(config))
        (path / "combine.json").write_text("{}")
        return path

    return make


def filled(**values: object):
    return with_files(settings(task="chest_ct", system="llm", **values))


def test_without_a_shipped_adapter_the_model_writes_its_answers(packaged: Path) -> None:
    assert (filled().model, filled().adapter, filled().read) == (packaged, None, "generate")


def test_the_shipped_adapter_goes_with_the_packaged_model_read_by_scores(make_adapter, tmp_path: Path) -> None:
    shipped = make_adapter()
    other = tmp_path / "other.gguf"
    other.write_bytes(CONTENT)
    assert (filled().adapter, filled().read) == (shipped, "score")
    assert filled(read="score").adapter == shipped
    for values in ({"read": "generate"}, {"no_adapter": True}, {"model": other}):
        assert (filled(**values).adapter, filled(**values).read) == (None, "generate")
    assert (filled(no_adapter=True, read="score").adapter, filled(no_adapter=True, read="score").read) == (None, "score")
    assert with_files(settings(task="brain_mri", system="llm")).adapter is None


def test_an_adapter_of_ones_own_comes_before_the_shipped_one_and_may_write_answers(make_adapter) -> None:
    make_adapter()
    own = make_adapter("own", content=b"others")
    assert (filled(adapter=own).adapter, filled(adapter=own).read) == (own, "score")
    assert filled(adapter=own / "adapter.gguf", read="generate").read == "generate"
    assert filled(adapter=own / "adapter.gguf").adapter == own / "adapter.gguf"


def test_an_adapter_of_another_task_or_model_or_a_changed_file_is_named(make_adapter, tmp_path: Path) -> None:
    model = tmp_path / "other.gguf"
    model.write_bytes(CONTENT + b"other")
    changed = make_adapter("changed")
    (changed / "adapter.gguf").write_bytes(CONTENT + b"after")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "adapter.gguf").write_bytes(CONTENT)
    for folder, message in (
        (make_adapter("brain", task="brain_mri"), "adapter of task 'brain_mri'; one of task 'chest_ct' is expected"),
        (make_adapter("elsewhere", model=model), "was trained on a model of sha256"),
        (make_adapter("old", question=1), "was trained on questions of format 1; this radtag asks in format 2: train it again"),
        (changed, "is not the file that config.json beside it names"),
        (bare, r"config\.json: does not exist"),
        (tmp_path / "none", "does not exist; a .gguf file is expected"),
    ):
        with pytest.raises(ModelFileError, match=message):
            filled(adapter=folder)


def test_adapter_and_way_of_reading_are_part_of_the_fingerprint(make_adapter) -> None:
    make_adapter()
    own = make_adapter("own", content=b"others")
    runs = [
        filled(),
        filled(no_adapter=True),
        filled(read="generate", adapter=own / "adapter.gguf"),
        filled(adapter=own),
        filled(no_adapter=True, read="score"),
    ]
    seen = {fingerprint(provenance_parts(run)) for run in runs}
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"thresholds": [0.5]}))
    seen.add(fingerprint(provenance_parts(filled(adapter=own))))
    (own / "combine.json").write_text('{"task": "chest_ct"}')
    seen.add(fingerprint(provenance_parts(filled(adapter=own))))
    assert len(seen) == len(runs) + 2


def test_an_adapter_folder_is_not_asked_to_write_answers(make_adapter, radtag, tmp_path: Path) -> None:
    own = make_adapter("own")
    message = f"{own}: is an adapter folder, trained to be read by scores; leave --read generate out, or --adapter"
    with pytest.raises(SettingsError, match=re.escape(message)):
        settings(task="chest_ct", adapter=own, read="generate")
    reports = tmp_path / "reports.jsonl"
    reports.write_text('{"report_id": "r1", "text": "No nodule."}\n', encoding="utf-8")
    out = tmp_path / "out"
    refused = radtag("tag", reports, "--task", "chest_ct", "--adapter", own, "--read", "generate", "--out", out)
    assert (refused.exit_code, refused.stderr, out.exists()) == (2, f"radtag: {message}\n", False)


def test_adapter_options_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for values, message in (
        ({"system": "rules", "adapter": tmp_path}, "system 'rules' uses no adapter"),
        ({"system": "encoder", "read": "score"}, "system 'encoder' uses no read"),
        ({"system": "llm", "read": "scores"}, "read 'scores' is not known; did you mean 'score'"),
        ({"system": "llm", "adapter": tmp_path, "no_adapter": True}, "exclude each other"),
    ):
        with pytest.raises(SettingsError, match=message):
            settings(task="chest_ct", **values)
