"""SCE by hand, and against mergekit."""

from __future__ import annotations

import pytest
import torch
from golden_bounds import SUM, Bound, gamma
from golden_cases import Golden, check_mergekit
from sources import Chunked

from fastmerge import functional
from fastmerge.kernels import GRID
from fastmerge.methods import Group, get_method
from fastmerge.steps.driver import merge_source
from fastmerge.steps.source import Resident

BASE = torch.zeros(4)
A, C = torch.tensor([3.0, -2.0, 1.0, 0.5]), torch.tensor([3.0, 2.0, 1.0, -0.5])


def test_by_hand():
    # The mean squares are equal, and so are the weights. Opposite deltas elect +.
    assert torch.equal(functional.sce(BASE, [A, C]), torch.tensor([3.0, 2.0, 1.0, 0.5]))
    # Of the two elements that vary, int(2 * 0.9) is kept: the second one.
    assert torch.equal(functional.sce(BASE, [A, C], select_topk=0.9), torch.tensor([0.0, 2.0, 0.0, 0.0]))
    for share in (0.0, 0.1):
        assert torch.equal(functional.sce(BASE, [A, C], select_topk=share), BASE)
    assert torch.equal(functional.sce(BASE, A), A)
    # One model never varies.
    assert torch.equal(functional.sce(BASE, A, select_topk=0.5), BASE)


def test_weights_are_mean_squares():
    a, b = torch.tensor([1.0, 1.0]), torch.tensor([3.0, -1.0])
    # Squares 2 and 10: weights 1/6 and 5/6. The second sum is 0, which elects +: only a has it.
    merged = functional.sce(BASE[:2], [a, b])
    assert merged.tolist() == pytest.approx([1 / 6 + 15 / 6, 1.0], rel=2**-22)
    # Below a sum of mean squares of 1e-6 they are equal.
    small = functional.sce(BASE[:2], [a * 1e-4, b * 1e-4])
    assert small.tolist() == pytest.approx([2e-4, 1e-4], rel=2**-22)


def test_equal_variances_keep_the_lowest_index():
    a = torch.ones(10)
    assert functional.sce(torch.zeros(10), [a, 3 * a], select_topk=0.35).count_nonzero() == 3
    assert functional.sce(torch.zeros(10), [a, 3 * a], select_topk=0.35)[:3].all()


def test_a_large_tensor_is_scored_in_parts(monkeypatch, generator):
    monkeypatch.setattr("fastmerge.steps.elements.WHOLE", 2 * GRID)
    base = torch.randn(5 * GRID + 9, generator=generator)
    tensors = [base + 0.01 * torch.randn(base.shape, generator=generator).bfloat16() for _ in range(3)]
    method, group = get_method("sce"), Group("w", tuple(base.shape), 3, {"select_topk": 0.3, "int8_mask": False})
    results = [torch.empty_like(base) for _ in range(3)]
    merge_source(method, group, Resident(base, tensors), results[0])
    merge_source(method, group, Chunked(base, tensors, 3), results[1])
    monkeypatch.undo()
    merge_source(method, group, Resident(base, tensors), results[2])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    # Everything varies; sums that no delta agrees with do not occur.
    assert (results[0] != base).sum() == int(base.numel() * 0.3)


def test_refuses_what_has_no_weight():
    with pytest.raises(ValueError, match="tensor: a delta holds NaN or infinity"):
        functional.sce(BASE, [A, torch.tensor([0.0, float("inf"), 0.0, 0.0])])


def bound(golden: Golden) -> Bound:
    """Deltas (1), squares, their sum, mean and share (SUM + 4), products and sums (N + 1) in numerator and divisor.

    Not compared: elements whose variance is so near the threshold, or whose vote so near 0, that rounding decides.
    Of those near the threshold mergekit selects others, which moves the weights by their share of the squares, once for
    the model and once for the sum, in numerator and divisor.
    """
    assert golden.base is not None
    models, share = golden.group.models, golden.group["select_topk"]
    deltas = torch.stack(golden.deltas)
    variance = deltas.var(0, correction=0)
    certain, moved = torch.ones_like(variance, dtype=torch.bool), 0.0
    if share < 1:
        rank = int(variance.count_nonzero() * share)
        threshold = variance.flatten().sort(descending=True).values[rank - 1]
        off = 2 * gamma(2 * models + 6) * deltas.square().mean(0)
        certain = (variance - threshold).abs() > off + gamma(2 * models + 6) * threshold
        unsure, deltas = deltas * ~certain, deltas * (variance >= threshold)
        squares, more = (each.square().flatten(1).sum(1) for each in (deltas, unsure))
        moved = ((more / squares).max() + more.sum() / squares.sum()).item()
    vote = deltas.sum(0)
    certain &= (vote.abs() > 2 * gamma(models) * deltas.abs().sum(0)) | (deltas == 0).all(0)
    weights = deltas.square().flatten(1).mean(1)
    weights = weights / weights.sum() if weights.sum() >= 1e-6 else torch.full_like(weights, 1 / models)
    agrees = deltas.sign() == torch.where(vote >= 0, 1.0, -1.0)
    shape = (-1, *[1] * (deltas.dim() - 1))
    terms, divisor = (deltas * agrees).abs() * weights.view(shape), agrees * weights.view(shape)
    size = terms.sum(0) / divisor.sum(0).clamp(min=1e-6)
    m = 2 * (gamma(2 * (SUM + 4 + models + 1) + 2) + moved) * size
    return m + 2 * gamma(1) * (golden.base.double().abs() + size + m), certain


def test_is_mergekits(monkeypatch):
    check_mergekit("sce", bound, monkeypatch)
