from __future__ import annotations

import math

import pytest

from stage2_relations.offered_odds import ServedToken, offered_logprobs

GRAMMAR = 'root ::= "nodule:" place\nplace ::= " RUL" more | " LUL" | " not stated"\nmore ::= "" | ", LUL"\n'


def token(text: str, **others: float) -> ServedToken:
    """Probabilities by token; `_` in a name stands for a space, the chosen token's own is `p`."""
    own = others.pop("p")
    top = {text: own, **{name.replace("_", " "): p for name, p in others.items()}}
    return ServedToken(text, {name: math.log(p) for name, p in top.items()})


REST = {"the": 1e-9}  # so that what is not given is next to nothing


def shares(*tokens: ServedToken) -> list[float] | None:
    found = offered_logprobs(tokens, GRAMMAR)
    return None if found is None else [math.exp(logprob) for logprob in found]


def test_a_forced_token_is_certain_however_unlikely_the_server_found_it() -> None:
    found = shares(token("nod", p=1e-6), token("ule:", p=1e-6), token(" RUL", p=0.3, _LUL=0.1, _not=0.1, **REST))
    assert found is not None
    assert found[:2] == [1.0, 1.0]
    assert found[2] == pytest.approx(0.6)


def test_other_spellings_of_the_answer_count_for_it_and_those_outside_the_grammar_for_nothing() -> None:
    place = token(" R", p=0.2, _=0.1, _RUL=0.1, _LL=0.5, _L=0.2, _nowhere=0.5, _n=0.2, **REST)
    found = shares(token("nodule:", p=1.0), place, token("UL", p=0.01))
    assert found is not None and found[2] == 1.0
    assert found[1] == pytest.approx((0.2 + 0.1 + 0.1) / (0.2 + 0.1 + 0.1 + 0.2 + 0.2))


def test_the_end_of_an_answer_is_an_alternative_to_more_of_it() -> None:
    first = [token("nodule:", p=1.0), token(" RUL", p=1.0, _L=1e-9, _n=1e-9)]
    found = shares(*first, ServedToken(", LUL", {", LUL": math.log(0.3), "<|eot_id|>": math.log(0.6), "x": -30.0}))
    assert found is not None and found[2] == pytest.approx(1 / 3)


def test_an_allowed_way_that_the_server_did_not_give_leaves_the_odds_unknown() -> None:
    assert shares(token("nodule:", p=1.0), token(" RUL", p=0.3, _LUL=0.1, the=0.05)) is None  # " not" may have up to 0.05
    assert shares(token("nodule:", p=1.0), token(" RUL", p=0.3, _LUL=0.1, the=0.001)) is not None


def test_text_outside_the_grammar_and_grammars_of_characters_have_no_odds() -> None:
    assert shares(token("nodule:", p=1.0), token(" everywhere", p=1.0, _LUL=0.1, **REST)) is None
    assert offered_logprobs([token("1", p=1.0)], "root ::= [0-9]") is None
