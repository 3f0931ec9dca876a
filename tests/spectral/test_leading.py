"""Leading values: never above the true ones, within their residual, and as near as the formula says."""

from __future__ import annotations

import pytest
import torch
from deltas import KINDS, make_delta

from fastmerge.kernels.spectral import leading_values
from fastmerge.kernels.spectral.leading import LEAST_STEPS, STEPS, missed_share


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(320, 400), (700, 300), (64, 300)], ids=str)
def test_values_lie_between_the_bound_and_the_true_ones(kind, shape, generator):
    delta = make_delta(kind, *shape, generator)
    exact = torch.linalg.svdvals(delta.double())
    found = leading_values(delta, 8)
    slack = 2e-6 * exact[0]  # float32 products
    assert (found.values <= exact[:8] + slack).all()
    assert exact[0] - found.values[0] <= found.residual * exact[0] + slack
    assert 1 - (found.values[0] / exact[0]) ** 2 <= max(found.missed, 1e-5)
    # What is found on every spectrum tried is far nearer than the formula, which knows no spectrum.
    assert found.values[0] == pytest.approx(float(exact[0]), rel=2e-3)
    assert (found.residual == found.missed == 0) == (min(shape) <= 256)


def test_values_of_zeros_of_low_rank_and_of_refused_matrices(generator):
    assert leading_values(torch.zeros(300, 280), 8).values.tolist() == [0.0] * 8
    low = torch.randn(300, 2, generator=generator) @ torch.randn(2, 290, generator=generator)
    found, exact = leading_values(low, 3).values, torch.linalg.svdvals(low.double())
    assert torch.allclose(found[:2], exact[:2], rtol=1e-5) and found[2] < 1e-5 * exact[0]
    assert leading_values(torch.ones(3, 2), 8).values.shape == (2,)
    with pytest.raises(ValueError, match="count is 9; expected"):
        leading_values(low, 9)
    with pytest.raises(ValueError, match="NaN or infinite"):
        leading_values(torch.full((2, 2), float("nan")), 1)


def test_the_bound_falls_with_steps_and_says_what_the_documents_say():
    shares = [missed_share(4096, steps) for steps in range(1, STEPS + 1)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.0317, abs=1e-4)
    assert shares[LEAST_STEPS - 1] == pytest.approx(0.1355, abs=1e-4)
