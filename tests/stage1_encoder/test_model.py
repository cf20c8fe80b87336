from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from stage1_encoder.model import EncoderShape, KeyFlagModel, MaskedTokenModel

TINY = EncoderShape(layers=2, width=32, heads=4, feed_forward=64, window_tokens=32)


@pytest.fixture
def model() -> KeyFlagModel:
    torch.manual_seed(0)
    return KeyFlagModel(TINY, vocabulary_size=100, pad_id=0, n_keys=3).eval()


def _marks(length: int, padding: int = 0) -> torch.Tensor:
    """Tokens 1 and 2 are marked with key 0, token 4 with key 1; key 2 has no mark."""
    marks = torch.zeros(1, length + padding, 3)
    marks[0, [1, 2], 0] = 1
    marks[0, min(4, length - 1), 1] = 1
    return marks


def _padded(length: int, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(5, 5 + length)[None]
    padded = functional.pad(ids, (0, padding))
    mask = torch.arange(length + padding)[None] < length
    return padded, mask


def test_padding_gets_no_attention_and_changes_no_logit(model: KeyFlagModel) -> None:
    """Mistake 1: attention pooling without a padding mask."""
    ids, mask = _padded(6, 0)
    alone = model(ids, _marks(6), mask)
    padded, mask = _padded(6, 20)
    assert torch.allclose(model(padded, _marks(6, 20), mask), alone, atol=1e-6)
    hidden = model.body(input_ids=padded, attention_mask=mask).last_hidden_state
    attention = model.head.attention(hidden, _marks(6, 20) * 0, mask)
    assert attention[:, :, 6:].abs().max() == 0
    assert torch.allclose(attention.sum(dim=-1), torch.ones(1, 3))
    # The check can fail: without the mask most of the weight lies on padding.
    assert model.head.attention(hidden, _marks(6, 20) * 0, None)[:, :, 6:].sum(dim=-1).min() > 0.5


def test_outputs_are_logits_and_not_probabilities(model: KeyFlagModel) -> None:
    """Mistake 2: binary cross-entropy with logits on outputs that went through a sigmoid: they could never leave [0, 1]."""
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([-20.0, 0.0, 20.0]))
    logits = model(torch.tensor([[5, 6, 7]]), torch.zeros(1, 3, 3))[0]
    assert logits[0] < -10
    assert logits[2] > 10
    assert functional.binary_cross_entropy_with_logits(logits[[0, 2]], torch.tensor([0.0, 1.0])) < 1e-4


def test_no_mask_is_a_mask_of_ones(model: KeyFlagModel) -> None:
    ids, mask = _padded(9, 0)
    assert torch.allclose(model(ids, _marks(9)), model(ids, _marks(9), mask), atol=1e-6)


def test_every_parameter_of_the_head_gets_a_gradient(model: KeyFlagModel) -> None:
    model.train()
    ids, mask = _padded(6, 3)
    model(ids, _marks(6, 3), mask).sum().backward()
    for name, parameter in [*model.head.named_parameters(), ("marks", model.mark_embeddings)]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_key_without_a_mark_has_no_mention_logit_and_one_asserted_mention_is_enough(model: KeyFlagModel) -> None:
    with torch.no_grad():
        model.head.shared_mention_weights.copy_(torch.eye(32)[0])
    hidden = torch.zeros(1, 6, 32)
    hidden[0, :, 0] = torch.tensor([0.0, -9.0, 9.0, 0.0, -9.0, 0.0])
    with torch.no_grad():
        logits = model.head.mention_logits(hidden, _marks(6))[0]
    assert logits[0] == pytest.approx(9, abs=0.01)
    assert logits[1] == pytest.approx(-9, abs=0.01)
    assert logits[2] == 0


def test_a_mark_draws_the_attention_of_its_key_alone(model: KeyFlagModel) -> None:
    hidden = torch.zeros(1, 6, 32)
    with torch.no_grad():
        attention = model.head.attention(hidden, _marks(6), None)[0]
    assert attention[0, [1, 2]].sum() > 0.9
    assert attention[1, 4] > 0.9
    assert torch.allclose(attention[2], torch.full((6,), 1 / 6))


def test_masked_token_head_is_tied_to_the_embeddings() -> None:
    model = MaskedTokenModel(TINY, vocabulary_size=100, pad_id=0)
    assert not any(tensor.shape == (100, 32) for name, tensor in model.named_parameters() if "word_embeddings" not in name)
    ids, mask = _padded(6, 2)
    asked = torch.zeros_like(mask)
    asked[0, [1, 4]] = True
    logits = model(ids, mask, asked)
    assert logits.shape == (2, 100)
    logits.sum().backward()
    assert model.body.embeddings.word_embeddings.weight.grad is not None
