"""Grammar, parser and token grammar agree on what an answer may be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.contracts import Completion
from stage2_relations.confidence import presence_probability, span_probability
from stage2_relations.grammar import NOT_PRESENT, NOT_STATED, PRESENT, AnswerLine, answer_grammar, longest_answer_bytes
from stage2_relations.language_model import AlignedCompletion
from stage2_relations.parse import AnswerError, parse_answer
from stage2_relations.token_grammar import TokenGrammar

RUL, LUL, PLEURAL = ("rul", "RUL"), ("lul", "좌상엽"), ("pleural", "pleural")
NODULE = AnswerLine("nodule", "nodule", "relation", (RUL, LUL))
GGO = AnswerLine("ggo", "ground-glass opacity", "relation", (LUL,), rejectable=False)
EFFUSION = AnswerLine("pleural_effusion", "pleural effusion", "relation", (PLEURAL,), required=frozenset({"pleural"}))
GLIOMA = AnswerLine("glioma", "glioma", "presence")


def answers(lines: list[AnswerLine]) -> set[str]:
    """Every answer of the grammar, followed character by character."""
    grammar = TokenGrammar.parse(answer_grammar(lines), lambda text: tuple(map(ord, text)))
    assert grammar is not None
    found: set[str] = set()

    def follow(text: str) -> None:
        replay = TokenGrammar.parse(answer_grammar(lines), lambda literal: tuple(map(ord, literal)))
        assert replay is not None
        for character in text:
            replay.accept(ord(character))
        if replay.may_end:
            found.add(text)
        for token in replay.next_tokens():
            follow(text + chr(token))

    follow("")
    return found


def test_a_line_lists_its_values_in_order_or_says_a_word() -> None:
    assert answers([NODULE]) == {
        "nodule: RUL",
        "nodule: RUL, 좌상엽",
        "nodule: 좌상엽",
        f"nodule: {NOT_STATED}",
        f"nodule: {NOT_PRESENT}",
    }


def test_what_is_not_offered_is_not_in_the_grammar() -> None:
    assert answers([GGO]) == {"ground-glass opacity: 좌상엽", f"ground-glass opacity: {NOT_STATED}"}
    assert answers([EFFUSION]) == {"pleural effusion: pleural", f"pleural effusion: {NOT_PRESENT}"}
    assert answers([GLIOMA]) == {f"glioma: {PRESENT}", f"glioma: {NOT_PRESENT}"}


def test_required_values_are_in_every_list() -> None:
    line = AnswerLine("n", "n", "relation", (RUL, LUL, PLEURAL), rejectable=False, required=frozenset({"lul"}))
    assert answers([line]) == {"n: 좌상엽", "n: RUL, 좌상엽", "n: 좌상엽, pleural", "n: RUL, 좌상엽, pleural"}


def test_lines_come_in_the_asked_order() -> None:
    assert answers([GLIOMA, EFFUSION]) == {
        f"glioma: {one}\npleural effusion: {two}" for one in (PRESENT, NOT_PRESENT) for two in ("pleural", NOT_PRESENT)
    }


@pytest.mark.parametrize(
    ("line", "is_open"),
    [
        (NODULE, True),
        (EFFUSION, True),
        (AnswerLine("e", "e", "relation", (PLEURAL,), rejectable=False, required=frozenset({"pleural"})), False),
        (AnswerLine("e", "e", "relation", (PLEURAL,), rejectable=False, needs_value=True), False),
        (AnswerLine("e", "e", "relation", (PLEURAL, RUL), rejectable=False, required=frozenset({"pleural"})), True),
        (AnswerLine("e", "e", "relation", (), rejectable=False), False),
        (AnswerLine("e", "e", "presence", rejectable=False), False),
        (GLIOMA, True),
    ],
)
def test_a_line_is_open_if_it_has_more_than_one_answer(line: AnswerLine, is_open: bool) -> None:
    assert line.is_open is is_open
    assert (len(answers([line])) > 1) is is_open


@st.composite
def answer_lines(draw: st.DrawFn) -> list[AnswerLine]:
    labels = draw(st.lists(st.text('abcß결절 "\\', min_size=1, max_size=6), min_size=1, max_size=3, unique=True))
    lines = []
    for label in labels:
        shown = draw(st.lists(st.sampled_from(["RUL", "RML", "설엽", 'a"b', "c\\d"]), max_size=3, unique=True))
        values = tuple((f"key {value}", value) for value in shown)
        required = frozenset(draw(st.sets(st.sampled_from([key for key, _ in values])))) if values else frozenset()
        flags = {"rejectable": draw(st.booleans()), "needs_value": draw(st.booleans())}
        lines.append(AnswerLine(label, label, "relation", values, required=required, **flags))
    return lines


@settings(max_examples=40, deadline=None)
@given(answer_lines())
def test_every_answer_of_the_grammar_is_read_back_and_fits_its_token_bound(lines: list[AnswerLine]) -> None:
    for line in lines:
        for text in answers([line]):
            (read,) = parse_answer(Completion(text), [line])
            assert read.present == (text != f"{line.label}: {NOT_PRESENT}")
            shown = ", ".join(dict(line.values)[value.key] for value in read.values)
            assert shown == "" or text == f"{line.label}: {shown}"
            assert not read.present or line.required <= {value.key for value in read.values}
    longest = "\n".join(max(answers([line]), key=lambda text: len(text.encode())) for line in lines)
    assert len(longest.encode()) <= longest_answer_bytes(lines)


UNREADABLE = {
    "nothing": ("", "has 1 lines; 2 are expected"),
    "two empty lines": ("\n\n.", "has 3 lines"),
    "another beginning": ("Answer\nground-glass opacity: not stated", "line 1 of the answer does not begin with 'nodule:'"),
    "too few lines": ("nodule: RUL", "has 1 lines; 2 are expected"),
    "too many lines": ("nodule: RUL\nground-glass opacity: not stated\nmass: RUL", "has 3 lines"),
    "another order": ("ground-glass opacity: not stated\nnodule: RUL", "line 1"),
    "unknown value": ("nodule: RUL, liver\nground-glass opacity: not stated", "line 1 .* not offered"),
    "value of another line": ("nodule: RUL\nground-glass opacity: RUL", "line 2 .* not offered"),
    "a value twice": ("nodule: RUL, RUL\nground-glass opacity: not stated", "line 1 .* not offered"),
    "none among values": ("nodule: RUL, none\nground-glass opacity: 좌상엽", "line 1"),
    "word that was not offered": ("nodule: RUL\nground-glass opacity: not present", "line 2"),
    "empty line": ("nodule:\nground-glass opacity: not stated", "line 1"),
    "prose": ("The nodule is in the RUL.\nGGO is not stated.", "line 1"),
    "JSON": ('{"nodule": ["RUL"]}\n{}', "line 1"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_answer_that_was_not_offered_is_refused(name: str) -> None:
    text, problem = UNREADABLE[name]
    with pytest.raises(AnswerError, match=problem):
        parse_answer(Completion(text), [NODULE, GGO])


def test_refusal_does_not_repeat_what_the_model_said() -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer(Completion("nodule: Kim Cheolsu, 870101\nground-glass opacity: not stated"), [NODULE, GGO])
    assert "Kim" not in str(caught.value)


def test_unfinished_answer_is_refused_though_it_reads_well() -> None:
    with pytest.raises(AnswerError, match="token limit"):
        parse_answer(Completion("nodule: RUL", finished=False), [NODULE])


def test_missing_required_value_is_refused() -> None:
    line = AnswerLine("n", "n", "relation", (RUL, LUL), required=frozenset({"lul"}))
    with pytest.raises(AnswerError, match="leaves out"):
        parse_answer(Completion("n: RUL"), [line])


def test_not_present_in_one_line_drops_nothing_else() -> None:
    read = parse_answer(Completion(f"nodule: {NOT_PRESENT}\nground-glass opacity: 좌상엽"), [NODULE, GGO])
    assert [(line.present, [value.key for value in line.values]) for line in read] == [(False, []), (True, ["lul"])]


def test_grammar_beyond_literals_is_left_to_llama_cpp() -> None:
    def tokenise(text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    for gbnf in (
        "root ::= [a-z]+",
        'root ::= "a"?',
        'root ::= ("a" | "b")',
        'root ::= "a" root | "b"',
        "root ::= missing",
        "root = 1",
    ):
        assert TokenGrammar.parse(gbnf, tokenise) is None


def test_probabilities_belong_to_the_words_they_stand_for() -> None:
    completion = AlignedCompletion("nodule: RUL, 좌상엽", (0.0, -0.5, -0.25, -2.0), True, (7, 11, 12, 16))
    (line,) = parse_answer(completion, [NODULE])
    first, second = line.values
    assert span_probability(completion, first.start, first.end) == pytest.approx(0.60653066)
    assert span_probability(completion, second.start, second.end) == pytest.approx(0.10539922)
    assert presence_probability(completion, line) == pytest.approx(0.60653066)


def test_probability_of_presence_is_what_not_present_leaves() -> None:
    completion = AlignedCompletion("nodule: not present", (0.0, -0.5, -0.5), True, (7, 11, 19))
    (line,) = parse_answer(completion, [NODULE])
    assert presence_probability(completion, line) == pytest.approx(1 - 0.36787944)


def test_no_log_probabilities_give_no_confidence() -> None:
    (line,) = parse_answer(Completion("nodule: RUL"), [NODULE])
    assert presence_probability(Completion("nodule: RUL"), line) is None
