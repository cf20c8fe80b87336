from __future__ import annotations

from configs.schema import load_task
from stage1_encoder.weak_labels import KeywordFlagger


def test_keywords_know_no_negation_and_keep_the_order_of_the_task() -> None:
    task = load_task("chest_ct")
    present, empty = KeywordFlagger(task).flag(["No pleural effusion. 1 cm nodule, RUL.", "Normal study."])
    assert present.decided == present.hinted == ("pleural_effusion", "nodule")
    assert present.probability["pleural_effusion"] == 1.0
    assert present.probability["mass"] == 0.0
    assert tuple(empty.probability) == task.keys
    assert empty.decided == ()
