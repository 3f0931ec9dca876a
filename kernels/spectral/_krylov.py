r"""Leading singular triplets by thick-restarted block Golub-Kahan bidiagonalization with full reorthogonalization.

The invariants, with V [n, p] and U [m, p] orthonormal and a small ``core`` [p, p]:

    X V = U core        X^T U = V core^T + fresh link E^T        (E: the last block of columns)

so the singular values of ``core`` approximate the largest of X, and the residual of a triplet is a row of ``link``: it
costs no product with X. A restart keeps the leading approximate triplets, and the invariants with them.
It takes fewer products than a filtered subspace (``_filter``) and more decompositions: the search of a CPU.
(Baglama and Reichel 2005 for the restart; Musco and Musco 2015 for block Krylov from a random start.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._filter import start_block


class BlockKrylov:
    """The search space of one batch of matrices [batch, m, n], m >= n; grows by ``block`` columns a step.

    Attributes, once it was expanded: ``values`` [batch, p] float64 and ``residuals`` of the triplets found, as in
    ``_filter.Triplets``; ``passes``, the products with X so far.
    """

    def __init__(self, x: Tensor, block: int):
        batch, m, n = x.shape
        self.x = x
        self.block = block
        self.fresh = start_block(x, block)
        self.left = x.new_empty(batch, m, 0)
        self.right = x.new_empty(batch, n, 0)
        self.core = torch.empty(batch, 0, 0, dtype=torch.float64, device=x.device)
        self.passes = 0

    @property
    def size(self) -> int:
        """Columns of the search space."""
        return self.right.shape[-1]

    def expand(self) -> None:
        """Add one block: two products with X."""
        left, upper, corner = _orthonormal_against(self.left, self.x @ self.fresh)
        self.left = torch.cat([self.left, left], dim=-1)
        self.right = torch.cat([self.right, self.fresh], dim=-1)
        self.fresh, _, link = _orthonormal_against(self.right, self.x.mT @ left)
        below = self.core.new_zeros(len(self.core), self.block, self.core.shape[-1])
        self.core = torch.cat([torch.cat([self.core, below], -2), torch.cat([upper, corner], -2)], -1)
        self._x, self.values, y = torch.linalg.svd(self.core)
        self._y = y.mT
        self.residuals = torch.linalg.vector_norm(link @ self._x[..., -self.block :, :], dim=-2)
        self.passes += 2

    def vectors(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the left [batch, m, count] and right [batch, n, count] vectors of the leading triplets."""
        return self.left @ self._x[..., :count].to(self.x), self.right @ self._y[..., :count].to(self.x)

    def restart(self, keep: int) -> None:
        """Shrink the search space to the leading ``keep`` triplets."""
        self.left, self.right = self.vectors(keep)
        self.core = torch.diag_embed(self.values[:, :keep])


def _orthonormal_against(basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (q, coefficients, r) with ``block = basis @ coefficients + q @ r`` and [basis, q] orthonormal.

    Projected before and after the QR: where nothing but rounding is left of ``block``, the second
    projection makes ``q`` an arbitrary direction that is still orthogonal to ``basis``.
    """
    coefficients = basis.mT @ block
    q, r = torch.linalg.qr(block - basis @ coefficients)
    again = basis.mT @ q
    q, r_again = torch.linalg.qr(q - basis @ again)
    r = r.double()
    return q, coefficients.double() + again.double() @ r, r_again.double() @ r
