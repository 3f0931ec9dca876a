"""NearSwap by hand, and against mergekit."""

from __future__ import annotations

import torch
from golden_bounds import gamma
from golden_cases import Golden, check_mergekit
from torch import Tensor

from fastmerge import functional


def test_by_hand():
    base, model = torch.tensor([1.0, 1.0, 1.0, 2.0]), torch.tensor([1.25, 2.0, -3.0, 2.0])
    # Differences 0.25, 1, -4, 0: the first becomes the model's, two move by 0.5.
    assert torch.equal(functional.nearswap(base, model, t=0.5), torch.tensor([1.25, 1.5, 0.5, 2.0]))
    assert torch.equal(functional.nearswap(base, model, t=4), model)
    for t in (0, -1):
        assert torch.equal(functional.nearswap(base, model, t=t), base)


def test_tiny_differences_count_as_a_millionth():
    merged = functional.nearswap(torch.zeros(1), torch.full((1,), 1e-7), t=2.5e-7)
    # 2.5e-7 / 1e-6 of the way, in three roundings.
    assert abs(merged.item() / 0.25e-7 - 1) < gamma(6)


def bound(golden: Golden) -> tuple[Tensor, Tensor]:
    """mergekit: ``w b + (1 - w) a``, the products, their factor 1 - w and the sum (3); here a delta, a product, a sum.

    w = t / |d| is off by 4 roundings there (t, d, a reciprocal, a product) and by 3 here, which moves the result by so
    much of w d.
    """
    assert golden.base is not None
    a, b, (delta,) = golden.base.double(), golden.tensors[0].double(), golden.deltas
    w = (golden.group["t"] / delta.abs().clamp(min=1e-6)).clamp(max=1)
    there = gamma(3) * (w * b.abs() + (1 - w) * a.abs()) + gamma(4) * w * delta.abs()
    here = gamma(1) * (a.abs() + w * delta.abs()) + gamma(5) * w * delta.abs()
    return there + here, torch.ones_like(a, dtype=torch.bool)


def test_is_mergekits(monkeypatch):
    check_mergekit("nearswap", bound, monkeypatch)
