"""Triton kernel of ``sparse_merge``."""

from __future__ import annotations

import struct

import triton
import triton.language as tl

from .._jobs import DIVIDES, VOTES, MergeJob
from .._quotients import elected_quotients, quotient
from ._element import load_float, store_rounded
from ._keep import COLUMNS, MASK, RANDOM, keep_table, kept, part_of, rule_of
from ._launch import elementwise_block, launch, spans

_NONE, _WEIGHTED, _SUM, _COUNT = (tl.constexpr(vote) for vote in range(4))
_BY_WEIGHTS, _BY_COUNT = tl.constexpr(1), tl.constexpr(2)
# Models whose elected sums are divided by a table of quotients, behind that of the keep rules.
_MOST_OF_TABLE = tl.constexpr(4)


@triton.jit(do_not_specialize=["offset", "first", "numel"])
def _sparse_merge_kernel(
    out_ptr, base_ptr, tensors, factors, weights, scale, table, offset, part, first, numel,
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
        keep = kept(delta, table, k, offset + start, RULES[k], BLOCK, ALIGNED, part)
        # Multiplied, so that a dropped NaN or infinity becomes NaN and never vanishes.
        factor = factors[k] if VOTE == _NONE or VOTE == _WEIGHTED else 1.0
        parts = parts + (delta * tl.where(keep, factor, 0.0),)
    if VOTE == _NONE:
        merged = parts[0]
        for k in tl.static_range(1, len(tensors)):
            merged = merged + parts[k]
        if DIVIDE != 0:
            merged = _times_quotient(merged, table + len(tensors) * COLUMNS)
    else:
        merged = _elected(parts, factors, weights, table + len(tensors) * COLUMNS, VOTE, DIVIDE)
    store_rounded(out_ptr + start + lanes, base + merged * scale, mask)


@triton.jit
def _elected(parts, factors, weights, quotients, VOTE: tl.constexpr, DIVIDE: tl.constexpr):
    """Return the sum of the contributions that have the elected sign, divided by that of their weights or by their
    number."""
    votes = _ballot(parts[0], VOTE)
    for k in tl.static_range(1, len(parts)):
        votes = votes + _ballot(parts[k], VOTE)
    positive = votes >= 0.0
    merged = tl.zeros_like(votes)
    total = tl.zeros_like(votes)
    agreeing = tl.zeros_like(votes).to(tl.int32)
    for k in tl.static_range(len(parts)):
        # A NaN is neither <= 0 nor >= 0, so it never opposes.
        opposes = tl.where(positive, parts[k] <= 0.0, parts[k] >= 0.0)
        # The sign of a zero contribution may differ from that of the reference: it is added to +0 or to a number.
        contribution = parts[k] if VOTE == _WEIGHTED else parts[k] * factors[k]
        merged = tl.where(opposes, merged, merged + contribution)
        if DIVIDE != 0:
            if len(parts) <= _MOST_OF_TABLE:
                agreeing = agreeing | tl.where(opposes, 0, 1 << k)
            else:
                weight = weights[k] if DIVIDE == _BY_WEIGHTS else 1.0
                total = tl.where(opposes, total, total + weight)
    if DIVIDE != 0:
        if len(parts) <= _MOST_OF_TABLE:
            merged = _times_quotient(merged, quotients + 2 * agreeing)
        else:
            merged = _divided(merged, tl.where(total == 0.0, 1.0, total))
    return merged


@triton.jit
def _times_quotient(merged, entry):
    """Return the sums divided by the quotient at ``entry``: ``divided`` of csrc/fastmerge_math.h."""
    high = tl.load(entry).to(tl.float64, bitcast=True)
    low = tl.load(entry + 1).to(tl.float64, bitcast=True)
    exact = merged.to(tl.float64)
    # The first product is exact, so fusing it changes no bit.
    return tl.fma(exact, high + tl.zeros_like(exact), exact * low).to(tl.float32)


@triton.jit
def _divided(merged, total):
    """Return the sums divided. A GPU divides zeros by a call that costs more than a merge, so it divides 1 there."""
    zero = merged == 0.0
    quotient = tl.math.div_rn(tl.where(zero, 1.0, merged), total)
    sign = total.to(tl.uint32, bitcast=True) & 0x80000000
    return tl.where(zero, (merged.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True), quotient)


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
    table = keep_table(job.keeps, out, _quotient_words(job))
    numel = out.numel()
    block, num_warps = elementwise_block(out, len(job.tensors) + 1, held=len(job.tensors))
    part = part_of(job.keeps)
    aligned = not {RANDOM.value, MASK.value} & set(rules) or not any(i % 8 for i in (job.offset, *(part or ())))
    for first, blocks, masked in spans(numel, block):
        launch(
            _sparse_merge_kernel, (blocks,), out, out, job.base, tuple(job.tensors), tuple(job.factors),
            tuple(job.weights or ()), job.scale, table, job.offset, part, first, numel, RULES=rules,
            ALIGNED=aligned and block % 8 == 0, VOTE=VOTES.index(job.vote), DIVIDE=DIVIDES.index(job.divide),
            MASKED=masked, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip


def _quotient_words(job: MergeJob) -> tuple[int, ...]:
    """Return the bits of the quotients that a merge divides by, two integers each."""
    count = len(job.tensors)
    if job.divide == "none" or (job.vote != "none" and count > _MOST_OF_TABLE.value):
        return ()
    if job.vote == "none":
        pairs: tuple[tuple[float, float], ...] = (quotient(job.divisor),)
    else:
        weights = [1.0] * count if job.divide == "count" else job.weights or job.factors
        pairs = elected_quotients(tuple(weights))
    numbers = [number for pair in pairs for number in pair]
    return struct.unpack(f"={len(numbers)}q", struct.pack(f"={len(numbers)}d", *numbers))
