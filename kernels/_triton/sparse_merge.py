"""Triton kernel of ``sparse_merge``."""

from __future__ import annotations

import triton
import triton.language as tl

from .._jobs import DIVIDES, VOTES, MergeJob
from ._element import load_float, store_rounded
from ._keep import MASK, RANDOM, keep_table, kept, rule_of
from ._launch import elementwise_block, launch, spans

_NONE, _WEIGHTED, _SUM, _COUNT = (tl.constexpr(vote) for vote in range(4))
_BY_WEIGHTS, _BY_COUNT = tl.constexpr(1), tl.constexpr(2)


@triton.jit(do_not_specialize=["offset", "first", "numel"])
def _sparse_merge_kernel(
    out_ptr, base_ptr, tensors, factors, weights, scale, divisor, table, offset, first, numel,
    RULES: tl.constexpr, ALIGNED: tl.constexpr, VOTE: tl.constexpr, DIVIDE: tl.constexpr,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = (first + tl.program_id(0)).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    mask = lanes < numel - start if MASKED else None
    base = load_float(base_ptr + start + lanes, mask)  # [BLOCK]
    parts = ()
    for k in tl.static_range(len(tensors)):
        delta = load_float(tensors[k] + start + lanes, mask) - base
        keep = kept(delta, table, k, offset + start, RULES[k], BLOCK, ALIGNED)
        # Multiplied, so that a dropped NaN or infinity becomes NaN and never vanishes.
        factor = factors[k] if VOTE == _NONE or VOTE == _WEIGHTED else 1.0
        parts = parts + (delta * tl.where(keep, factor, 0.0),)
    if VOTE == _NONE:
        merged = parts[0]
        for k in tl.static_range(1, len(tensors)):
            merged = merged + parts[k]
        if DIVIDE != 0:
            merged = tl.math.div_rn(merged, tl.zeros_like(base) + divisor)
    else:
        merged, total = _elected_sum(parts, factors, weights, VOTE, DIVIDE)
        if DIVIDE != 0:
            merged = tl.where(total == 0.0, merged, tl.math.div_rn(merged, total))
    store_rounded(out_ptr + start + lanes, base + merged * scale, mask)


@triton.jit
def _elected_sum(parts, factors, weights, VOTE: tl.constexpr, DIVIDE: tl.constexpr):
    """Return the sum of the contributions that have the elected sign, and the sum of their weights or their number."""
    votes = _ballot(parts[0], VOTE)
    for k in tl.static_range(1, len(parts)):
        votes = votes + _ballot(parts[k], VOTE)
    positive = votes >= 0.0
    merged = tl.zeros_like(votes)
    total = tl.zeros_like(votes)
    for k in tl.static_range(len(parts)):
        # A NaN is neither <= 0 nor >= 0, so it never opposes.
        opposes = tl.where(positive, parts[k] <= 0.0, parts[k] >= 0.0)
        # The sign of a zero contribution may differ from that of the reference: it is added to +0 or to a number.
        contribution = parts[k] if VOTE == _WEIGHTED else parts[k] * factors[k]
        merged = tl.where(opposes, merged, merged + contribution)
        if DIVIDE == _BY_WEIGHTS:
            total = tl.where(opposes, total, total + weights[k])
        elif DIVIDE == _BY_COUNT:
            total = tl.where(opposes, total, total + 1.0)
    return merged, total


@triton.jit
def _ballot(part, VOTE: tl.constexpr):
    if VOTE == _COUNT:
        part = tl.where(part > 0.0, 1.0, 0.0) - tl.where(part < 0.0, 1.0, 0.0)
    return part


def sparse_merge(job: MergeJob) -> None:
    """See ``kernels.sparse_merge``.

    Compiled once per number of tensors, keep rules, vote and divide: a delta stays in its register from the
    election to the sum.
    """
    out, rules = job.out, tuple(rule_of(keep) for keep in job.keeps)
    table = keep_table(job.keeps, out)
    numel = out.numel()
    block, num_warps = elementwise_block(out, len(job.tensors) + 1, held=len(job.tensors))
    aligned = job.offset % 8 == 0 or not {RANDOM.value, MASK.value} & set(rules)
    for first, blocks, masked in spans(numel, block):
        launch(
            _sparse_merge_kernel, (blocks,), out, out, job.base, tuple(job.tensors), tuple(job.factors),
            tuple(job.weights or ()), job.scale, job.divisor, table, job.offset, first, numel, RULES=rules,
            ALIGNED=aligned and block % 8 == 0, VOTE=VOTES.index(job.vote), DIVIDE=DIVIDES.index(job.divide),
            MASKED=masked, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
