r"""TSV-M: the leading singular triplets of every task, made orthogonal to one another, then summed.

    D_t ~ U_t diag(s_t) V_t^T (rank k each),   U = [U_1 ... U_T],   V = [V_1 ... V_T]
    M = polar(U) diag(s_1, ..., s_T) polar(V)^T

(Gargiulo et al. 2025, arXiv 2412.00081.) Mutually orthogonal tasks are summed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._exact import float32_floor
from ._info import Info
from ._matrices import check_tasks, full_float32
from .flatten import polar
from .top import Result, top_singular

__all__ = ["orthogonalize_blocks"]


def orthogonalize_blocks(
    deltas: Sequence[Tensor], rank: int | None = None, *, null: str = "keep"
) -> tuple[Tensor, list[Info]]:
    """Return the merged delta [..., m, n], and what was done: per task its triplets, then the two polar factors.

    Args:
        deltas: T tensors [..., m, n], float32, finite.
        rank:   triplets kept of each; by default min(m, n) // T, at least 1.
        null:   a task of lower rank has null triplets, and tasks that share directions leave U or V rank-deficient:
                ``keep`` adds nothing for either (a task given twice counts once), ``reference`` takes arbitrary
                vectors, which compete with those of other tasks, as the reference code does.
    Raises:
        ValueError: shapes disagree or an argument is out of range; the message names it and its value.
    """
    check_tasks(deltas)
    size = min(deltas[0].shape[-2:])
    rank = max(1, size // len(deltas)) if rank is None else rank
    if not 1 <= rank * len(deltas) <= max(size, len(deltas)):
        most = max(1, size // len(deltas))
        raise ValueError(f"rank is {rank}; expected 1 to {most} for {len(deltas)} tasks of size {size}")
    triplets = [top_singular(delta, rank) for delta in deltas]
    left, right, infos = orthogonal_vectors(triplets, [t[1][..., :1] for t in triplets], null)
    with full_float32():
        merged = (left * torch.cat([t[1] for t in triplets], dim=-1).unsqueeze(-2)) @ right.mT
    return merged, infos


def orthogonal_vectors(
    triplets: Sequence[Result], largest: Sequence[Tensor], null: str
) -> tuple[Tensor, Tensor, list[Info]]:
    """Return the polar factors of all left and of all right vectors, and what was done for them, and before.

    Args:
        triplets: u [..., m, k], s [..., k], vh [..., k, n] of each task, and what was done to find them.
        largest:  [..., 1] for each, beside which values are null; with ``keep`` their vectors take no part.
    """
    left, right = torch.cat([t[0] for t in triplets], dim=-1), torch.cat([t[2].mT for t in triplets], dim=-1)
    if null == "keep":
        floor = float32_floor(min(left.shape[-2], right.shape[-2]))
        real = torch.cat([t[1] > floor * most for t, most in zip(triplets, largest, strict=True)], dim=-1)
        left, right = left * real.unsqueeze(-2), right * real.unsqueeze(-2)
    left, left_infos = polar(left, null=null)
    right, right_infos = polar(right, null=null)
    return left, right, [info for t in triplets for info in t[3]] + left_infos + right_infos
