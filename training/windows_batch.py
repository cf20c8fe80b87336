"""A batch of reports, each in one or more windows, through a KeyFlagModel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stage1_encoder.marks import MarkedWindow, mark_matrix
from stage1_encoder.model import KeyFlagModel
from training.pretrain import pad


def report_logits(model: KeyFlagModel, reports: Sequence[Sequence[MarkedWindow]], *, pad_id: int, device: torch.device) -> Tensor:
    """Logits [reports, keys], the maximum over each report's windows."""
    windows = [window for of_report in reports for window in of_report]
    ids, mask = pad([window.ids for window in windows], pad_id, limit_tokens=model.body.config.max_position_embeddings)
    marks = torch.zeros((*ids.shape, model.mark_embeddings.shape[0]))
    for row, window in enumerate(windows):
        marks[row, : len(window.ids)] = torch.from_numpy(mark_matrix(window, marks.shape[2]))
    logits: Tensor = model(ids.to(device), marks.to(device), mask.to(device)).float()
    if len(windows) == len(reports):
        return logits
    owner = torch.tensor([row for row, of_report in enumerate(reports) for _ in of_report], device=device)
    lowest = torch.full((len(reports), logits.shape[1]), float("-inf"), device=device)
    maxima: Tensor = lowest.scatter_reduce(0, owner[:, None].expand_as(logits), logits, "amax")
    return maxima
