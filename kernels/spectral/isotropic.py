r"""Iso-CTS: a flat spectrum over the directions that tasks share and over those that each of them adds.

    M = sum_t D_t = U diag(s) V^T,   c of its min(m, n) = r triplets are kept: U_c, s_c, V_c
    (I - U_c U_c^T) D_t ~ U_t diag(s_t) V_t^T,   rank (r - c) / T each
    X' = mean(s_c, s_1, ..., s_T) polar([U_c U_1 ... U_T]) polar([V_c V_1 ... V_T])^T

(Marczak et al. 2025, arXiv 2502.04959.) With c = r it is ``flatten_spectrum`` of M.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._info import Info
from ._matrices import check_tasks, full_float32
from .blocks import orthogonal_vectors
from .top import top_singular

__all__ = ["flatten_tasks"]

# Every vector weighs the same in the result: at 1e-4, enough for a truncated sum, the error was three times that of
# float32 SVDs.
TOLERANCE = 1e-5


def flatten_tasks(deltas: Sequence[Tensor], common: float = 0.8, *, null: str = "keep") -> tuple[Tensor, list[Info]]:
    """Return the merged delta [..., m, n], and what was done: triplets of the sum and of each task, two polar factors.

    Args:
        deltas: T tensors [..., m, n], float32, finite.
        common: share in [0, 1] of the directions that the sum keeps. Each task adds
                ``round((r - int(common * r)) / T)``, at most r // T; the sum keeps what is left of r.
        null:   ``keep`` leaves null directions of the sum and of the tasks at zero (they count in the mean),
                ``reference`` takes arbitrary vectors, as the reference code does.
    Raises:
        ValueError: shapes disagree or an argument is out of range; the message names it and its value.
    """
    check_tasks(deltas)
    if not 0 <= common <= 1:
        raise ValueError(f"common is {common}; expected a share in [0, 1]")
    size = min(deltas[0].shape[-2:])
    own = min(round((size - int(common * size)) / len(deltas)), size // len(deltas))
    with full_float32():
        total = torch.stack(list(deltas)).sum(0)
        kept = size - own * len(deltas)
        triplets = [top_singular(total, kept, tol=TOLERANCE)] if kept else []
        if own:
            shared = triplets[0][0] if kept else total[..., :0]
            triplets += [top_singular(delta - shared @ (shared.mT @ delta), own, tol=TOLERANCE) for delta in deltas]
        largest = torch.stack([t[1][..., 0] for t in triplets]).amax(0).unsqueeze(-1)
        left, right, infos = orthogonal_vectors(triplets, [largest] * len(triplets), null)
        mean = torch.cat([t[1] for t in triplets], dim=-1).double().mean(-1).float()[..., None, None]
        return (left * mean) @ right.mT, infos
