"""Methods whose result lies in the span of their inputs, by hand: means and arcs of directions."""

from __future__ import annotations

import math

import pytest
import torch

from fastmerge import functional

ROOT2 = math.sqrt(2)


def tensors(*rows):
    return [torch.tensor(row, dtype=torch.float32) for row in rows]


def close(merged, expected):
    return torch.allclose(merged, torch.tensor(expected), rtol=2**-22, atol=2**-24)


def test_nuslerp_by_hand():
    a, b = tensors([2.0, 0.0], [0.0, 2.0])
    assert close(functional.nuslerp(None, [a, b], weight=1), [ROOT2, ROOT2])
    third = functional.nuslerp(None, [a, b], weight=[2, 1])
    assert close(third, [2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)])
    base = torch.tensor([10.0, -10.0])
    assert close(functional.nuslerp(base, [base + a, base + b], weight=1), [10 + ROOT2, ROOT2 - 10])


def test_nuslerp_takes_rows_or_columns():
    # The first rows are orthogonal, the second ones colinear.
    a, b = tensors([[2.0, 0.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 5.0]])
    expected = [[ROOT2, ROOT2], [0.0, 4.0]]
    assert close(functional.nuslerp(None, [a, b], weight=1, nuslerp_flatten=False), expected)
    columns = [t.t().contiguous() for t in (a, b)]
    merged = functional.nuslerp(None, columns, weight=1, nuslerp_flatten=False, nuslerp_row_wise=True)
    assert close(merged.t().contiguous(), expected)


def test_nuslerp_guards():
    (a,) = tensors([1.0, 2.0])
    assert close(functional.nuslerp(None, [a, 3 * a], weight=[3, 1]), [1.5, 3.0])
    # Weights that cancel stand for the middle.
    assert close(functional.nuslerp(None, [a, 3 * a], weight=[1, -1]), [2.0, 4.0])
    # Zeros have no angle: their norm counts as 1e-7, their cosine is 0.
    assert close(functional.nuslerp(None, [torch.zeros(2), a], weight=1), [math.sqrt(0.5), 2 * math.sqrt(0.5)])


def test_multislerp_by_hand():
    a, b = tensors([1.0, 0.0], [0.0, 3.0])
    # The mean norm is 2, the mean direction 45 degrees.
    assert close(functional.multislerp(None, [a, b], weight=1), [ROOT2, ROOT2])
    # Weights 3/4 and 1/4: the norm is 1.5, the direction (3, 1).
    assert close(functional.multislerp(None, [a, b], weight=[3, 1]), [4.5 / math.sqrt(10), 1.5 / math.sqrt(10)])
    # As they are they add up to 4: norm 6, direction (3, 1).
    raw = functional.multislerp(None, [a, b], weight=[3, 1], normalize_weights=False)
    assert close(raw, [18 / math.sqrt(10), 6 / math.sqrt(10)])
    base = torch.tensor([5.0, 5.0])
    assert close(functional.multislerp(base, [base + a, base + b], weight=1), [5 + ROOT2, 5 + ROOT2])


def test_multislerp_guards():
    base, (a,) = torch.tensor([1.0, -1.0]), tensors([3.0, 4.0])
    assert torch.equal(functional.multislerp(base, a, weight=0.1), a)
    # What no model changed stays; mergekit gives up here.
    assert torch.equal(functional.multislerp(base, [base] * 3, weight=1), base)
    # Directions that cancel have no mean; the tensors have.
    assert close(functional.multislerp(None, [a, -2 * a], weight=1), [-1.5, -2.0])
    assert close(functional.multislerp(None, [a, -a, -3 * a], weight=[2, 1, 1]), [-1.5, -2.0])
    with pytest.raises(ValueError, match=r"the weights \(1.0, -1.0\) cancel; set normalize_weights: false"):
        functional.multislerp(None, [a, a], weight=[1.0, -1.0])


def test_karcher_by_hand():
    a, b, c = tensors([1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 5.0])
    assert close(functional.karcher([a, b]), [ROOT2, ROOT2, 0.0])
    assert close(functional.karcher([a, b, c]), [3 / math.sqrt(3)] * 3)
    assert close(functional.karcher([a, torch.zeros(3)]), [0.5, 0.0, 0.0])
    assert torch.equal(functional.karcher([torch.zeros(3)] * 2), torch.zeros(3))


def test_karcher_has_the_least_sum_of_squared_angles(generator):
    points = [torch.randn(5, generator=generator) + 2 for _ in range(4)]
    units = [(p / p.norm()).double() for p in points]

    def cost(x):
        return sum((u @ x / x.norm()).clamp(-1, 1).acos() ** 2 for u in units)

    merged = functional.karcher(points, max_iter=100, tol=1e-9).double()
    # The first order vanishes: a step of h changes the cost by O(h**2), twice the number of points at most.
    assert merged.norm().item() == pytest.approx(sum(p.norm().item() for p in points) / 4, rel=1e-6)
    for axis in torch.eye(5, dtype=torch.float64) * 1e-3:
        assert cost(merged / merged.norm() + axis) >= cost(merged) - 1e-9
    assert cost(functional.karcher(points, max_iter=0).double()) > cost(merged)


def test_karcher_of_directions_that_cancel():
    # As mergekit has it: the first one's direction, and the mean norm.
    (a,) = tensors([1.0, 2.0])
    assert close(functional.karcher([a, -3 * a]), [2.0, 4.0])
    # Opposite to the mean of all: no shortest way leads there.
    assert close(functional.karcher([a, a, -4 * a]), [2.0, 4.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: functional.karcher([x, torch.ones(2)]),
        lambda x: functional.multislerp(None, [x, torch.ones(2)], weight=1),
        lambda x: functional.nuslerp(None, [x, torch.ones(2)], weight=1),
        lambda x: functional.nuslerp(None, [x, torch.ones(2)], weight=1, nuslerp_flatten=False),
    ],
)
def test_directions_need_finite_inputs(call):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tensor: an input holds NaN or infinity"):
            call(torch.tensor([1.0, bad]))


def test_model_stock_of_rows():
    base = torch.zeros(2, 2)
    # Orthogonal rows keep the base; equal rows are the result.
    a, b = tensors([[1.0, 0.0], [2.0, 3.0]], [[0.0, 1.0], [2.0, 3.0]])
    assert torch.equal(functional.model_stock(base, [a, b], filter_wise=True), torch.tensor([[0.0, 0.0], [2.0, 3.0]]))


def test_breadcrumbs_ties_by_hand():
    base, (a, b) = torch.zeros(4), tensors([9.0, 4.0, -3.0, 1.0], [8.0, -1.0, -4.0, 2.0])
    # One of four is an outlier, two are kept: (0, 4, -3, 0) and (0, 0, -4, 2).
    arguments = {"weight": [1, 0.5], "density": 0.5, "gamma": 0.25}
    merged = functional.breadcrumbs_ties(base, [a, b], **arguments)
    assert torch.equal(merged, torch.tensor([0.0, 4.0, -5.0, 1.0]))
    normalized = functional.breadcrumbs_ties(base, [a, b], **arguments, normalize=True)
    assert torch.equal(normalized, torch.tensor([0.0, 4.0, torch.tensor(-5.0) / 1.5, 2.0]))
    # Opposite signs: the heavier vote wins, and only its terms are added.
    opposite = functional.breadcrumbs_ties(base, [a, -a], weight=[1, 0.5], density=0.5, gamma=0.25)
    assert torch.equal(opposite, torch.tensor([0.0, 4.0, -3.0, 0.0]))
