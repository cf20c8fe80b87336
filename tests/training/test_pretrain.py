from __future__ import annotations

import torch

from stage1_encoder.model import EncoderShape, MaskedTokenModel
from stage1_encoder.tokenizer import ReportTokenizer
from training.pretrain import MaskedTokenLearner, pad

TEXTS = ["A 6 mm nodule in the RUL, no change. 결절 없음. No pleural effusion, consolidation or nodule in both lungs."] * 8


def _learner() -> tuple[MaskedTokenLearner, ReportTokenizer, list[list[int]]]:
    tokenizer = ReportTokenizer.train(TEXTS, vocabulary_size=450)
    windows = [tokenizer.windows(tokenizer.encode(text).ids, window_tokens=64, overlap_tokens=0)[0] for text in TEXTS]
    torch.manual_seed(0)
    shape = EncoderShape(layers=1, width=16, heads=2, feed_forward=16, window_tokens=64)
    model = MaskedTokenModel(shape, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id)
    return MaskedTokenLearner(model, tokenizer, train=windows * 40, dev=windows, share=0.15, seed=1), tokenizer, windows


def test_masks_are_drawn_anew_every_epoch_and_repeat_by_number() -> None:
    learner, _, _ = _learner()
    again, _, _ = _learner()
    assert learner.examples(0) == again.examples(0)
    assert learner.examples(0) != learner.examples(1)


def test_fifteen_percent_are_asked_and_most_of_them_masked() -> None:
    learner, tokenizer, windows = _learner()
    n_inner = len(windows[0]) - 2
    kinds = {"mask": 0, "same": 0, "other": 0}
    for window in learner.examples(0):
        assert len(window.positions) == round(0.15 * n_inner)
        assert 0 not in window.positions
        assert len(windows[0]) - 1 not in window.positions
        restored = list(window.ids)
        for position, answer in zip(window.positions, window.answers, strict=True):
            kind = "mask" if window.ids[position] == tokenizer.mask_id else "same" if window.ids[position] == answer else "other"
            kinds[kind] += 1
            restored[position] = answer
        assert restored == windows[0]
    total = sum(kinds.values())
    assert abs(kinds["mask"] / total - 0.8) < 0.05
    assert abs(kinds["other"] / total - 0.1) < 0.04


def test_the_dev_loss_is_the_same_twice() -> None:
    learner, _, _ = _learner()
    learner.model.eval()
    device = torch.device("cpu")
    with torch.inference_mode():
        assert learner.evaluate(device) == learner.evaluate(device)


def test_padding_is_marked() -> None:
    ids, mask = pad([[5, 6, 7], [5]], pad_id=0, limit_tokens=3)
    assert ids.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
