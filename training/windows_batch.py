"""A batch of reports, each in one or more windows, through a KeyFlagModel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stage1_encoder.marks import MarkedWindow, mark_matrix
from stage1_encoder.model import KeyFlagModel
from training.pretrain import pad
from training.thresholds import Array

DEV_BATCH = 16


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


def logits_by_length(model: KeyFlagModel, reports: Sequence[Sequence[MarkedWindow]], *, pad_id: int, device: torch.device) -> Array:
    """`report_logits` of any number of reports, in batches of near lengths; rows in the order given."""
    order = sorted(range(len(reports)), key=lambda row: longest_window_tokens(reports[row]))
    logits = np.zeros((len(reports), model.n_keys), dtype=np.float32)
    for start in range(0, len(order), DEV_BATCH):
        rows = order[start : start + DEV_BATCH]
        logits[rows] = report_logits(model, [reports[row] for row in rows], pad_id=pad_id, device=device).cpu().numpy()
    return logits


def longest_window_tokens(windows: Sequence[MarkedWindow]) -> int:
    """By which batches are built."""
    return max(len(window.ids) for window in windows)
