"""The encoder: a BERT body, a token attention per entity key, one logit a key; and the head that pre-trains the body.

Everything returns logits. No sigmoid inside: the losses of training/ take logits, and flags.py turns them into probabilities once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

# A marked token starts with e^4 of the attention of one that is not.
MARK_PULL = 4.0
UNMARKED = 1e4


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Size of the body. The defaults are those of MiniLM-L6, so that its weights fit."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    feed_forward: int = 1536
    window_tokens: int = 256
    dropout: float = 0.1

    def as_dict(self) -> dict[str, int | float]:
        """Plain values for a config file."""
        return asdict(self)


def bert_body(shape: EncoderShape, *, vocabulary_size: int, pad_id: int) -> BertModel:
    """A BERT body with random weights, without pooler, on torch's scaled-dot-product attention."""
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.window_tokens,
        type_vocab_size=1,
        pad_token_id=pad_id,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
    )
    config._attn_implementation = "sdpa"
    return BertModel(config, add_pooling_layer=False)


class KeyAttention(nn.Module):
    """Per key: what its own marked tokens say, and a softmax over all tokens with their weighted mean.

    The first part scores every token for being an asserted mention and takes the log-sum-exp over the key's marked tokens: one
    asserted mention among negated ones is enough, and a key without a mark gets 0. The second finds what the keywords do not know;
    marked tokens draw its attention by `mark_pull`. Each key's vectors are the sum of its own part and of one that all keys share:
    what tells a seen finding from a negated one is much the same for every key, and rare keys have few reports to learn it from.
    """

    def __init__(self, width: int, n_keys: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(n_keys, width) * 0.02)
        self.shared_query = nn.Parameter(torch.zeros(width))
        self.mark_pull = nn.Parameter(torch.full((n_keys,), MARK_PULL))
        self.weights = nn.Parameter(torch.randn(n_keys, width) * 0.02)
        self.shared_weights = nn.Parameter(torch.randn(width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(n_keys))
        self.mention_weights = nn.Parameter(torch.zeros(n_keys, width))
        self.shared_mention_weights = nn.Parameter(torch.randn(width) * 0.02)
        self.mention_bias = nn.Parameter(torch.zeros(n_keys))

    def attention(self, hidden: Tensor, marks: Tensor, mask: Tensor | None) -> Tensor:
        """Attention [windows, keys, tokens] over `hidden` [windows, tokens, width]; exactly 0 where `mask` is False."""
        scores = functional.linear(hidden, self.queries + self.shared_query).float() + marks * self.mark_pull
        scores = scores.transpose(1, 2)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], float("-inf"))
        return scores.softmax(dim=-1)

    def forward(self, hidden: Tensor, marks: Tensor, mask: Tensor | None) -> Tensor:
        pooled = torch.matmul(self.attention(hidden, marks, mask), hidden.float())
        by_attention = (pooled * (self.weights + self.shared_weights)).sum(dim=-1) + self.bias
        return by_attention + self.mention_logits(hidden, marks)

    def mention_logits(self, hidden: Tensor, marks: Tensor) -> Tensor:
        """[windows, keys]; 0 for a key that marks no token."""
        scores = functional.linear(hidden, self.mention_weights + self.shared_mention_weights).float() + self.mention_bias
        # A finite floor: the log-sum-exp of minus infinities has no gradient.
        asserted = torch.logsumexp(scores + (marks - 1.0) * UNMARKED, dim=1)
        return asserted * marks.amax(dim=1)


class KeyFlagModel(nn.Module):
    """Token ids [windows, tokens] and marks [windows, tokens, marks] (0 or 1, float) to logits [windows, keys].

    The first marks are those of the keys; further ones (`n_marks` above `n_keys`) are read by the body alone. `mask` is True on
    tokens, False on padding; None means no padding.
    """

    def __init__(self, shape: EncoderShape, *, vocabulary_size: int, pad_id: int, n_keys: int, n_marks: int | None = None) -> None:
        super().__init__()
        self.body = bert_body(shape, vocabulary_size=vocabulary_size, pad_id=pad_id)
        self.n_keys = n_keys
        self.mark_embeddings = nn.Parameter(torch.zeros(n_marks or n_keys, shape.width))
        self.shared_mark_embedding = nn.Parameter(torch.zeros(shape.width))
        self.head_dropout = nn.Dropout(shape.dropout)
        self.head = KeyAttention(shape.width, n_keys)

    def forward(self, token_ids: Tensor, marks: Tensor, mask: Tensor | None = None) -> Tensor:
        words = self.body.embeddings.word_embeddings(token_ids)
        named = torch.matmul(marks, self.mark_embeddings) + marks.amax(dim=-1, keepdim=True) * self.shared_mark_embedding
        hidden = self.body(inputs_embeds=words + named, attention_mask=mask).last_hidden_state
        logits: Tensor = self.head(self.head_dropout(hidden), marks[..., : self.n_keys], mask)
        return logits


class MaskedTokenModel(nn.Module):
    """The body with a masked-language-model head whose output matrix is the body's embedding matrix. No next-sentence head."""

    def __init__(self, shape: EncoderShape, *, vocabulary_size: int, pad_id: int) -> None:
        super().__init__()
        self.body = bert_body(shape, vocabulary_size=vocabulary_size, pad_id=pad_id)
        self.transform = nn.Linear(shape.width, shape.width)
        self.norm = nn.LayerNorm(shape.width)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, token_ids: Tensor, mask: Tensor, asked: Tensor) -> Tensor:
        """Logits [asked tokens, vocabulary] at the positions where `asked` [windows, tokens] is True."""
        hidden = self.body(input_ids=token_ids, attention_mask=mask).last_hidden_state[asked]
        hidden = self.norm(functional.gelu(self.transform(hidden)))
        return functional.linear(hidden, self.body.embeddings.word_embeddings.weight, self.bias)
