"""docs/OWN_DATA.md is run: its files and its commands, one after the other, on a small model and a small archive."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main

GUIDE = (Path(__file__).resolve().parent.parent / "docs" / "OWN_DATA.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
N_ARCHIVE = 3
SPLITS = (
    ("annotated", "train", 0, 24),
    ("annotated", "dev", 40, 16),
    ("annotated", "test", 80, 4),
    ("few", "train", 0, 8),
    ("few", "dev", 40, 16),
)
SMALL = {"layers": 1, "width": 32, "heads": 4, "feed_forward": 64, "window_tokens": 48}
SEEN = {"cyst": "1.2 cm cyst in the right lobe.", "stone": "담석 보임.", "mass": "Mass, left lobe, 3 cm."}
UNSEEN = {"cyst": "낭종 없음.", "stone": "No gallstone.", "mass": "No mass."}
VALUES: dict[str, list[str]] = {"cyst": ["right_lobe"], "stone": [], "mass": ["left_lobe"]}


def _text(number: int) -> tuple[str, dict[str, list[str]]]:
    present = [key for bit, key in enumerate(SEEN) if number >> bit & 1]
    lines = [SEEN[key] if key in present else UNSEEN[key] for key in SEEN]
    return " ".join(lines[number % 3 :] + lines[: number % 3]), {key: VALUES[key] for key in present}


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the guide, with a model of one small layer, and reports for them."""
    monkeypatch.chdir(tmp_path)
    for name, body in FILES.items():
        values = yaml.safe_load(body)
        if "loop" in values:
            values["loop"] |= {"epochs": 1, "threads": 1, "device": "cpu", "bf16": False}
        if "shape" in values:
            values |= {"shape": SMALL, "start": "random" if values["start"] == "minilm" else values["start"]}
        if "adapter" in values:  # of the packaged model; a few reports, matrices in the last of 30 layers alone
            values |= {"corpus": "few", "rank": 2, "alpha": 4, "first_layer": 29}
        if "vocabulary_size" in values:
            values["vocabulary_size"] = 400
        if "weak_labels" in values:
            values |= {"overlap_tokens": 8, "copies": 2}
        text = body if name == "sono.yaml" else yaml.safe_dump(values)
        Path(name).write_text(text, encoding="utf-8")
    for folder, split, first, n_reports in SPLITS:
        Path(folder).mkdir(exist_ok=True)
        with Path(folder, f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(first, first + n_reports):
                text, labels = _text(number)
                row = {"report_id": f"u{number}", "task": "sono", "patient_id": f"p{number}", "text": text, "labels": labels}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    with Path("archive.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["report_id", "text"])
        writer.writerows([f"a{number}", f"{_text(number)[0]} Nr. {number}."] for number in range(N_ARCHIVE))  # none is in dev
    return tmp_path


def _radtag(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def test_the_guide_has_its_files_and_commands() -> None:
    assert list(FILES) == ["sono.yaml", "tokenizer.yaml", "pretrain.yaml", "finetune.yaml", "pairs.yaml", "adapter.yaml"]
    assert sum(command.startswith("radtag train ") for command in COMMANDS) == 7
    assert all(command.startswith("radtag ") for command in COMMANDS)
    json.loads(re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)[0])


@pytest.mark.llm
def test_every_command_of_the_guide_runs_in_its_order(
    hospital: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in COMMANDS:
        code = _radtag(command, monkeypatch)
        output = capsys.readouterr()
        assert code == 0, f"{command}\n{output.out}\n{output.err}"
    weak = [json.loads(line) for line in Path("weak.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["labels"] for row in weak] == [_text(number)[1] for number in range(N_ARCHIVE)]
    assert sorted(path.name for path in Path("weights/sono").iterdir()) == [
        "MODEL_CARD.md",
        "PAIRS_CARD.md",
        "config.json",
        "model.onnx",
        "pairs.json",
        "pairs.onnx",
        "tokenizer.json",
    ]
    provenance = json.loads(Path("runs/archive/run.json").read_text(encoding="utf-8"))["provenance"]
    assert (provenance["task"], provenance["read"]) == ("sono", "score")
    assert sorted(path.name for path in Path("adapters/sono").iterdir()) == [
        "MODEL_CARD.md",
        "adapter.gguf",
        "combine.json",
        "config.json",
    ]
    summary = json.loads(Path("runs/archive/summary.json").read_text(encoding="utf-8"))
    assert summary["warnings"] == []  # the combination was fitted with these encoders
    assert summary["tokens"]["stage1_pairs_read"] > 0
    with_adapter = json.loads(Path("runs/check/results.json").read_text(encoding="utf-8"))
    assert list(with_adapter["systems"]) == ["rules", "encoder", "two-stage"]
    reads = {
        json.loads(path.read_text(encoding="utf-8"))["provenance"]["read"]
        for path in Path("runs").glob("check*/records/two-stage-*/run.json")
    }
    assert reads == {"generate", "score"}
