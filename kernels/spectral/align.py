r"""KnOTS: tasks in one basis, that of the left singular vectors of all deltas side by side.

    [D_1 ... D_T] = U diag(s) [V_1 ... V_T]^T   =>   D_t = U (diag(s) V_t^T),   the aligned part diag(s) V_t^T = U^T D_t

(Stoica et al. 2025, arXiv 2410.19735.) U comes from the eigenvectors of ``sum_t D_t D_t^T`` in float64, so the matrix
[m, T n] is never decomposed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._exact import NULL
from ._matrices import check_tasks

__all__ = ["shared_basis"]


def shared_basis(deltas: Sequence[Tensor]) -> Tensor:
    """Return U [m, r] float64, by falling singular value; those of at most 2^-22 of the largest are left out.

    The sign of a column, and the basis of equal singular values, are arbitrary. (The reference code leaves out singular
    values below 1e-5 instead: a bound that scales with the weights.)

    Args:
        deltas: T matrices [m, n], float32, finite.
    Raises:
        ValueError: shapes disagree; the message names the argument and its shape.
    """
    check_tasks(deltas)
    gram = torch.zeros(deltas[0].shape[0], deltas[0].shape[0], dtype=torch.float64, device=deltas[0].device)
    for delta in deltas:
        wide = delta.double()
        gram.addmm_(wide, wide.mT)
    squares, vectors = torch.linalg.eigh(gram)
    rank = int((squares > NULL**2 * squares[-1:]).sum())
    return vectors.flip(-1)[:, :rank]
