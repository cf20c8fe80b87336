"""The shipped two-stage system on a few reports, the real model: which combination it takes, and what its runs say they took."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.settings import settings, with_files
from pipeline.tagging import _other_encoder
from stage1_encoder.encoder import default_weights
from stage2_relations import adapter_folder
from stage2_relations.adapter_folder import default_adapter

pytestmark = pytest.mark.llm

REPORTS = [
    {"report_id": "a", "text": "8 mm nodule in the RUL. No effusion."},
    {"report_id": "b", "text": "좌하엽에 경화 소견."},
    {"report_id": "c", "text": "Normal chest CT."},
]
KINDS = ["stage1_read", "stage2_decoded", "stage2_kept", "stage2_generated", "stage1_pairs_read"]


@pytest.fixture
def tag(radtag, write_jsonl, tmp_path: Path):
    """Tags three reports; the result, and summary.json where there is one."""
    source = write_jsonl(REPORTS)

    def run(out: str, *options: object):
        place = tmp_path / out
        result = radtag("tag", source, "--task", "chest_ct", "--out", place, "--threads", 1, *options)
        summary = place / "summary.json"
        return result, json.loads(summary.read_text("utf-8")) if summary.is_file() else None

    return run


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the shipped adapter whose combine.json names another file under `changed`."""

    def make(changed: str | None = None) -> Path:
        shipped = default_adapter("chest_ct")
        assert shipped is not None
        folder = tmp_path / f"adapter-{changed}"
        shutil.copytree(shipped, folder)
        path = folder / "combine.json"
        content = json.loads(path.read_text("utf-8"))
        if changed is not None:
            content["fitted"][changed] = "0" * 64
        path.write_text(json.dumps(content), encoding="utf-8")
        return folder

    return make


def test_another_encoder_than_that_of_the_combination_is_told_once_and_used(tag, adapter) -> None:
    folder = adapter("encoder")
    result, summary = tag("out", "--adapter", folder, "--chunk-reports", 1)
    assert result.exit_code == 0, result.output
    (warning,) = summary["warnings"]
    assert f"{folder / 'combine.json'}: was fitted with encoder 000000000000, and {default_weights('chest_ct')} is " in warning
    assert "'radtag train combine' fits it again" in warning
    assert result.stderr.count("was fitted with encoder") == 1


def test_another_pair_encoder_than_that_of_the_combination_is_told_and_used(tag, adapter) -> None:
    _, summary = tag("out", "--adapter", adapter("pairs"))
    (warning,) = summary["warnings"]
    assert f"was fitted with another pair encoder than that in {default_weights('chest_ct')}: probabilities may be off" in warning
    assert summary["tokens"]["stage1_pairs_read"] > 0


def test_without_a_pair_encoder_stage_2_reads_with_the_weights_for_none_and_says_so(tag, tmp_path: Path) -> None:
    flags_only = tmp_path / "flags_only"
    shutil.copytree(default_weights("chest_ct"), flags_only, ignore=shutil.ignore_patterns("pairs.*"))
    result, summary = tag("out", "--encoder", flags_only)
    assert result.exit_code == 0, result.output
    (warning,) = summary["warnings"]
    assert f"was fitted with a pair encoder, and {flags_only} has none: none reads" in warning
    assert "stage1_pairs_read" not in summary["tokens"]


def test_a_run_without_the_pair_encoder_is_another_run(tag, parts_of, tmp_path: Path) -> None:
    _, with_pairs = tag("with")
    result, without = tag("without", "--no-pairs")
    assert result.exit_code == 0, result.output
    assert (without["warnings"], "stage1_pairs_read" in without["tokens"]) == ([], False)
    assert with_pairs["fingerprint"] != without["fingerprint"]


def test_an_adapter_of_another_training_than_the_combination_is_refused_before_anything_is_written(tag, adapter, tmp_path) -> None:
    folder = adapter("adapter")
    result, _ = tag("out", "--adapter", folder)
    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert result.stderr.startswith(
        f"radtag: {folder / 'combine.json'}: was fitted with adapter 000000000000, and the one in use is "
    )
    assert result.stderr.count("\n") == 1


def test_a_run_that_reads_no_scores_or_has_no_stage_1_is_not_warned(adapter) -> None:
    folder = adapter("encoder")
    assert list(_other_encoder(with_files(settings(task="chest_ct", adapter=folder))))
    for values in ({}, {"system": "llm", "adapter": folder}, {"no_adapter": True}, {"system": "rules"}):
        assert list(_other_encoder(with_files(settings(task="chest_ct", **values)))) == []


def test_doctor_names_a_combination_of_another_adapter(radtag, adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter("adapter")
    monkeypatch.setattr(adapter_folder, "default_adapter", lambda task: folder if task == "chest_ct" else None)
    result = radtag("doctor")
    assert result.exit_code == 1
    assert f"MISSING adapter chest_ct    {folder / 'combine.json'}: was fitted with adapter 000000000000" in result.stdout


def test_a_run_says_what_it_read_and_no_record_does(tag, parts_of, tmp_path: Path) -> None:
    result, summary = tag("one", "--metrics", tmp_path / "radtag.prom")
    assert result.exit_code == 0, result.output
    tokens = summary["tokens"]
    assert list(tokens) == KINDS
    assert tokens["stage1_read"] > 20 and tokens["stage2_decoded"] > 40
    assert (tokens["stage2_kept"], tokens["stage2_generated"]) == (0, 0)  # scores are read, nothing is written
    said = f"tokens   {tokens['stage1_read']} stage1 read, {tokens['stage2_decoded']} stage2 decoded, 0 stage2 kept"
    assert said in result.stdout
    prom = (tmp_path / "radtag.prom").read_text("utf-8")
    assert f'kind="stage2_decoded"}} {tokens["stage2_decoded"]}' in prom
    assert not any(b"stage2" in content or b"token" in content for content in parts_of(tmp_path / "one").values())
    _, by_two = tag("two", "--workers", 2, "--chunk-reports", 1)
    assert by_two["tokens"] == tokens
    _, again = tag("one", "--resume")
    assert again["tokens"] == {}  # nothing was read in this start


def test_answers_that_are_written_are_counted_too(tag) -> None:
    _, summary = tag("out", "--system", "llm", "--no-adapter", "--no-grounding", "--limit", 2, "--chunk-reports", 1)
    tokens = summary["tokens"]
    assert list(tokens) == KINDS[1:-1]
    assert min(tokens.values()) > 0


def test_rules_count_no_tokens(tag) -> None:
    result, summary = tag("out", "--system", "rules")
    assert summary["tokens"] == {}
    assert "\ntokens " not in result.stdout


def test_encoders_and_rules_read_relations_without_a_language_model(tag, radtag, tmp_path: Path) -> None:
    result, summary = tag("out", "--system", "encoders")
    assert result.exit_code == 0, result.output
    assert list(summary["tokens"]) == ["stage1_read", "stage1_pairs_read"]
    exported = radtag("export", tmp_path / "out", "--format", "jsonl").stdout
    first = json.loads(exported.splitlines()[0])
    assert {(r["subject"], r["value"]) for r in first["relations"]} == {("nodule", "rul")}
    assert all(0 < relation["confidence"] < 1 for relation in first["relations"])
    provenance = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["provenance"]
    assert {"encoder", "pairs", "combination"} <= set(provenance) and "model" not in provenance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-pairs"], "system 'encoders' reads relations with the pair encoder alone; --no-pairs goes with two-stage"),
        (["--model", "x.gguf"], "system 'encoders' uses no model; --model goes with two-stage or llm"),
        (["--read", "score"], "system 'encoders' uses no read; --read goes with two-stage or llm"),
        (["--adapter", "nowhere"], "system 'encoders' needs --adapter FOLDER with combine.json"),
        (["--encoder", "FLAGS"], "holds no pairs.onnx, which system 'encoders' needs; 'radtag train pairs' writes it"),
    ],
)
def test_what_encoders_cannot_do_without_is_told_in_one_line(tag, tmp_path: Path, options: list[str], message: str) -> None:
    flags_only = tmp_path / "flags_only"
    shutil.copytree(default_weights("chest_ct"), flags_only, ignore=shutil.ignore_patterns("pairs.*"))
    result, _ = tag("out", "--system", "encoders", *(str(flags_only) if option == "FLAGS" else option for option in options))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
