"""`radtag train distill` with a teacher that says what a test wants: what is kept, what is left out, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from configs.contracts import ChatPrompt, Completion, EntityFinding, Reading, Relation, Report, Span, TaggedReport
from configs.schema import Task, load_task
from pipeline.cli import app
from stage2_relations.language_model import AlignedCompletion, LanguageModelError
from stage2_relations.llama_cpp import LlamaCppModel
from stage2_relations.model_file import GGUF_MAGIC
from stage2_relations.relate import LanguageModelMapper
from training.corpus import CorpusError, read_annotations
from training.distill import DROP_REASONS, drop_reason, least_confidence

SURE, UNSURE = 0.97, 0.8
# What the teacher says of a text: answer and probability by label; "not present" for sure where nothing is said.
Said = Mapping[str, tuple[str, float]]
ANSWERS: dict[str, Said | str] = {
    "6 mm nodule in the RUL. No mass.": {"nodule": ("RUL", SURE)},
    "RUL 결절, LUL 종괴. 흉수 소량.": {"nodule": ("RUL", SURE), "mass": ("LUL", SURE), "effusion": ("pleural", SURE)},
    "Nodules in RUL and LUL.": {"nodule": ("RUL, LUL", SURE)},
    "Normal chest.": {},
    "Mass, no site given.": {"mass": ("not stated", SURE)},
    "Probably a nodule in the LUL.": {"nodule": ("LUL", UNSURE)},
    "Perhaps no mass at all.": {"mass": ("not present", UNSURE)},
    "A coin lesion in the RUL.": {"nodule": ("RUL", SURE)},
    "Nodule at the apex.": {"nodule": ("RUL", SURE)},
    "No nodule in the RUL.": {"nodule": ("RUL", SURE)},
    "The model writes a letter here.": "Dear colleague,",
    "The model falls silent here.": "",
}
KEPT = [0, 1, 2, 3, 4]


class Teacher:
    """A LanguageModel of ANSWERS; a probability stands on the answer's first word, all other words are certain."""

    content_hash = "teacher"

    def __init__(self, answers: Mapping[str, Said | str]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
        report = prompt.body.split("<report> ", 1)[1].rsplit(" </report>", 1)[0]
        labels = prompt.body.rsplit("\n", 2)[1].split(": ", 1)[1].split(", ")
        self.asked.append(report)
        said = self._answers[report]
        if said == "":
            raise LanguageModelError("llama.cpp cannot decode")
        if isinstance(said, str):
            return Completion(said)
        pieces: list[tuple[str, float]] = []
        for number, label in enumerate(labels):
            answer, probability = said.get(label, ("not present", SURE))
            first, _, rest = answer.partition(", ")
            pieces += [("\n" * (number > 0) + f"{label}:", 1.0), (f" {first}", probability), (f", {rest}" if rest else "", 1.0)]
        text, ends = "", []
        for piece, _ in pieces:
            text += piece
            ends.append(len(text))
        return AlignedCompletion(text, tuple(math.log(p) for _, p in pieces), True, tuple(ends))


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Teacher:
    (tmp_path / "large.gguf").write_bytes(GGUF_MAGIC + (3).to_bytes(4, "little") + bytes(16))
    teacher = Teacher(ANSWERS)
    monkeypatch.setattr(LlamaCppModel, "load", lambda *_, **__: teacher)
    return teacher


def archive(tmp_path: Path, texts: Sequence[str]) -> Path:
    path = tmp_path / "archive.jsonl"
    rows = [{"report_id": f"r{n}", "text": text, "patient_id": f"p{n}", "date": "2024-05-06"} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def distil(tmp_path: Path, tiny_task_file: Path) -> Callable[..., Result]:
    def run(given: Path, *options: object, out: str = "out.jsonl", model: bool = True) -> Result:
        arguments = ["train", "distill", given, "--task", tiny_task_file, "--out", tmp_path / out, *options]
        arguments += ["--model", tmp_path / "large.gguf"] if model else []
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def test_kept_answers_are_a_corpus_file_and_the_others_are_counted(
    teacher: Teacher, distil: Callable[..., Result], tmp_path: Path, tiny_task: Task
) -> None:
    texts = [*ANSWERS, "Normal chest.", "   "]
    result = distil(archive(tmp_path, texts))
    assert result.exit_code == 1, result.output  # rows failed, as with 'radtag tag'
    summary = result.stdout.strip().splitlines()[-1]
    assert summary.endswith(
        "5 of 14 reports, 1 of them without findings; dropped: 2 failed, 1 rejected, 3 ungrounded, 2 unsure, 1 repeated"
    )
    found = read_annotations(tmp_path / "out.jsonl", tiny_task)
    assert [item.report.text for item in found] == [texts[number] for number in KEPT]
    assert [item.labels for item in found] == [
        {"nodule": ("rul",)},
        {"nodule": ("rul",), "mass": ("lul",), "effusion": ("pleural",)},
        {"nodule": ("rul", "lul")},
        {},
        {"mass": ()},
    ]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert {line["source"] for line in lines} == {"distilled"}
    assert all(line["confidence"] == pytest.approx(SURE, abs=1e-4) for line in lines)
    assert [(item.report.patient_id, item.report.study_date) for item in found][1] == ("p1", "2024-05-06")
    records = "".join(path.read_text("utf-8") for path in (tmp_path / "out.jsonl.records" / "parts").glob("*.jsonl"))
    assert "Probably" not in records + result.output
    assert not list(tmp_path.glob(".*.tmp"))


def test_another_confidence_over_the_same_records_asks_nothing_again(
    teacher: Teacher, distil: Callable[..., Result], tmp_path: Path, tiny_task: Task
) -> None:
    given = archive(tmp_path, list(ANSWERS)[:7])
    assert distil(given).exit_code == 0
    assert len(teacher.asked) == 7
    again = distil(given, "--min-confidence", 0.7, "--records", tmp_path / "out.jsonl.records", out="second.jsonl")
    assert again.exit_code == 0, again.output
    assert len(teacher.asked) == 7
    assert "7 of 7 reports, 2 of them without findings; none dropped" in again.stdout
    assert len(read_annotations(tmp_path / "second.jsonl", tiny_task)) == 7


def test_the_teacher_is_asked_for_every_subject_and_no_hint_or_rule_helps(
    teacher: Teacher, distil: Callable[..., Result], tmp_path: Path
) -> None:
    assert distil(archive(tmp_path, ["Normal chest."])).exit_code == 0
    assert teacher.asked == ["Normal chest."]


def test_when_nothing_is_left_no_file_is_written_and_the_counts_are_told(
    teacher: Teacher, distil: Callable[..., Result], tmp_path: Path
) -> None:
    result = distil(archive(tmp_path, ["A coin lesion in the RUL."]))
    assert result.exit_code == 2
    assert "no report is left of 1 (dropped: 1 ungrounded)" in result.output
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_that_exists_is_not_replaced(teacher: Teacher, distil: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine", encoding="utf-8")
    result = distil(archive(tmp_path, ["Normal chest."]))
    assert (result.exit_code, teacher.asked) == (2, [])
    assert "exists already" in result.output
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_columns_are_named_as_for_tagging(teacher: Teacher, distil: Callable[..., Result], tmp_path: Path, tiny_task: Task) -> None:
    path = tmp_path / "archive.csv"
    path.write_text("nr,body,who\nx1,Normal chest.,p9\n", encoding="utf-8")
    result = distil(path, "--id-column", "nr", "--text-column", "body", "--patient-column", "who")
    assert result.exit_code == 0, result.output
    (item,) = read_annotations(tmp_path / "out.jsonl", tiny_task)
    assert (item.report.report_id, item.report.text, item.report.patient_id) == ("x1", "Normal chest.", "p9")


def test_without_a_stronger_model_nothing_begins(distil: Callable[..., Result], tmp_path: Path) -> None:
    result = distil(archive(tmp_path, ["Normal chest."]), model=False)
    assert result.exit_code == 2
    assert "--model or --server is expected" in result.output


def test_a_server_that_gives_no_probabilities_is_believed_only_on_demand(
    chat_server, chat_answers, distil: Callable[..., Result], tmp_path: Path, tiny_task: Task
) -> None:
    server = chat_server(lambda request: (200, chat_answers("nodule: RUL\nmass: not present\neffusion: not present")))
    given = archive(tmp_path, ["Nodule in the RUL."])
    options = ("--server", server.url, "--server-model", "m")
    refused = distil(given, *options, model=False)
    assert refused.exit_code == 2
    assert "dropped: 1 without confidence" in refused.output
    taken = distil(given, *options, "--min-confidence", 0, model=False)
    assert taken.exit_code == 0, taken.output
    (item,) = read_annotations(tmp_path / "out.jsonl", tiny_task)
    assert item.labels == {"nodule": ("rul",)}
    assert "confidence" not in json.loads((tmp_path / "out.jsonl").read_text("utf-8"))
    assert len(server.requests) == 1


def record(*entities: EntityFinding, relations: Sequence[Relation] = (), status: str = "ok") -> TaggedReport:
    return TaggedReport("r", "tiny", status, entities, tuple(relations), None, None)  # type: ignore[arg-type]


NODULE = EntityFinding("nodule", True, 0.95, (Span(0, 6),))
NO_MASS = EntityFinding("mass", False, 0.04)
HERE, THERE = Span(0, 6), Span(10, 13)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (record(NODULE, NO_MASS, relations=[Relation("nodule", "rul", 0.92, HERE, THERE)]), None),
        (record(NODULE, NO_MASS, relations=[Relation("nodule", "rul", 0.89, HERE, THERE)]), "unsure"),
        (record(NODULE, EntityFinding("mass", False, 0.11)), "unsure"),
        (record(NODULE, EntityFinding("mass", False, 0.1)), None),
        (record(NODULE, EntityFinding("mass", False, None)), "without_confidence"),
        (record(NODULE, relations=[Relation("nodule", "rul", None, HERE, THERE)]), "without_confidence"),
        (record(NODULE, relations=[Relation("nodule", "rul", 0.99, HERE, None)]), "ungrounded"),
        (record(NODULE, relations=[Relation("nodule", "rul", 0.99, None, THERE)]), "ungrounded"),
        (record(EntityFinding("nodule", True, 0.99)), "ungrounded"),
        (TaggedReport("r", "tiny", "failed", None, None, None, "cut"), "failed"),
        (TaggedReport("r", "tiny", "rejected", None, None, None, "empty"), "rejected"),
    ],
)
def test_a_report_is_kept_only_if_everything_said_of_it_is_grounded_and_sure(found: TaggedReport, reason: str | None) -> None:
    assert drop_reason(found, min_confidence=0.9) == reason
    assert reason is None or reason in DROP_REASONS


def test_a_tumour_report_is_as_sure_of_the_other_diagnoses_as_the_model_is_of_their_group() -> None:
    """They are not asked one by one where the group was found absent."""
    task = load_task("brain_mri")
    tumours = {"glioma": ("present", SURE), "non-tumor disease": ("not present", 0.91)}
    text = "Glioblastoma."
    teacher = Teacher({text: {task.label("glioma"): ("present", SURE), "non-tumor disease": tumours["non-tumor disease"]}})

    class Episodes(Teacher):
        def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
            if "progression" in (grammar or ""):
                return AlignedCompletion(f"{task.label('glioma')}: not stated", (math.log(SURE),), True, (20,))
            return teacher.complete(prompt, grammar=grammar, max_tokens=max_tokens)

    (reading,) = LanguageModelMapper(task, Episodes({}), grounding=False).relate([Report("r", text)], [None])
    assert isinstance(reading, Reading)
    by_key = {finding.key: finding for finding in reading.entities}
    assert by_key["glioma"].present and not by_key["stroke_infarction"].present
    assert by_key["stroke_infarction"].confidence == pytest.approx(0.09)
    assert least_confidence(record(*reading.entities)) == pytest.approx(0.91)


def test_source_and_confidence_of_a_corpus_line_are_checked(tmp_path: Path, tiny_task: Task) -> None:
    line = {"report_id": "a", "task": "tiny", "text": "Normal.", "labels": {}, "source": "distilled", "confidence": 1.2}
    path = tmp_path / "wrong.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"wrong\.jsonl:1: field 'confidence'"):
        read_annotations(path, tiny_task)
    path.write_text(json.dumps({**line, "source": ["any"]}), encoding="utf-8")
    assert len(read_annotations(path, tiny_task, strict=False)) == 1  # a gold file of another tool
