"""The low-rank update in Triton: bit for bit the reference."""

from __future__ import annotations

import pytest
import torch

from fastmerge import kernels

DTYPES = (torch.bfloat16, torch.float32, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 129, 3), (5, 1500, 8), (0, 4, 2)], ids=str)
def test_bits(device, generator, same_bits, shape, dtype):
    rows, columns, rank = shape
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    up[:, 0] *= -0.0
    for out_dtype in DTYPES:
        expected = torch.full((rows, columns), torch.nan, dtype=out_dtype)
        out = torch.full_like(expected, torch.nan, device=device)
        kernels.low_rank_update(expected, weight, up, down, 0.3, backend="reference")
        kernels.low_rank_update(out, *(t.to(device) for t in (weight, up, down)), 0.3, backend="triton")
        same_bits(out, expected)
