"""Selection on the device: exactly the boundaries of the reference."""

from __future__ import annotations

import pytest
import torch

from fastmerge import kernels

pytestmark = pytest.mark.gpu

B, F, H = torch.bfloat16, torch.float32, torch.float16


def _check(device, base, tensors, ranks) -> None:
    expected = kernels.select_boundaries(tensors, base, ranks, backend="reference")
    there = None if base is None else base.to(device)
    found = kernels.select_boundaries([t.to(device) for t in tensors], there, ranks, backend="triton")
    assert found == expected


@pytest.mark.parametrize(("dtypes", "based"), [([B, B, B], True), ([F, F], False), ([B, H, F], True)], ids=str)
def test_ranks(device, sizes, make, dtypes, based):
    for numel in sizes[1::2]:
        base, tensors = make(numel, dtypes)
        ranks = [[numel // 2] if k else sorted({0, numel // 10, max(0, numel - 1), numel}) for k in range(len(tensors))]
        _check(device, base if based else None, tensors, ranks)


def test_equal_magnitudes(device):
    """One magnitude in two chunks of the grid, signs mixed: the break index is all that counts."""
    tensor = torch.where(torch.arange(2 * 16384 + 9) % 3 == 0, 0.5, -0.5)
    _check(device, None, [tensor], [[1, 16385, tensor.numel() - 1]])


def test_every_digit_decides(device, generator):
    """Magnitudes over the whole range of float32, so that each digit of the radix search splits them."""
    bits = torch.randint(-(2**31), 2**31 - 1, (5001,), generator=generator, dtype=torch.int64).to(torch.int32)
    _check(device, None, [bits.view(F)], [[1, 1000, 4999]])


BRACKETED = 17_003  # more elements than are sampled


@pytest.mark.parametrize("deviation", [None, 1e-4], ids=["float32", "ties"])
def test_brackets(device, generator, deviation):
    base = 0.02 * torch.randn(BRACKETED, generator=generator)
    if deviation is None:
        _check(device, None, [base], [[1, BRACKETED // 3, BRACKETED - 1]])
        return
    models = [(base.to(B).float() + deviation * torch.randn(BRACKETED, generator=generator)).to(B) for _ in range(2)]
    _check(device, base.to(B), models, [[BRACKETED // 2], [BRACKETED // 10]])


def test_ranks_at_the_edges_of_ties(device, generator):
    tensor = torch.randint(1, 4, (BRACKETED,), generator=generator).float()
    upper, both = int((tensor == 3).sum()), int((tensor >= 2).sum())
    _check(device, None, [tensor], [[upper, upper + 1, both]])


def test_mostly_nan(device, generator):
    tensor = torch.randn(BRACKETED, generator=generator)
    tensor[torch.rand(BRACKETED, generator=generator) < 0.7] = torch.nan
    _check(device, None, [tensor], [[BRACKETED // 2]])


@pytest.mark.parametrize(("setting", "value"), [("DEVIATIONS", -2.0), ("SPARE", 0.0)])
def test_a_sample_that_misled(device, generator, monkeypatch, setting, value):
    """Brackets of no width lie beside the rank; a buffer of no size overflows. Histograms find it."""
    from fastmerge.kernels._triton import select as module

    monkeypatch.setattr(module, setting, value)
    tensor = torch.randn(BRACKETED, generator=generator)
    tensor[::7] = 0.5
    assert module.select([tensor.to(device)], None, [[BRACKETED // 2]]) == [[None]]
    _check(device, None, [tensor], [[BRACKETED // 2]])
