"""The arithmetic of adapters: their terms, added to rows of a tensor in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..plan.types import Adapter, InputTensor


class Term(NamedTuple):
    """An adapter in memory, float32: ``up`` [m, r], ``down`` [r, n], and DoRA's ``magnitude`` [m], if there is one."""

    up: Tensor
    down: Tensor
    scale: float
    magnitude: Tensor | None = None


def term_of(adapter: Adapter, load: Callable[[InputTensor], Tensor]) -> Term:
    """Return a term whose factors ``load`` returns as they are stored."""
    up, down = (load(factor).float() for factor in (adapter.up, adapter.down))
    if adapter.transposed:
        up, down = up.t().contiguous(), down.t().contiguous()
    return Term(up, down, adapter.scale, None if adapter.magnitude is None else load(adapter.magnitude).float())


def add_terms(out: Tensor, weight: Tensor, terms: Iterable[Term], first: int, last: int) -> None:
    """Write the rows ``first .. last - 1``, ``weight``, with every term added into ``out`` (float32).

    DoRA scales each row of the sum to its magnitude, as PEFT's ``merge_and_unload`` does: by the float32 quotient of
    the magnitude and the norm, which is summed in float64.
    """
    for term in terms:
        kernels.low_rank_update(out, weight, term.up[first:last], term.down, term.scale)
        weight = out
        if term.magnitude is not None:
            norms = torch.linalg.vector_norm(out, dim=1, dtype=torch.float64).float()
            out *= (term.magnitude[first:last] / norms)[:, None]
