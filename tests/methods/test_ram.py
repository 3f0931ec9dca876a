"""RAM and RAM+ by hand, and against mergekit."""

from __future__ import annotations

import pytest
import torch
from golden_bounds import Bound, gamma
from golden_cases import Golden, check_mergekit

from fastmerge import functional

BASE = torch.zeros(4)
A, B = torch.tensor([1.0, 1.0, 1e-6, 0.0]), torch.tensor([2.0, 0.0, 3.0, 1e-5])


def test_ram_by_hand():
    # Shared, unique, unique, unchanged: 1e-5 is not above the default epsilon.
    assert torch.equal(functional.ram(BASE, [A, B]), torch.tensor([1.5, 1.0, 3.0, 0.0]))
    assert torch.equal(functional.ram(BASE, [A, B], epsilon=1), torch.tensor([2.0, 0.0, 3.0, 0.0]))
    assert torch.equal(functional.ram(BASE, [A, B], epsilon=0)[3], B[3])


@pytest.mark.parametrize(
    ("parameters", "factor"),
    [
        ({}, 1.02),  # one shared and one unique element each: the ratio 1 counts 0.2 at most
        ({"alpha": 2}, 1.1),
        ({"r": 0.5, "alpha": 0.5}, 1.25),
        ({"alpha": 0}, 1.0),
        ({"alpha": -0.5}, 0.95),
    ],
)
def test_ramplus_tl_by_hand(parameters, factor):
    expected = torch.tensor([1.5, factor, 3 * torch.tensor(factor), 0.0])
    assert torch.equal(functional.ramplus_tl(BASE, [A, B], **parameters), expected)


def test_ramplus_tl_where_nothing_is_unique_or_shared():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    # Model 1 shares all that it changed: its ratio is shared / epsilon, as alpha counts it.
    assert torch.equal(functional.ramplus_tl(BASE[:2], [a, b]), torch.tensor([1.02, 3.0]))
    alone = torch.tensor([1.0, 0.0])
    assert torch.equal(functional.ramplus_tl(BASE[:2], [alone, 0 * a]), alone)
    assert torch.equal(functional.ramplus_tl(BASE[:2], [a, b], epsilon=0), torch.tensor([1.02, 3.0]))


def bound(golden: Golden) -> Bound:
    """Delta, factor (its ratio, product, sum: 3), product, N sums and a division, then the sum with the base."""
    assert golden.base is not None
    kept = [d.abs() * (d.abs() > torch.tensor(golden.group["epsilon"])) for d in golden.deltas]
    count = sum((d > 0).double() for d in kept).clamp(min=1)
    size = 1.1 * sum(kept) / count
    m = 2 * gamma(golden.group.models + 6) * size
    return m + 2 * gamma(1) * (golden.base.double().abs() + size + m), torch.ones_like(size, dtype=torch.bool)


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_is_mergekits(method, monkeypatch):
    check_mergekit(method, bound, monkeypatch)
