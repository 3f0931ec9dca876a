"""Gram matrices, norms, histograms and counts in Triton: the same bits and the same numbers as the reference."""

from __future__ import annotations

import pytest
import torch

from fastmerge import kernels
from fastmerge.kernels import Boundary

B, F, H = torch.bfloat16, torch.float32, torch.float16
# The interpreter takes about a second per chunk of the grid.
NUMELS = (1, 7 * 129, 16384 + 300)


def _on(device, base, tensors):
    return None if base is None else base.to(device), [t.to(device) for t in tensors]


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("dtypes", [[B, B], [F, F, F, F], [B, F, H], [B] * 5, [F, B, H, B, F]], ids=str)
def test_gram(device, make, same_bits, dtypes, based):
    for numel in NUMELS if len(dtypes) < 4 else NUMELS[:2]:
        base, tensors = make(numel, [B, *dtypes])
        tensors = [t.nan_to_num(0.0, 0.0, 0.0) if k else t for k, t in enumerate(tensors)]
        base = base if based else None
        shape = (-(-numel // kernels.GRID), len(kernels.pairs(len(tensors))))
        expected = torch.full(shape, torch.nan, dtype=torch.float64)
        out = torch.full_like(expected, -1.0, device=device)
        kernels.gram_partials(expected, tensors, base, backend="reference")
        there, models = _on(device, base, tensors)
        kernels.gram_partials(out, models, there, backend="triton")
        same_bits(out, expected)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtypes", [[B, B, B, B], [F, H, B, F]], ids=str)
def test_norms(device, make, same_bits, power, dtypes):
    offset = 2**20
    keeps = [
        kernels.keep_all(),
        kernels.keep_top(Boundary(0x3A000000, offset + 400)),
        kernels.keep_band(Boundary(0x39000000, offset + 10), Boundary(0x3A800000, offset + 100)),
        kernels.keep_random(kernels.tensor_key(1, "x"), 3, 0x12345678),
    ]
    for numel in NUMELS[:2]:
        base, tensors = make(numel, [B, *dtypes])
        tensors[0] = tensors[0].nan_to_num(0.0, 0.0, 0.0)
        shape = (-(-numel // kernels.GRID), 2 * len(tensors))
        expected = torch.full(shape, torch.nan, dtype=torch.float64)
        out = torch.full_like(expected, -1.0, device=device)
        kernels.norm_partials(expected, tensors, base, keeps, power=power, offset=offset, backend="reference")
        there, models = _on(device, base, tensors)
        kernels.norm_partials(out, models, there, keeps, power=power, offset=offset, backend="triton")
        same_bits(out, expected)


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("level", [0, 1])
def test_histogram(device, sizes, make, level, based):
    for numel in sizes:
        base, tensors = make(numel, [B, B, F, H])
        base = base if based else None
        prefixes = [0x3A00, 0, 0x3980] if level else []
        expected = torch.ones(3, kernels.HISTOGRAM_BINS[level], dtype=torch.int64)
        counts = expected.to(device, copy=True)
        kernels.magnitude_histogram(expected, tensors, base, level, prefixes, backend="reference")
        there, models = _on(device, base, tensors)
        kernels.magnitude_histogram(counts, models, there, level, prefixes, backend="triton")
        assert torch.equal(counts.cpu(), expected)


def test_equal_counts(device, make):
    for numel in (1, 2047, 2 * 16384 + 3):
        base, tensors = make(numel, [B, B, F])
        delta = (tensors[1].float() - base.float())[-1:]
        thresholds = [0, int(delta.view(torch.int32)) & 0x7FFFFFFF]
        expected = torch.full((2, -(-numel // kernels.GRID)), -1)
        counts = expected.to(device, copy=True)
        kernels.equal_counts(expected, tensors, base, thresholds, backend="reference")
        there, models = _on(device, base, tensors)
        kernels.equal_counts(counts, models, there, thresholds, backend="triton")
        assert torch.equal(counts.cpu(), expected)
        assert expected[1].sum() > 0
