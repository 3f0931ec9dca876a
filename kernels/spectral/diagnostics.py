r"""Spectra and ranks of deltas, for reports.

stable rank = ||X||_F^2 / s_0^2        energy rank = number of leading s_i^2 that reach a share of their sum
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._matrices import check_matrices, frobenius
from .top import top_singular

__all__ = ["energy_rank", "spectrum", "stable_rank"]


def spectrum(x: Tensor) -> Tensor:
    """Return the singular values [..., min(m, n)] of ``x`` [..., m, n] float32, falling, in float64.

    From the Gram matrix of the shorter side in float64: errors of 1e-8 of the largest.
    """
    check_matrices("x", x)
    wide = x.double()
    gram = wide.mT @ wide if x.shape[-2] >= x.shape[-1] else wide @ wide.mT
    return torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0).sqrt()


def stable_rank(x: Tensor) -> Tensor:
    """Return ||X||_F^2 / s_0^2 of each matrix of ``x`` [..., m, n] float32, in float64; 0 for a matrix of zeros.

    Where s_0 is searched for, it is off by at most 1e-3 of itself; by 1e-5 on the spectra tested.
    """
    check_matrices("x", x)
    if not x.numel():
        return x.new_zeros(x.shape[:-2], dtype=torch.float64)
    largest = top_singular(x, 1, tol=1e-3)[1][..., 0].double()
    return torch.where(largest > 0, (frobenius(x) / largest).square(), 0.0)


def energy_rank(values: Tensor, share: float) -> Tensor:
    """Return how many leading singular values [..., n] hold ``share`` of the sum of squares; 0 where all are zero.

    Args:
        values: singular values, falling.
        share:  in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected a value in (0, 1]")
    energy = values.double().square().cumsum(-1)
    total = energy[..., -1:]
    return torch.where(total[..., 0] > 0, (energy < share * total).sum(-1) + 1, 0)
