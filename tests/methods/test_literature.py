"""Small methods of the literature, by hand."""

from __future__ import annotations

import pytest
import torch

from fastmerge import functional

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])
A, B = torch.tensor([4.0, -3.0, 0.5, 1.0]), torch.tensor([-1.0, 2.0, 0.0, 3.0])


def test_expo():
    assert torch.equal(functional.expo(BASE, BASE + A, alpha=0.5), BASE + 1.5 * A)
    assert torch.equal(functional.expo(BASE, BASE + A, alpha=0), BASE + A)
    assert torch.equal(functional.expo(BASE, BASE + A, alpha=-1), BASE)


def test_magnitude_prune():
    merged = functional.magnitude_prune(BASE, [BASE + A, BASE + B], weight=[1, 2], density=0.5, lambda_=0.5)
    # (4, -3, 0, 0) and (0, 2, 0, 3).
    assert torch.equal(merged, BASE + torch.tensor([2.0, 0.5, 0.0, 3.0]))
    # No element is kept of what has too few, where ties keeps one.
    assert torch.equal(functional.magnitude_prune(BASE, BASE + A, weight=1, density=0.2), BASE)


def test_magmax():
    assert torch.equal(functional.magmax(BASE, [BASE + A, BASE + B]), BASE + torch.tensor([4.0, -3.0, 0.5, 3.0]))
    scaled = functional.magmax(BASE, [BASE + A, BASE + B], weight=[0.25, 1], lambda_=2)
    assert torch.equal(scaled, BASE + 2 * torch.tensor([1.0, 2.0, 0.125, 3.0]))
    # Of opposite deltas the positive one, whatever their order.
    for order in ([A, -A], [-A, A]):
        assert torch.equal(functional.magmax(0 * BASE, order), A.abs())


def test_tall_mask():
    # The merged delta is (3, -1, 0.5, 4). Of A: 4 > 0.6 * 1, 3 > 0.6 * 2, 0.5 > 0, but not 1 > 0.6 * 3.
    tuned = [BASE + A, BASE + B]
    assert torch.equal(functional.tall_mask(BASE, tuned, task=0), BASE + torch.tensor([3.0, -1.0, 0.5, 0.0]))
    # Of B: not 1 > 0.6 * 4, 2 > 0.6 * 3, not 0 > 0, 3 > 0.6 * 1.
    assert torch.equal(functional.tall_mask(BASE, tuned, task=1, lambda_=2), BASE + torch.tensor([0.0, -2.0, 0.0, 8.0]))
    # A model keeps what is needed by two in consensus, and by one or two in its masks.
    both = functional.consensus(BASE, tuned, threshold=2)
    assert torch.equal(both, BASE + torch.tensor([0.0, -1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="tensor: task is 2; expected 0 to 1, one of the models"):
        functional.tall_mask(BASE, tuned, task=2)


def test_tall_mask_of_elected_signs():
    tuned = [BASE + A, BASE + B]
    merged = functional.tall_mask(BASE, tuned, task=1, merge="ties", mask_lambda=[0.6, 0.1])
    # Elected and added: (4, -3, 0.5, 4). Of B, against 0.1 of the rest: 1 > 0.5, 2 > 0.5, not 0 > 0.05, 3 > 0.1.
    assert torch.equal(merged, BASE + torch.tensor([4.0, -3.0, 0.0, 4.0]))
