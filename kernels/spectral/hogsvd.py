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

from collections.abc import Sequence
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

    def shared(self, tolerance: float = EXTREME) -> Tensor:
        """Return the boolean mask [r] of directions that all experts use alike."""
        lowest = 1 / (1 / len(self.sigma) + self.ridge)
        return self.tau <= lowest * (1 + tolerance)

    def isolated(self, tolerance: float = EXTREME) -> Tensor:
        """Return the boolean mask [r] of directions that one expert alone uses; ``sigma.argmax(0)`` says which."""
        return self.tau >= _highest_tau(len(self.sigma), self.ridge) * (1 - tolerance)

    def overlap(self) -> Tensor:
        """Return the symmetric [N, N] share of directions that two experts have in common, 1 on the diagonal.

        ``sum_k w_k 2 min(sigma_ik^2, sigma_jk^2) / sum_k w_k (sigma_ik^2 + sigma_jk^2)`` with ``w_k = ||v_k||^2``.
        Without the weights, directions that hold only noise decide it. (Not the paper's alignment matrix.)
        """
        shares, weight = self.sigma.square(), self.v.square().sum(dim=0)
        common = torch.minimum(shares.unsqueeze(0), shares.unsqueeze(1)) @ weight
        total = shares @ weight
        return 2 * common / (total.unsqueeze(0) + total.unsqueeze(1))


def higher_order_gsvd(deltas: Sequence[Tensor], *, ridge: float = RIDGE) -> HigherOrderGSVD:
    """Return the higher-order GSVD of N matrices with the same number of columns.

    Args:
        deltas: N matrices [m_i, n], float32 or float64, finite; at least two, not all zero.
        ridge:  regularization of the inverses, > 0; 1e-3 as in the reference.
    Raises:
        ValueError: shapes disagree or an argument is out of range; the message names it and its value.
    """
    _check(deltas, ridge)
    matrices = [delta.double() for delta in deltas]
    n, rows = matrices[0].shape[1], sum(len(matrix) for matrix in matrices)
    frame = None
    if rows < n:
        # The joint row space has at most ``rows`` dimensions: work there.
        frame = torch.linalg.qr(torch.cat(matrices).mT).Q
        matrices = [matrix @ frame for matrix in matrices]
    grams = torch.stack([matrix.mT @ matrix for matrix in matrices])
    squares, basis = torch.linalg.eigh(grams.sum(dim=0))
    kept = squares > RANK_TOLERANCE**2 * squares[-1]
    root, basis = squares[kept].sqrt(), basis[:, kept]
    inverse = basis / root
    shares = inverse.mT @ grams @ inverse
    eye = torch.eye(len(root), dtype=torch.float64, device=root.device)
    mean = torch.cholesky_inverse(torch.linalg.cholesky(shares + ridge * eye)).mean(dim=0)
    tau, z = torch.linalg.eigh((mean + mean.mT) / 2)
    z = _separate_isolated(z, tau, shares, ridge)
    v, dual = (basis * root) @ z, inverse @ z
    sigma = torch.stack([torch.linalg.vector_norm(matrix @ dual, dim=0) for matrix in matrices])
    if frame is not None:
        v, dual = frame @ v, frame @ dual
    return HigherOrderGSVD(v, dual, sigma, tau, ridge)


def _highest_tau(count: int, ridge: float) -> float:
    return (count - 1) / (count * ridge) + 1 / (count * (1 + ridge))


def _separate_isolated(z: Tensor, tau: Tensor, shares: Tensor, ridge: float) -> Tensor:
    """Turn the isolated directions, which have one common tau, so that each belongs to one expert."""
    isolated = tau >= _highest_tau(len(shares), ridge) * (1 - EXTREME)
    if int(isolated.sum()) < 2:
        return z
    block = z[:, isolated]
    # In this subspace every C_i is a projection on the directions of expert i: distinct factors keep them apart.
    labels = torch.arange(1, len(shares) + 1, dtype=torch.float64, device=z.device)
    labelled = torch.einsum("pk,ipq,ql,i->kl", block, shares, block, labels)
    z = z.clone()
    z[:, isolated] = block @ torch.linalg.eigh(labelled).eigenvectors
    return z


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
