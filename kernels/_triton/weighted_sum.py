"""Triton kernel of ``weighted_sum``."""

from __future__ import annotations

import triton
import triton.language as tl

from .._jobs import SumJob
from ._element import load_float, store_rounded
from ._launch import elementwise_block, launch, spans


@triton.jit(do_not_specialize=["first", "numel"])
def _weighted_sum_kernel(out_ptr, tensors, weights, first, numel, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    start = (first + tl.program_id(0)).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    mask = lanes < numel - start if MASKED else None
    acc = load_float(tensors[0] + start + lanes, mask) * weights[0]  # [BLOCK]
    for k in tl.static_range(1, len(tensors)):
        acc = acc + load_float(tensors[k] + start + lanes, mask) * weights[k]
    store_rounded(out_ptr + start + lanes, acc, mask)


def weighted_sum(job: SumJob) -> None:
    """See ``kernels.weighted_sum``. Compiled once per number of tensors: pointers and weights are parameters."""
    out, numel = job.out, job.out.numel()
    block, num_warps = elementwise_block(out, len(job.tensors), held=1)
    for first, blocks, masked in spans(numel, block):
        launch(
            _weighted_sum_kernel, (blocks,), out, out, tuple(job.tensors), tuple(job.weights), first, numel,
            MASKED=masked, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
