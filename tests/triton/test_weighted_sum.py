"""The weighted sum in Triton: bit for bit the reference."""

from __future__ import annotations

import pytest
import torch

from fastmerge import kernels

B, F, H = torch.bfloat16, torch.float32, torch.float16


@pytest.mark.parametrize("out_dtype", [B, F, H], ids=str)
@pytest.mark.parametrize("dtypes", [[B, B], [F, F, F], [H, B, F, B], [B] * 16, [B] * 66], ids=lambda d: f"{len(d)}")
def test_bits(device, sizes, make, same_bits, dtypes, out_dtype):
    weights = [0.7 - 0.3 * k for k in range(len(dtypes))]
    for numel in sizes:
        _, tensors = make(numel, [F, *dtypes])
        out = torch.full((numel,), torch.nan, dtype=out_dtype, device=device)
        expected = torch.full((numel,), torch.nan, dtype=out_dtype)
        kernels.weighted_sum(out, [t.to(device) for t in tensors], weights, backend="triton")
        kernels.weighted_sum(expected, tensors, weights, backend="reference")
        same_bits(out, expected)


@pytest.mark.parametrize("status", [0.0, 1.0])
def test_weights_that_the_device_found(device, sizes, make, same_bits, status):
    """Where they were not found, nothing is written."""
    values = torch.tensor([9.0, 0.75, -0.3, status])
    found = kernels.FoundFactors(values.to(device), 1, (0.5, 0.5))
    for numel in sizes:
        _, tensors = make(numel, [F, B, F])
        out = torch.full((numel,), 7.0, dtype=B, device=device)
        expected = torch.full((numel,), 7.0, dtype=B)
        kernels.weighted_sum(out, [t.to(device) for t in tensors], found, backend="triton")
        if status == 0:
            kernels.weighted_sum(expected, tensors, values[1:3].tolist(), backend="reference")
        same_bits(out, expected)


def test_every_bfloat16_passes_unchanged(device, same_bits):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(B)
    out = torch.empty_like(every, device=device)
    kernels.weighted_sum(out, [every.to(device)], [1.0], backend="triton")
    same_bits(out, every)


def test_out_may_be_an_input(device, make, same_bits):
    _, tensors = make(3001, [F, B, B])
    expected = torch.empty_like(tensors[0])
    kernels.weighted_sum(expected, tensors, [0.5, 0.25], backend="reference")
    tensors = [t.to(device) for t in tensors]
    kernels.weighted_sum(tensors[0], tensors, [0.5, 0.25], backend="triton")
    same_bits(tensors[0], expected)


def test_unaligned_tensors(device, make, same_bits):
    _, tensors = make(3001, [F, B, F])
    expected = torch.empty(3000, dtype=B)
    kernels.weighted_sum(expected, [t[1:] for t in tensors], [0.5, 0.25], backend="reference")
    out = torch.full((3001,), torch.nan, dtype=B, device=device)
    kernels.weighted_sum(out[1:], [t.to(device)[1:] for t in tensors], [0.5, 0.25], backend="triton")
    same_bits(out[1:], expected)
    assert out[0].isnan()
