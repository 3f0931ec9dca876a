"""What functions of elements compute with: the same bits from torch and from numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmerge.steps.arrays import above, where

VALUES = torch.tensor([0.0, -0.0, 1.5, -2.25, torch.inf, -torch.inf, torch.nan, 1e-45])


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_where_chooses_bits(kind: type):
    yes, no = VALUES.repeat_interleave(len(VALUES)).repeat(2), VALUES.repeat(2 * len(VALUES))
    condition = torch.arange(len(yes)) % 3 == 0
    expected = torch.where(condition, yes, no).view(torch.int32)
    if kind is np.ndarray:
        found = torch.from_numpy(where(*(v.numpy() for v in (condition, yes, no))))
    else:
        found = where(condition, yes, no)
    assert found.dtype is torch.float32 and torch.equal(found.view(torch.int32), expected)
    assert torch.equal(where(condition.float(), yes, no).view(torch.int32), expected)
    assert where(condition[:0], yes[:0], no[:0]).numel() == 0


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_what_is_above_counts_1(kind: type):
    values = VALUES.numpy() if kind is np.ndarray else VALUES
    for least in (0.0, -values):
        found = above(values, least)
        assert found.dtype == values.dtype
        assert found.tolist() == [0, 0, 1, 0, 1, 0, 0, 1]
