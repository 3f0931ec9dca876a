"""Together: a matrix too large for one rank is changed by all ranks, each its rows or columns, through summed products.

The bits are not those of one process: sums of products are made in another order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import kernels
from ..apply import MatrixPart, PartedMerge
from ..inputs import Inputs
from ..source import Chunk
from .jobs import ShardJob, named
from .local import apply_to_part
from .ranks import Agreement, Ranks
from .surveys import solve_window


def merge_together(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> list[ShardJob]:
    """Merge matrices one after the other; return those whose result is not certified. A collective call."""
    return [job for job in jobs if not _merge(job, ranks, agreement)]


def _merge(job: ShardJob, ranks: Ranks, agreement: Agreement) -> bool:
    (step,) = solve_window([job], ranks, agreement)
    dim = job.layout.long_side
    assert isinstance(step, PartedMerge) and dim is not None, f"{job.method.name} said that it merges by parts"
    ranks.doing = f"merging {named([job])} together"
    base = job.inputs.base
    assert base is not None, "a method that adds a delta requires a base"
    deltas = [torch.empty(base.shape, dtype=torch.float32, device=base.device) for _ in job.inputs.tensors]
    for delta, tensor in zip(deltas, job.inputs.tensors, strict=True):
        kernels.weighted_sum(delta, [tensor, base], [1.0, -1.0])
    merged = torch.zeros_like(base, dtype=torch.float32)
    apply_to_part(step.inner, job.layout.runs, merged, Inputs(merged, tuple(deltas)))
    del deltas

    def total(part: Tensor) -> Tensor:
        if not job.layout.is_first(ranks.position):  # what is replicated counts once
            part.zero_()
        return ranks.total_on_device(part, agreement)

    return step.merge_part(job.out, Chunk.of(job.inputs), merged, MatrixPart(dim, total))
