"""The README is run: every `$ radtag …` line in a folder like a user's, `make demo` as it stands, and every command's help."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RADTAG = Path(sys.executable).with_name("radtag")
TINY_SHAPE = {"layers": 1, "width": 32, "heads": 4, "feed_forward": 64, "window_tokens": 64, "dropout": 0.0}


def console_commands(text: str) -> list[str]:
    return [
        line[2:]
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def radtag(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = shlex.split(arguments)
    assert command[0] == "radtag"
    return subprocess.run([str(RADTAG), *command[1:]], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def reports(task: str, split: str, n_reports: int) -> list[dict[str, object]]:
    lines = (ROOT / "training" / "corpus" / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:n_reports]]


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A CSV archive of two reports, and the shipped training settings on a small corpus and a tiny model."""
    (tmp_path / "reports.csv").write_text(
        'accession,report_text\nA1,"Nodule, 8 mm, in the RUL.\nNo effusion."\nA2,Normal chest CT.\n', encoding="utf-8"
    )
    for task in ("chest_ct", "brain_mri"):
        folder = tmp_path / "training" / "corpus" / task
        folder.mkdir(parents=True)
        for split, n_reports in (("train", 60), ("dev", 60)):
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in reports(task, split, n_reports))
            (folder / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "configs" / "training").mkdir(parents=True)
    for path in (ROOT / "configs" / "training").glob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "vocabulary_size" in values:
            values["vocabulary_size"] = 600
        if "loop" in values:
            values |= {"shape": TINY_SHAPE} if "shape" in values else {}
            if "overlap_tokens" in values:
                values["overlap_tokens"] = 8
            values["loop"] |= {"epochs": 1, "threads": 1, "warmup_share": 0.0}
        if values.get("start") == "minilm":
            values["start"] = "random"  # the MiniLM body has another width
        (tmp_path / "configs" / "training" / path.name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path


@pytest.mark.llm
@pytest.mark.slow
def test_every_radtag_line_of_the_readme_runs(users_folder: Path) -> None:
    commands = console_commands(README)
    assert len(commands) >= 7
    for command in commands:
        done = radtag(command, users_folder)
        assert done.returncode == 0, f"{command}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"


def test_every_command_of_the_house_stands_in_the_readme_and_has_a_help() -> None:
    commands = [
        "tag",
        "show",
        "export",
        "verify",
        "tasks",
        "doctor",
        "train tokenizer",
        "train pretrain",
        "train finetune",
        "train pairs",
        "train weak-label",
        "train adapter",
        "train combine",
        "train distill",
        "timeline",
        "eval run",
        "eval agreement",
        "eval benchmark",
        "eval results",
        "eval score",
    ]
    for command in commands:
        first, *rest = command.split()
        assert re.search(rf"radtag {first}[^\n]*{rest[0] if rest else ''}", README), command
        done = radtag(f"radtag {command} --help", ROOT)
        assert done.returncode == 0
        assert "Usage" in done.stdout


def test_help_lists_no_command_that_the_readme_does_not() -> None:
    done = radtag("radtag --help", ROOT)
    listed = re.findall(r"^  ([a-z]+)  ", done.stdout.split("Commands:")[1], re.MULTILINE)
    assert listed
    assert [name for name in listed if f"radtag {name}" not in README] == []


@pytest.mark.llm
@pytest.mark.slow
def test_make_demo_prints_relations_and_ends_within_three_minutes(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    done = subprocess.run(
        ["make", "demo", f"DEMO_OUT={tmp_path / 'demo'}"], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert time.monotonic() - begin_s < 180
    assert "→" in done.stdout
    for task in ("chest_ct", "brain_mri"):
        lines = [
            line
            for path in sorted((tmp_path / "demo" / task / "parts").glob("*.jsonl"))
            for line in path.read_text("utf-8").splitlines()
        ]
        records = [json.loads(line) for line in lines]
        assert len(records) == 12
        assert {record["status"] for record in records} <= {"ok", "no_findings"}
        assert sum(len(record["relations"]) for record in records) >= 5


def test_no_document_holds_an_unfilled_placeholder() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "training").rglob("*.md"), *(ROOT / "stage1_encoder").rglob("*.md")]:
        assert re.findall(r"@[A-Z_]+@", path.read_text(encoding="utf-8")) == [], path.name
