"""Keep rules on the device: the table of their integers, and what they keep of a block. See ``kernels.keep``."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..keep import RULE_ALL, RULE_BAND, RULE_MASK, RULE_RANDOM, Keep
from ._element import magnitude_bits
from ._launch import to_device
from ._philox import any_half, halves, words

# A band that has no upper end is a rule of its own here, since it costs half of a band.
ALL, TOP, BAND, RANDOM, MASK = (tl.constexpr(rule) for rule in range(5))
# Integers per rule. TOP and BAND: per boundary the threshold below its break index, the one from there on, the break
# index; elements above the threshold are inside. RANDOM: key, model, drop threshold. MASK: address, words.
COLUMNS = tl.constexpr(6)

_LARGEST = 0x7FFFFFFF


def rule_of(keep: Keep) -> int:
    """Return which of ALL, TOP, BAND, RANDOM and MASK a keep rule is."""
    if keep.rule == RULE_ALL:
        return ALL.value
    if keep.rule == RULE_RANDOM:
        return RANDOM.value
    if keep.rule == RULE_MASK:
        return MASK.value
    return BAND.value if keep.c <= _LARGEST else TOP.value


def keep_table(keeps: Sequence[Keep], like: Tensor, more: Sequence[int] = ()) -> Tensor:
    """Return the table [N, COLUMNS] that kernels read, on the device of ``like``; ``more`` integers follow it."""
    rows = [_row(keep) for keep in keeps]
    for i in range(0, len(more), COLUMNS.value):
        rows.append([*more[i : i + COLUMNS.value], *[0] * (i + COLUMNS.value - len(more))])
    return to_device(rows, like)


def _row(keep: Keep) -> list[int]:
    if keep.rule != RULE_BAND:
        return [*keep.integers()[1:], 0, 0]
    return [
        min(keep.a - 1, _LARGEST), min(keep.a, _LARGEST), keep.b,
        min(keep.c - 1, _LARGEST), min(keep.c, _LARGEST), keep.d,
    ]  # fmt: skip


def part_of(keeps: Sequence[Keep]) -> tuple[int, int, int] | None:
    """Return start, row and stride of the strided part that random rules are of, or None."""
    return next(((keep.d, keep.row, keep.stride) for keep in keeps if keep.row), None)


@triton.jit
def kept(delta, table, k, index, RULE: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, part=None):
    """Return what rule ``k`` keeps of ``delta`` [BLOCK], whose first element has the global index ``index``.

    ALIGNED promises that ``index`` is a multiple of 8. ``part`` has start, row and stride of a strided part, all
    multiples of 8 where ALIGNED: ``index`` counts its elements. None: it is not strided.
    """
    row = table + k * COLUMNS
    if RULE == RANDOM:
        keep = _drawn(row, index, part, BLOCK, ALIGNED)
    elif RULE == MASK:
        keep = _stored(row, index, BLOCK, ALIGNED)
    elif RULE == ALL:
        keep = tl.full([BLOCK], 1, tl.int1)
    else:
        bits = magnitude_bits(delta)
        keep = _inside(bits, row, index, BLOCK)
        if RULE == BAND:
            keep = keep & ~_inside(bits, row + 3, index, BLOCK)
    return keep


@triton.jit
def _inside(bits, row, index, BLOCK: tl.constexpr):
    """Return which elements lie inside the boundary at ``row`` of the table."""
    # The break index relative to the block fits 32 bits, so that no element compares 64.
    relative = tl.minimum(tl.maximum(tl.load(row + 2) - index, 0), BLOCK).to(tl.int32)
    below, above = tl.load(row).to(tl.int32), tl.load(row + 1).to(tl.int32)
    return bits > tl.where(tl.arange(0, BLOCK) < relative, below, above)


@triton.jit
def _drawn(row, index, part, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """Return which elements a random rule keeps: those whose 32-bit word is not below the drop threshold."""
    key, model, drop = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    drop_high, drop_low = (drop >> 16).to(tl.uint32), (drop & 0xFFFF).to(tl.uint32)
    w0, w1, w2, w3 = words(key, model, index, part, 0, BLOCK, ALIGNED)
    high = halves(w0, w1, w2, w3, index, part, BLOCK, ALIGNED)
    keep = high >= drop_high
    if drop_low != 0:
        # One element in 65536: most blocks have none and skip the second draw.
        if any_half(w0, w1, w2, w3, drop_high):
            w0, w1, w2, w3 = words(key, model, index, part, 1, BLOCK, ALIGNED)
            low = halves(w0, w1, w2, w3, index, part, BLOCK, ALIGNED)
            keep = keep & ((high != drop_high) | (low >= drop_low))
    return keep


@triton.jit
def _stored(row, index, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """Return which elements have their bit set in a mask. Read by bytes: eight elements are a thread's share."""
    mask_ptr = tl.load(row).to(tl.pointer_type(tl.uint8))
    last = tl.load(row + 1) * 4
    if ALIGNED:
        bytes = (index >> 3) + tl.arange(0, BLOCK // 8)
        held = tl.load(mask_ptr + bytes, mask=bytes < last, other=0).to(tl.int32)  # [BLOCK / 8]
        keep = tl.reshape((held[:, None] >> tl.arange(0, 8)[None, :]) & 1, [BLOCK])
    else:
        indices = index + tl.arange(0, BLOCK)
        held = tl.load(mask_ptr + (indices >> 3), mask=(indices >> 3) < last, other=0).to(tl.int32)
        keep = (held >> (indices & 7).to(tl.int32)) & 1
    return keep != 0
