r"""Spectral maps of a matrix given as a product: LoRA adapters, alone or stacked to their weighted sum.

    up = Q_u R_u,   down^T = Q_d R_d,   R_u R_d^T = U diag(s) V^T (r x r)   =>   up @ down = (Q_u U) diag(s) (Q_d V)^T

in float64: the cost is that of two thin QR factorizations, and the m x n product never exists. The remaining
min(m, n) - r directions are null and stay zero; raising them would add noise along arbitrary vectors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ._exact import mapped_values
from ._info import Info
from ._matrices import check_matrices
from ._rules import Boost

__all__ = ["boost_factored", "factored_svd"]


def factored_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD (u, s, vh) of ``up @ down`` in float64, without forming the product.

    Args:
        up:   [..., m, r] float32 or float64 (LoRA's B; for a weighted sum of adapters, the scaled B's side by side).
        down: [..., r, n] (LoRA's A; the A's stacked).
    Returns:
        u [..., m, p], s [..., p] falling, vh [..., p, n] with p = min(m, n, r).
    Raises:
        ValueError: shapes or dtypes disagree; the message names the argument and its value.
    """
    for name, factor in (("up", up), ("down", down)):
        check_matrices(name, factor, (torch.float32, torch.float64))
    if up.shape[-1] != down.shape[-2] or up.shape[:-2] != down.shape[:-2]:
        raise ValueError(f"down has shape {tuple(down.shape)}; expected [..., r, n] for up {tuple(up.shape)}")
    left, left_small = torch.linalg.qr(up.double())
    right, right_small = torch.linalg.qr(down.mT.double())
    u, s, vh = torch.linalg.svd(left_small @ right_small.mT, full_matrices=False)
    return left @ u, s, vh @ right.mT


def boost_factored(up: Tensor, down: Tensor, beta: float = 0.01) -> tuple[Tensor, Tensor, list[Info]]:
    """Return float32 factors (up', down') whose product is the boosted ``up @ down``, and what was done.

    Args:
        up, down: as in ``factored_svd``.
        beta:     as in ``subspace_boost``; null directions stay zero, as with ``null="keep"`` there.
    Raises:
        ValueError: an argument is out of range, or shapes disagree; the message names it and its value.
    """
    rule = Boost(beta)
    u, s, vh = factored_svd(up, down)
    m, n = up.shape[-2], down.shape[-1]
    values = s.reshape(-1, s.shape[-1]).cpu()
    infos = [Info("zero")] * len(values)
    some = values.any(-1).nonzero().flatten().tolist()
    values[some], found, nullities = mapped_values(values[some], [rule] * len(some), "exact", fill=False)
    for i, info, nullity in zip(some, found, nullities, strict=True):
        infos[i] = replace(info, nullity=nullity + min(m, n) - values.shape[-1])
    root = values.view(s.shape).to(s).sqrt()
    return (u * root.unsqueeze(-2)).float(), (root.unsqueeze(-1) * vh).float(), infos
