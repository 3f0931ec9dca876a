"""Philox4x32-10 on the device, and the 16-bit halves of the words of a block. See ``kernels.philox``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _philox4x32(c0, c1, c2, c3, key):
    """Return the four words of counters (uint32) under a 64-bit key."""
    key0, key1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (product1 >> 32).to(tl.uint32) ^ c1 ^ key0,
            product1.to(tl.uint32),
            (product0 >> 32).to(tl.uint32) ^ c3 ^ key1,
            product0.to(tl.uint32),
        )
        key0 = (key0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        key1 = (key1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def spread(elements, part):
    """Return the global indices of elements of a strided part: see ``kernels.keep_on_rows``."""
    start, row, stride = part
    return start + elements // row * stride + elements % row


@triton.jit
def words(key, model, index, part, stream, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the four words of the blocks of eight elements that BLOCK elements from ``index`` (int64) on lie in.

    Elements are those of the tensor, or of a strided ``part``. ALIGNED promises that ``index``, and the numbers of the
    part, are multiples of 8: one block per eight elements instead of one per element.
    """
    if part is not None:
        step: tl.constexpr = 8 if ALIGNED else 1
        blocks = spread(index + step * tl.arange(0, BLOCK // step), part) >> 3
    elif ALIGNED:
        blocks = (index >> 3) + tl.arange(0, BLOCK // 8)
    else:
        blocks = (index + tl.arange(0, BLOCK)) >> 3
    zero = tl.zeros_like(blocks).to(tl.uint32)
    return _philox4x32(
        blocks.to(tl.uint32), (blocks >> 32).to(tl.uint32), zero + model.to(tl.uint32), zero + stream, key
    )


@triton.jit
def halves(w0, w1, w2, w3, index, part, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the 16-bit values (as uint32, [BLOCK]) of the elements from ``index`` on, out of their ``words``."""
    if ALIGNED:
        pairs = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [BLOCK / 8, 2, 2]: word 2 i + j
        result = tl.reshape(tl.join(pairs & 0xFFFF, pairs >> 16), [BLOCK])
    else:
        indices = index + tl.arange(0, BLOCK)
        if part is not None:
            indices = spread(indices, part)
        word = (indices >> 1) & 3
        picked = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
        result = tl.where((indices & 1) == 0, picked & 0xFFFF, picked >> 16)
    return result


@triton.jit
def any_half(w0, w1, w2, w3, half):
    """Return whether any 16-bit value of the words equals ``half``. Asked of words, it costs no change of layout."""
    found = _has(w0, half) | _has(w1, half) | _has(w2, half) | _has(w3, half)
    return tl.max(found.to(tl.int32), 0) != 0


@triton.jit
def _has(word, half):
    return ((word & 0xFFFF) == half) | ((word >> 16) == half)
