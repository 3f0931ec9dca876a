"""Arcee Fusion by hand, by its formula, and against mergekit."""

from __future__ import annotations

import pytest
import torch
from golden_bounds import SUM, Bound, gamma
from golden_cases import Golden, check_mergekit
from torch import Tensor

from fastmerge import functional
from fastmerge.methods import arcee_fusion


def scores(base: Tensor, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The formula, written out."""
    p, q = tensor.to(dtype).softmax(-1) + 1e-8, base.to(dtype).softmax(-1) + 1e-8
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    return (tensor.float() - base.float()).abs() * divergence.float()


def threshold(values: Tensor) -> Tensor:
    q1, q2, q3 = values.flatten().quantile(values.new_tensor([0.25, 0.5, 0.75]))
    return q2 + 1.5 * (q3 - q1)


@pytest.mark.parametrize(("semantics", "dtype"), [("mergekit", torch.float32), ("exact", torch.float64)])
@pytest.mark.parametrize("size", [5e-4, 0.5])
@pytest.mark.parametrize("shape", [(48, 80), (7, 33), (513,), (3, 4, 5), (3, 1), (2,), (1,), ()])
def test_formula(shape, size, semantics, dtype, generator):
    base = 0.02 * torch.randn(shape, generator=generator)
    tensor = base + size * torch.randn(shape, generator=generator)
    values = scores(base, tensor, dtype) if shape else torch.zeros(())
    expected = torch.where(values >= threshold(values), base + (tensor - base), base)
    merged = functional.arcee_fusion(base, tensor, semantics=semantics)
    assert torch.equal(merged, expected)


def test_by_hand():
    # Equal divergences, differences 1, 2, 3, 20: median 2.5, quartiles 1.75 and 7.25, threshold 2.5 + 1.5 * 5.5.
    tensor = torch.tensor([[1.0, 2.0, 3.0, 20.0]])
    assert torch.equal(functional.arcee_fusion(torch.zeros(1, 4), tensor), torch.tensor([[0.0, 0.0, 0.0, 20.0]]))
    # Rows of one element do not diverge: every score is 0, and so is the threshold.
    assert torch.equal(functional.arcee_fusion(torch.zeros(3, 1), torch.ones(3, 1)), torch.ones(3, 1))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("shift", [-1e-3, 0.0, 5e-4, 1e-2])
def test_ranks_of_scores_below_zero(count, shift, generator):
    values = 1e-3 * torch.rand(count, generator=generator) + shift
    ranks = list(range(count))
    assert arcee_fusion._ranked(values, ranks) == values.sort().values.tolist()
    assert arcee_fusion._threshold(values) == pytest.approx(threshold(values).item(), rel=1e-6, abs=1e-12)


def test_refuses_what_has_no_softmax():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tensor: an input holds NaN or infinity"):
            functional.arcee_fusion(torch.zeros(2, 2), torch.tensor([[1.0, bad], [0.0, 0.0]]))


def bound(golden: Golden) -> Bound:
    """One rounding of the delta and one of the sum, where it is certain whether an element is taken over.

    A probability in float32 is off by SUM + 4 roundings (the exponential of two of them, a sum, a division), a
    divergence by twice that in every logarithm, and SUM + 2 of its terms; a score by one more, and so is the threshold,
    by those of four scores. Where the score is nearer to the threshold, as it is in most rows of fine-tunes, either of
    the two is right.
    """
    assert golden.base is not None
    base, tensor = golden.base.double(), golden.tensors[0].double()
    p, q = tensor.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    terms = (p * (p / q).log()).abs().sum(-1, keepdim=True)
    off = 2 * gamma(SUM + 4) * p.sum(-1, keepdim=True) + gamma(SUM + 2) * terms
    values, delta = scores(golden.base, golden.tensors[0], torch.float64).double(), (tensor - base).abs()
    limit, most = threshold(values), (delta * off).max()
    unsure = (values - limit).abs() <= delta * off + 4 * most + gamma(8) * (values.abs() + limit.abs())
    rounding = 2 * gamma(2) * (base.abs() + tensor.abs())
    return rounding + delta * unsure, torch.ones_like(unsure)


def test_is_mergekits(monkeypatch):
    check_mergekit("arcee_fusion", bound, monkeypatch)
