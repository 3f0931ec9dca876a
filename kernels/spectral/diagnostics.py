r"""Spectra and stable ranks of deltas, ``||X||_F^2 / s_0^2``, for reports."""

from __future__ import annotations

import torch
from torch import Tensor

from ._matrices import check_matrices, frobenius
from .top import top_singular

__all__ = ["spectrum", "stable_rank"]


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
