"""`radtag tag --rereads`: what it goes with, what it refuses, and what its runs are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.settings import Settings, SettingsError, fingerprint, provenance_parts, settings, with_files
from stage2_relations.token_grammar import TokenGrammar

SERVER = {"server": "http://h", "server_model": "m"}
ONE_EXAMPLE = "examples: [{report: nodule right, hints: [nodule], answer: {nodule: [right_side]}}]"


def examples(*reports: str) -> str:
    return f"examples: [{', '.join(f'{{report: {text}, hints: [nodule], answer: {{nodule: [right_side]}}}}' for text in reports)}]"


@pytest.fixture
def with_examples(task_file: Path) -> Callable[..., Path]:
    """The tiny task with these worked examples in its step."""

    def write(*reports: str) -> Path:
        text = task_file.read_text(encoding="utf-8")
        assert ONE_EXAMPLE in text
        task_file.write_text(text.replace(ONE_EXAMPLE, examples(*reports)), encoding="utf-8")
        return task_file

    return write


def filled(**values: object) -> Settings:
    return with_files(settings(**{"task": "chest_ct", "system": "llm", **SERVER, **values}))


@pytest.mark.parametrize("system", ["encoder", "rules", "published-rules"])
def test_a_system_without_a_model_reads_nothing_again(system: str) -> None:
    with pytest.raises(SettingsError, match=f"system '{system}' uses no rereads; --rereads goes with two-stage or llm"):
        settings(task="chest_ct", system=system, rereads=1)
    assert settings(task="chest_ct", system=system, rereads=0).rereads == 0


def test_a_model_that_is_read_by_scores_is_not_read_again(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--rereads goes with --read generate, not with --read score$"):
        settings(task="chest_ct", system="llm", read="score", rereads=1)


def test_a_model_that_would_be_read_by_scores_without_saying_so_is_not_read_again() -> None:
    with pytest.raises(
        SettingsError, match=r"^--rereads goes with --read generate; this model and adapter are read by --read score$"
    ):
        with_files(settings(task="chest_ct", system="llm", rereads=1))
    assert with_files(settings(task="chest_ct", system="llm", no_adapter=True, rereads=1)).read == "generate"
    assert with_files(settings(task="chest_ct", system="llm", read="generate", rereads=1)).rereads == 1


@pytest.mark.parametrize("rereads", [-1, 10])
def test_a_number_that_is_none_of_0_to_9_is_named(rereads: int) -> None:
    with pytest.raises(SettingsError, match=f"rereads is {rereads}"):
        settings(task="chest_ct", rereads=rereads)


@pytest.mark.parametrize(("task", "step"), [("chest_ct", "lesions"), ("brain_mri", "diagnoses")])
def test_more_re_reads_than_the_worked_examples_have_orders_are_refused_with_the_largest_number(task: str, step: str) -> None:
    with pytest.raises(SettingsError) as refused:
        filled(task=task, rereads=2)
    assert str(refused.value) == (
        f"--rereads 2 is more than step '{step}' of task '{task}' allows: 2 worked examples; the largest is 1"
    )
    assert filled(task=task, rereads=1).rereads == 1


def test_a_prompt_with_one_worked_example_cannot_be_read_again(task_file: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        filled(task=str(task_file), rereads=1)
    assert str(refused.value) == "--rereads needs two worked examples or more to reorder; step 'sides' of task 'tiny' has 1"


def test_four_worked_examples_allow_nine_re_reads(with_examples) -> None:
    assert filled(task=str(with_examples("nodule 1", "nodule 2", "nodule 3", "nodule 4")), rereads=9).rereads == 9


def test_three_worked_examples_allow_five_re_reads(with_examples) -> None:
    task = str(with_examples("nodule 1", "nodule 2", "nodule 3"))
    assert filled(task=task, rereads=5).rereads == 5
    with pytest.raises(SettingsError, match="3 worked examples; the largest is 5"):
        filled(task=task, rereads=6)


def test_re_reads_are_part_of_the_fingerprint_and_their_absence_is_not() -> None:
    without, one = provenance_parts(filled()), provenance_parts(filled(rereads=1))
    assert "rereads" not in without and provenance_parts(filled(rereads=0)) == without
    assert one == without | {"rereads": "1"}
    assert fingerprint(one) != fingerprint(without)


def answer_of(request: dict) -> str:
    """The last answer in the alphabet that the grammar allows; the first where an example has changed its place."""
    place = TokenGrammar.parse(request["grammar"], lambda literal: tuple(map(ord, literal)))
    which, text = -1 if in_file_order(request) else 0, ""
    while offered := place.next_tokens():
        text += chr(offered[which])
        place.accept(ord(text[-1]))
    return text


def in_file_order(request: dict) -> bool:
    return [example[0] for example in request["messages"][-1]["content"].split("<report> nodule ")[1:]] == ["1", "2", "3"]


REPORTS = [
    {"report_id": f"r{row}", "text": f"{text} #{row} right and left."}
    for row, text in enumerate(["A nodule.", "Nothing to see.", "A mass.", "A mass, nodules."] * 3)
]


@pytest.fixture
def tag(radtag, write_jsonl, with_examples, chat_server, chat_answers, tmp_path: Path):
    """Tags twelve reports with a server that gives no probabilities; the result, and the server."""
    task = with_examples("nodule 1", "nodule 2", "nodule 3")

    def run(out: str, *options: object, say: Callable[[dict], object] | None = None):
        server = chat_server(say or (lambda request: (200, chat_answers(answer_of(request)))))
        arguments = ("--task", task, "--out", tmp_path / out, "--system", "llm", "--server", server.url, "--server-model", "m")
        return radtag("tag", write_jsonl(REPORTS), *arguments, *options), server

    return run


def bare(records: list[dict]) -> list[dict]:
    """Records without confidences and fingerprints."""
    return [
        record
        | {name: [found | {"confidence": None} for found in record[name]] for name in ("entities", "relations")}
        | {"provenance": None}
        for record in records
    ]


def test_a_run_with_re_reads_says_the_same_and_how_sure(tag, records_of, tmp_path: Path) -> None:
    (once, server), (again, server_again) = tag("once"), tag("again", "--rereads", 3)
    assert (once.exit_code, again.exit_code) == (0, 0), once.output + again.output
    assert len(server_again.requests) == 4 * len(server.requests) > 0
    plain, sure = records_of(tmp_path / "once"), records_of(tmp_path / "again")
    assert bare(plain) == bare(sure)
    assert {relation["confidence"] for record in plain for relation in record["relations"]} == {None}
    found = [relation["confidence"] for record in sure for relation in record["relations"]]
    assert set(found) == {0.3, 0.9}  # of four readings the first alone says right, and all say left
    told = [{entity["key"]: entity["confidence"] for entity in record["entities"]} for record in sure[:4]]
    assert told[0] == {"nodule": 0.9, "mass": None}
    assert told[1:3] == [{"nodule": None, "mass": None}, {"nodule": None, "mass": 0.9}]


def test_several_reports_at_once_are_re_read_to_the_same_bytes(tag, parts_of, tmp_path: Path) -> None:
    for out, n_at_once in (("one", 1), ("six", 6)):
        result, _ = tag(out, "--rereads", 2, "--http-concurrency", n_at_once)
        assert result.exit_code == 0, result.output
    assert parts_of(tmp_path / "one") == parts_of(tmp_path / "six")


def test_a_server_that_fails_every_re_read_leaves_the_first_reading(tag, chat_answers, records_of, tmp_path: Path) -> None:
    def say(request: dict) -> tuple[int, object]:
        return (200, chat_answers(answer_of(request))) if in_file_order(request) else (500, {})

    (once, _), (again, _) = tag("once", say=say), tag("again", "--rereads", 2, say=say)
    assert (once.exit_code, again.exit_code) == (0, 0)
    plain, sure = records_of(tmp_path / "once"), records_of(tmp_path / "again")
    assert [record | {"provenance": None} for record in plain] == [record | {"provenance": None} for record in sure]


def test_the_refusal_is_one_line_and_nothing_is_written(tag, tmp_path: Path) -> None:
    result, server = tag("out", "--rereads", 6)
    assert (result.exit_code, (tmp_path / "out").exists(), server.requests) == (2, False, [])
    assert result.stderr == (
        "radtag: --rereads 6 is more than step 'sides' of task 'tiny' allows: 3 worked examples; the largest is 5\n"
    )
