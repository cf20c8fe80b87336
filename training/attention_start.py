"""Starts each key's attention at the words of the key, so that fine-tuning begins with "asserted or not?" and not with "where?"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from configs.mentions import entity_mentions
from configs.schema import Task
from stage1_encoder.model import KeyFlagModel
from training.corpus import AnnotatedReport
from training.flag_examples import WindowCut

# A mean mention token scores so much above the mean token: e^4 of its attention.
SCORE_GAP = 4.0
FEWEST_TOKENS = 3


def point_attention(model: KeyFlagModel, cut: WindowCut, reports: Sequence[AnnotatedReport], task: Task) -> None:
    """Sets `model.head.queries` from the hidden vectors of the tokens in keyword mentions of training reports.

    The query of a key is the direction that parts its mention tokens from all tokens (difference of means over the variance of
    each dimension), scaled so that the two means lie SCORE_GAP apart. Labels are not looked at. A key with fewer than 3 mention
    tokens keeps its random query. Only the first window of a report is read.
    """
    width = model.head.queries.shape[1]
    sums, counts = torch.zeros(len(task.keys), width), torch.zeros(len(task.keys))
    total, squares, n_tokens = torch.zeros(width), torch.zeros(width), 0
    columns = {key: column for column, key in enumerate(task.keys)}
    model.eval()
    for item in reports:
        tokens = cut.tokenizer.encode(item.report.text)
        hidden = _hidden(model, cut.windows(item.report.text)[0])
        total += hidden.sum(dim=0)
        squares += hidden.square().sum(dim=0)
        n_tokens += len(hidden)
        for mention in entity_mentions(task, item.report.text):
            for vector, span in zip(hidden, tokens.spans, strict=False):
                if span.start < mention.span.end and mention.span.start < span.end:
                    sums[columns[mention.name]] += vector
                    counts[columns[mention.name]] += 1
    mean = total / max(1, n_tokens)
    variance = (squares / max(1, n_tokens) - mean.square()).clamp(min=1e-6)
    with torch.no_grad():
        for column in range(len(task.keys)):
            if counts[column] >= FEWEST_TOKENS:
                difference = sums[column] / counts[column] - mean
                direction = difference / variance
                model.head.queries[column] = direction * (SCORE_GAP / (direction @ difference))


def _hidden(model: KeyFlagModel, window: Sequence[int]) -> Tensor:
    """Hidden vectors [tokens, width] of a window without its [CLS] and [SEP]."""
    with torch.inference_mode():
        hidden: Tensor = model.body(input_ids=torch.tensor([list(window)])).last_hidden_state[0, 1:-1]
    return hidden
