"""Triton kernel of ``weighted_sum``."""

from __future__ import annotations

import triton
import triton.language as tl

from .._found import FoundFactors
from .._jobs import SumJob, numbers
from ._element import load_float, store_rounded
from ._launch import elementwise_block, launch, spans


@triton.jit(do_not_specialize=["found", "first", "numel"])
def _weighted_sum_kernel(
    out_ptr, tensors, weights, found_ptr, found, first, numel,
    FOUND: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = (first + tl.program_id(0)).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    mask = lanes < numel - start if MASKED else None
    if FOUND:
        found_ptr += found
        # After the weights that the device found: 0 if it did.
        if tl.load(found_ptr + len(tensors)) != 0.0:
            return
    acc = load_float(tensors[0] + start + lanes, mask) * _weight(weights, found_ptr, 0, FOUND)  # [BLOCK]
    for k in tl.static_range(1, len(tensors)):
        acc = acc + load_float(tensors[k] + start + lanes, mask) * _weight(weights, found_ptr, k, FOUND)
    store_rounded(out_ptr + start + lanes, acc, mask)


@triton.jit
def _weight(weights, found_ptr, k: tl.constexpr, FOUND: tl.constexpr):
    if FOUND:
        return tl.load(found_ptr + k)
    else:
        return weights[k]


def weighted_sum(job: SumJob) -> None:
    """See ``kernels.weighted_sum``. Compiled once per number of tensors: pointers and weights are parameters."""
    out, numel, weights = job.out, job.out.numel(), job.weights
    values, found = (weights.values, weights.start) if isinstance(weights, FoundFactors) else (None, 0)
    block, num_warps = elementwise_block(out, len(job.tensors), held=1)
    for first, blocks, masked in spans(numel, block):
        launch(
            _weighted_sum_kernel, (blocks,), out, out, tuple(job.tensors), tuple(numbers(weights)), values, found,
            first, numel, FOUND=values is not None, MASKED=masked, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
