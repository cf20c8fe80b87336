"""Re-reads: they tell how sure the first reading is, and never what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from configs.contracts import ChatPrompt, Completion, EntityFinding, EntityFlags, Reading, Relation, Report, Span, Unread
from configs.schema import Task, load_task
from stage2_relations.language_model import LanguageModelError
from stage2_relations.llama_cpp import LlamaCppModel
from stage2_relations.model_file import packaged_model, requantised
from stage2_relations.prompt import StepPrompt, n_other_orders
from stage2_relations.relate import LanguageModelMapper
from stage2_relations.stability import Agreement, StabilityMapper

CHEST = load_task("chest_ct")
BRAIN = load_task("brain_mri")
REPORT = Report("r", "A nodule. A mass.")
NODULE, RUL = Span(2, 8), Span(9, 10)


class Says:
    """A mapper that says the same of every report, or another thing of each; keeps what it was asked."""

    def __init__(self, *said: Reading | Unread) -> None:
        self.said = said
        self.asked: list[str] = []
        self.flags: list[EntityFlags | None] = []

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        self.asked += [report.report_id for report in reports]
        self.flags += flags
        return [self.said[min(row, len(self.said) - 1)] for row in range(len(reports))]


def saying(*values: str, present: bool = True, own: float | None = None) -> Reading:
    """A reading of a nodule in these places, and of a mass that is not there."""
    places = tuple(Relation("nodule", value, own, NODULE, RUL) for value in values)
    return Reading((EntityFinding("nodule", present, own, (NODULE,)), EntityFinding("mass", False, own)), places)


def read(first: Reading | Unread, *again: Reading | Unread) -> Reading | Unread:
    (result,) = StabilityMapper(Says(first), [Says(one) for one in again]).relate([REPORT], [None])
    return result


def sure(result: Reading | Unread) -> tuple[list[float | None], list[float | None]]:
    assert isinstance(result, Reading), result
    return [finding.confidence for finding in result.entities], [relation.confidence for relation in result.relations]


def test_without_a_confidence_of_its_own_the_share_of_readings_counts_smoothed() -> None:
    entities, relations = sure(read(saying("rul", "lll"), saying("rul"), saying(present=False), saying("rul", "lll")))
    assert entities == pytest.approx([3.5 / 5, 0.5 / 5])
    assert relations == pytest.approx([3.5 / 5, 2.5 / 5])


def test_a_confidence_of_its_own_and_the_share_of_readings_count_half_each() -> None:
    again = (saying("rul", own=0.1), saying(present=False, own=0.1), saying(own=0.1))
    entities, relations = sure(read(saying("rul", own=0.8), *again))
    assert entities == pytest.approx([(0.8 + 3 / 4) / 2, (0.8 + 0) / 2])
    assert relations == pytest.approx([(0.8 + 2 / 4) / 2])


@pytest.mark.parametrize("own", [None, 0.0, 0.37, 1.0])
def test_every_confidence_is_a_probability_that_grows_with_agreement(own: float | None) -> None:
    for n_readings in range(2, 11):
        found = [Agreement(n_stating, n_readings).confidence(own) for n_stating in range(n_readings + 1)]
        assert found == sorted(set(found)) and found[0] >= 0.0 and found[-1] <= 1.0


def test_nothing_is_added_or_voted_away_and_no_span_moves() -> None:
    first = saying("rul")
    against = Reading(
        (EntityFinding("nodule", False), EntityFinding("mass", True, 0.9, (NODULE,))), (Relation("mass", "lll", 0.9),)
    )
    result = read(first, *[against] * 9)
    assert isinstance(result, Reading)
    entities = tuple(replace(finding, confidence=None) for finding in result.entities)
    relations = tuple(replace(relation, confidence=None) for relation in result.relations)
    assert Reading(entities, relations) == first
    assert sure(result) == ([pytest.approx(1.5 / 11), pytest.approx(9.5 / 11)], [pytest.approx(1.5 / 11)])


def test_a_re_read_that_fails_is_no_reading() -> None:
    first, same, other, failed = saying("rul"), saying("rul"), saying(present=False), Unread("answer stops at the token limit")
    assert read(first, failed, same, failed, other) == read(first, same, other)


def test_a_first_reading_whose_re_reads_all_fail_stands_as_it_is() -> None:
    first = saying("rul", own=0.8)
    assert read(first, Unread("no"), Unread("no")) is first
    assert sure(read(saying("rul"), Unread("no"))) == ([None, None], [None])


def test_a_report_that_is_unread_stays_so_and_is_not_read_again() -> None:
    unread, again = Unread("step 'lesions': answer has 3 lines; 1 are expected"), Says(saying("rul"), saying())
    reports = [replace(REPORT, report_id=name) for name in "abc"]
    flags = [EntityFlags({}, (name,), ()) for name in "abc"]
    results = StabilityMapper(Says(saying("rul"), unread, saying("rul")), [again]).relate(reports, flags)
    assert results[1] is unread
    assert (again.asked, again.flags) == (["a", "c"], [flags[0], flags[2]])
    assert [sure(result)[1] for result in (results[0], results[2])] == [[2.5 / 3], [1.5 / 3]]
    nothing = Says(saying("rul"))
    assert StabilityMapper(Says(unread), [nothing]).relate([REPORT], [None]) == [unread]
    assert nothing.asked == []


def test_tokens_are_summed_and_those_of_a_shared_model_are_counted_once() -> None:
    class Counted(Says):
        def __init__(self, counts: dict[str, int]) -> None:
            super().__init__(saying())
            self.token_counts = counts

    shared, own = {"stage2_decoded": 5, "stage2_kept": 1}, {"stage2_decoded": 5, "stage2_kept": 1}
    mapper = StabilityMapper(Counted(shared), [Counted(shared), Counted(own), Says(saying())])
    assert mapper.token_counts == {"stage2_decoded": 10, "stage2_kept": 2}
    assert StabilityMapper(Says(saying()), [Says(saying())]).token_counts == {}


class Wavering:
    """A scripted model: what it says depends on the order of its worked examples; keeps how often it was asked."""

    def __init__(self, answer: Callable[[str, list[str]], str]) -> None:
        self.answer = answer
        self.orders: list[str] = []

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
        file_orders = {StepPrompt(task, step).prefix for task in (CHEST, BRAIN) for step in task.steps}
        self.orders.append("file" if prompt.prefix in file_orders else "other")
        hints = prompt.body.rsplit("\n", 2)[1].split(": ", 1)[1].split(", ")
        return Completion(self.answer(self.orders[-1], hints))


def stable(task: Task, model: Wavering, *, grounding: bool = True, n_again: int = 1) -> StabilityMapper:
    seeds = (None, *range(1, n_again + 1))
    first, *again = (
        LanguageModelMapper(task, model, grounding=grounding, linking="none", reject="undecided", examples_seed=seed)
        for seed in seeds
    )
    return StabilityMapper(first, again)


def confidences(result: Reading | Unread) -> dict[str, float | None]:
    assert isinstance(result, Reading), result
    found = {finding.key: finding.confidence for finding in result.entities}
    return found | {f"{relation.subject} {relation.value}": relation.confidence for relation in result.relations}


def flags(task: Task, decided: Sequence[str], undecided: Sequence[str] = ()) -> EntityFlags:
    probability = {key: 0.98 if key in decided else 0.4 if key in undecided else 0.01 for key in task.keys}
    return EntityFlags(probability, (*decided, *undecided), tuple(decided))


def test_what_the_model_chose_gets_a_confidence_and_what_rules_or_stage_1_settled_keeps_its_own() -> None:
    def answer(order: str, hints: list[str]) -> str:
        said = {"nodule": "RUL, LLL" if order == "file" else "LLL", "mass": "RUL" if order == "file" else "not present"}
        return "\n".join(f"{hint}: {said[hint]}" for hint in hints)

    model = Wavering(answer)
    text = "A nodule. A mass. Pleural effusion. RUL and LLL. No consolidation."
    flag = flags(CHEST, ["nodule", "pleural_effusion"], ["mass", "consolidation"])
    (result,) = stable(CHEST, model).relate([Report("r", text)], [flag])
    assert model.orders == ["file", "other"]
    found = confidences(result)
    assert found["nodule"] == 0.98  # decided by stage 1, and the model may not reject it
    assert found["nodule rul"] == pytest.approx(1.5 / 3) and found["nodule lll"] == pytest.approx(2.5 / 3)
    assert found["mass"] == pytest.approx(1.5 / 3) and found["mass rul"] == pytest.approx(1.5 / 3)
    assert found["pleural_effusion"] == found["pleural_effusion pleural"] == 0.98  # one possible answer, so never put
    assert found["consolidation"] == 0.4  # the rules read it as denied, as stage 1 does
    assert found["ggo"] == 0.01


def test_a_report_that_raises_no_question_gets_no_confidence_from_its_re_reads() -> None:
    model = Wavering(lambda order, hints: "never asked")
    (result,) = stable(CHEST, model).relate([Report("r", "No mass.")], [None])
    assert (set(confidences(result).values()), model.orders) == ({None}, [])


def test_a_group_that_wavers_takes_its_members_with_it_and_only_those_that_the_report_names() -> None:
    def answer(order: str, hints: list[str]) -> str:
        said = {"non-tumor disease": "present" if order == "file" else "not present"}
        return "\n".join(f"{hint}: {said.get(hint, 'present')}" for hint in hints)

    (result,) = stable(BRAIN, Wavering(answer)).relate([Report("r", "Acute infarct.")], [None])
    found = confidences(result)
    assert found["stroke_infarction"] == pytest.approx(1.5 / 3)
    assert {key for key, confidence in found.items() if confidence is not None} == {"stroke_infarction"}


def test_without_grounding_every_key_is_asked_and_gets_a_confidence() -> None:
    model = Wavering(lambda order, hints: "\n".join(f"{hint}: not present" for hint in hints))
    (result,) = stable(CHEST, model, grounding=False).relate([REPORT], [None])
    assert confidences(result) == pytest.approx(dict.fromkeys(CHEST.keys, 0.5 / 3))


def test_a_model_that_fails_in_the_other_order_leaves_the_first_answer() -> None:
    def answer(order: str, hints: list[str]) -> str:
        if order == "other":
            raise LanguageModelError("server answers with status 500")
        return "nodule: RUL"

    mapper = stable(CHEST, Wavering(answer))
    flag = flags(CHEST, ["nodule"])
    (result,) = mapper.relate([Report("r", "A nodule. RUL, LLL.")], [flag])
    assert confidences(result)["nodule rul"] is None


def knee(tmp_path: Path, *, n_examples: int) -> Task:
    examples = "\n".join(f"      - {{report: Tear {n}., hints: [tear], answer: {{tear: []}}}}" for n in range(n_examples))
    path = tmp_path / f"knee{n_examples}.yaml"
    path.write_text(
        "task: knee_mri\ntitle: Knee MRI\nentities:\n  tear: {label: tear, keywords: {en: [tear]}}\n"
        "values:\n  acl: {label: ACL, keywords: {en: [ACL]}}\nsteps:\n  - name: tears\n    kind: relation\n"
        f"    heading: Targets\n    instruction: Say where.\n    subjects: [tear]\n    values: [acl]\n    examples:\n{examples}\n",
        encoding="utf-8",
    )
    return load_task(path)


@pytest.mark.parametrize("n_examples", [2, 3, 4])
def test_each_seed_gives_another_order_until_there_is_none_left(tmp_path: Path, n_examples: int) -> None:
    task = knee(tmp_path, n_examples=n_examples)
    step = task.steps[0]
    n_orders = math.factorial(n_examples) - 1
    assert n_other_orders(step) == n_orders
    seeds = range(1, n_orders + 1)
    prefixes = [StepPrompt(task, step, examples_seed=seed).prefix for seed in seeds]
    whole = StepPrompt(task, step).prefix
    assert len({whole, *prefixes}) == n_orders + 1
    assert all(sorted(prefix.split("\n")) == sorted(whole.split("\n")) for prefix in prefixes)
    assert StepPrompt(task, step, examples_seed=n_orders + 1).prefix == prefixes[0]
    assert [StepPrompt(task, step, examples_seed=seed).prefix for seed in reversed(seeds)] == prefixes[::-1]


def test_one_example_has_one_order(tmp_path: Path) -> None:
    task = knee(tmp_path, n_examples=1)
    assert n_other_orders(task.steps[0]) == 0
    assert StepPrompt(task, task.steps[0], examples_seed=1).prefix == StepPrompt(task, task.steps[0]).prefix


def test_the_orders_are_the_same_in_every_process(tmp_path: Path) -> None:
    task = knee(tmp_path, n_examples=4)
    prefix = StepPrompt(task, task.steps[0], examples_seed=1).prefix
    assert [part.split(".")[0] for part in prefix.split("<report> Tear ")[1:]] == ["1", "3", "2", "0"]


@pytest.mark.llm
def test_the_real_model_says_the_same_with_re_reads_and_is_as_sure_every_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = LlamaCppModel.load(requantised(packaged_model(), tmp_path_factory.mktemp("cache")))
    texts = ["1. nodule, 8 mm. 2. mass, 3 cm. RUL, LLL 그리고 lingula.", "결절과 mass. 우상엽, 좌하엽.", "No nodule. Clear lungs."]
    reports = [Report(str(row), text) for row, text in enumerate(texts)]
    flag = [flags(CHEST, ["nodule"], ["mass"])] * len(reports)
    first, again = (LanguageModelMapper(CHEST, model, linking="none", reject="undecided", examples_seed=seed) for seed in (None, 1))
    alone, other = first.relate(reports, flag), again.relate(reports, flag)
    before = dict(model.token_counts)
    mapper = StabilityMapper(first, [again])
    readings = mapper.relate(reports, flag)
    assert mapper.token_counts == model.token_counts != before
    assert mapper.relate(reports, flag) == readings
    assert readings != alone
    for sure_reading, reading, reread in zip(readings, alone, other, strict=True):
        assert isinstance(sure_reading, Reading) and isinstance(reading, Reading) and isinstance(reread, Reading)
        stated = {(relation.subject, relation.value) for relation in reread.relations}
        for found, relation in zip(sure_reading.relations, reading.relations, strict=True):
            assert replace(found, confidence=relation.confidence) == relation
            share = (1 + ((relation.subject, relation.value) in stated)) / 2
            assert relation.confidence is not None
            assert found.confidence == pytest.approx((relation.confidence + share) / 2)
        assert [replace(finding, confidence=None) for finding in sure_reading.entities] == [
            replace(finding, confidence=None) for finding in reading.entities
        ]
