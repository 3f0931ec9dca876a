r"""Higher-order GSVD of N deltas: one common right basis in which each expert's directions can be compared.

    D_i = U_i diag(sigma_i) V^T,   sum_i sigma_ik^2 = 1 for every k
    G_i = D_i^T D_i,   sum_i G_i = R^T R,   C_i = R^-T G_i R^-1
    T = mean_i (C_i + ridge I)^-1 = Z diag(tau) Z^T,   V = R^T Z,   sigma_ik = ||D_i R^-1 z_k||

(Ponnapalli et al. 2011; the form for rank-deficient D_i is that of Kempf, Goulart and Duncan 2021, arXiv 2102.09822,
through Gram matrices.) All in float64: the Gram matrices square the condition number. Directions that no D_i has are
left out, so r is the rank of the stacked matrices, and R = diag(lambda)^1/2 W^T from the eigenvectors of the sum.

    sigma_ik = 1/sqrt(N) for all i: shared direction, tau at its minimum 1 / (1/N + ridge)
    sigma_ik = 1 for one i:         isolated direction, tau at its maximum (N-1)/(N ridge) + 1/(N (1+ridge))
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._matrices import check_matrices

__all__ = ["HigherOrderGSVD", "higher_order_gsvd"]

RIDGE = 1e-3
# Directions below this share of the largest stacked singular value are left out.
RANK_TOLERANCE = 1e-6
# Relative distance of tau from its maximum at which a direction belongs to one expert, and from its minimum to all.
EXTREME = 1e-6
# Rows that are brought to float64 at once.
ROWS = 256


@dataclass(frozen=True)
class HigherOrderGSVD:
    """The decomposition, all float64.

    Attributes:
        v:     [n, r] common right basis; the norm of a column says how much of the deltas lies along it.
        dual:  [n, r] with ``D_i @ dual = U_i diag(sigma_i)``, so ``D_i = (D_i @ dual) @ v^T``.
        sigma: [N, r] share of expert i along direction k.
        tau:   [r] rising: from shared to isolated.
        ridge: the regularization used.
    """

    v: Tensor
    dual: Tensor
    sigma: Tensor
    tau: Tensor
    ridge: float

    def shared(self) -> Tensor:
        """Return the boolean mask [r] of directions that all experts use alike."""
        return self.tau <= (1 + EXTREME) / (1 / len(self.sigma) + self.ridge)

    def isolated(self) -> Tensor:
        """Return the boolean mask [r] of directions that one expert alone uses; ``sigma.argmax(0)`` says which."""
        return _isolated(self.tau, len(self.sigma), self.ridge)

    def overlap(self) -> Tensor:
        """Return the symmetric [N, N] share of directions that two experts have in common, 1 on the diagonal.

        ``sum_k w_k 2 min(sigma_ik^2, sigma_jk^2) / sum_k w_k (sigma_ik^2 + sigma_jk^2)`` with ``w_k = ||v_k||^2``.
        Without the weights, directions that hold only noise decide it. (Not the paper's alignment matrix.)
        """
        shares, weight = self.sigma.square(), self.v.square().sum(dim=0)
        common = torch.minimum(shares.unsqueeze(0), shares.unsqueeze(1)) @ weight
        return _in_common(common, shares @ weight)

    def alignment(self, deltas: Sequence[Tensor]) -> Tensor:
        """Return the symmetric [N, N] share of what two experts do alike: 1 on the diagonal, near 0 for noise.

        ``2 sum_k w_k |<a_ik, a_jk>| / sum_k w_k (sigma_ik^2 + sigma_jk^2)`` with ``a_ik = D_i @ dual_k``: a direction
        counts where both use it and map it to the same place. Noise of full rank uses every direction, so ``overlap``
        alone does not tell unrelated experts from related ones.

        Args:
            deltas: those of the decomposition, all of one shape.
        """
        count = len(self.sigma)
        inner = self.v.new_zeros(count, count, len(self.tau))
        for rows in zip(*map(_wide_rows, deltas), strict=True):
            parts = [part @ self.dual for part in rows]
            for i in range(count):
                for j in range(i, count):
                    inner[i, j] += (parts[i] * parts[j]).sum(dim=0)
        common = inner.abs() @ self.v.square().sum(dim=0)
        return _in_common(common + common.triu(1).mT, common.diagonal())


def higher_order_gsvd(deltas: Sequence[Tensor], *, ridge: float = RIDGE) -> HigherOrderGSVD:
    """Return the higher-order GSVD of N matrices with the same number of columns.

    Args:
        deltas: N matrices [m_i, n], float32 or float64, finite; at least two, not all zero.
        ridge:  regularization of the inverses, > 0; 1e-3 as in the reference.
    Raises:
        ValueError: shapes disagree or an argument is out of range; the message names it and its value.
    """
    _check(deltas, ridge)
    n, rows = deltas[0].shape[1], sum(len(delta) for delta in deltas)
    frame = None
    if rows < n:
        # The joint row space has at most ``rows`` dimensions: work there.
        frame = torch.linalg.qr(torch.cat([delta.double() for delta in deltas]).mT).Q
        deltas = [delta.double() @ frame for delta in deltas]
    # A few rows in float64 at a time: the N Gram matrices are what takes memory.
    grams = [_summed(part.mT @ part for part in _wide_rows(delta)) for delta in deltas]
    squares, basis = torch.linalg.eigh(_summed(grams))
    kept = squares > RANK_TOLERANCE**2 * squares[-1]
    root, basis = squares[kept].sqrt(), basis[:, kept]
    inverse = basis / root
    mean = torch.zeros_like(torch.diag(root))
    for gram in grams:
        share = inverse.mT @ gram @ inverse
        share.diagonal().add_(ridge)
        mean += torch.cholesky_inverse(torch.linalg.cholesky(share)) / len(grams)
    tau, z = torch.linalg.eigh((mean + mean.mT) / 2)
    isolated = _isolated(tau, len(grams), ridge)
    if int(isolated.sum()) > 1:
        z[:, isolated] = _separated(z[:, isolated], inverse, grams)
    v, dual = (basis * root) @ z, inverse @ z
    shares = [_summed((part @ dual).square().sum(dim=0) for part in _wide_rows(delta)) for delta in deltas]
    sigma = torch.stack(shares).sqrt()
    if frame is not None:
        v, dual = frame @ v, frame @ dual
    return HigherOrderGSVD(v, dual, sigma, tau, ridge)


def _in_common(common: Tensor, total: Tensor) -> Tensor:
    """Return ``2 common_ij / (total_i + total_j)``, 0 where both experts are zero, and 1 on the diagonal."""
    return (2 * common / (total.unsqueeze(0) + total.unsqueeze(1))).nan_to_num_(nan=0.0).fill_diagonal_(1)


def _wide_rows(delta: Tensor) -> Iterator[Tensor]:
    """Yield the matrix in float64, a few rows at a time."""
    for part in delta.split(ROWS):
        yield part.double()


def _summed(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _isolated(tau: Tensor, count: int, ridge: float) -> Tensor:
    return tau >= ((count - 1) / (count * ridge) + 1 / (count * (1 + ridge))) * (1 - EXTREME)


def _separated(block: Tensor, inverse: Tensor, grams: Sequence[Tensor]) -> Tensor:
    """Turn the isolated directions ``block``, which have one common tau, so that each belongs to one expert."""
    # In this subspace every C_i is a projection on the directions of expert i: distinct factors keep them apart.
    basis = inverse @ block
    labelled = _summed(label * (basis.mT @ gram @ basis) for label, gram in enumerate(grams, 1))
    return block @ torch.linalg.eigh(labelled).eigenvectors


def _check(deltas: Sequence[Tensor], ridge: float) -> None:
    if len(deltas) < 2:
        raise ValueError(f"deltas has {len(deltas)} matrices; expected at least two")
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; expected a positive number")
    for index, delta in enumerate(deltas):
        check_matrices(f"deltas[{index}]", delta, (torch.float32, torch.float64))
        if delta.dim() != 2 or delta.shape[1] != deltas[0].shape[1]:
            raise ValueError(
                f"deltas[{index}] has shape {tuple(delta.shape)}; expected a matrix with {deltas[0].shape[-1]} columns"
            )
    if not any(bool((delta != 0).any()) for delta in deltas):
        raise ValueError("deltas are all zero; expected at least one that is not")
