"""Loads, stores and rounding that every kernel shares.

bfloat16 is widened and rounded with integers: Triton's interpreter truncates where the GPU rounds, and
misreads subnormals.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_float(ptrs, mask):
    """Return the float32 values at ``ptrs``; 0 where masked off. ``mask`` None loads all."""
    if mask is None:
        x = tl.load(ptrs)
    else:
        x = tl.load(ptrs, mask=mask, other=0.0)
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def entry(table, k, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Return what ``load_entry`` reads tensor ``k`` of a ``_launch.pointer_table`` through."""
    row = table + 2 * k
    if DTYPE is None:
        return row
    else:
        # The hint must follow the cast: Triton forgets what it knew of an integer.
        return tl.multiple_of(tl.load(row).to(tl.pointer_type(DTYPE)), ALIGN)


@triton.jit
def load_entry(source, offsets, mask, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Return the float32 values of an ``entry`` at ``offsets``. DTYPE None asks the table at every load."""
    if DTYPE is None:
        address = tl.load(source)
        code = tl.load(source + 1)
        if code == 0:
            x = load_float(tl.multiple_of(address.to(tl.pointer_type(tl.float32)), ALIGN) + offsets, mask)
        elif code == 1:
            x = load_float(tl.multiple_of(address.to(tl.pointer_type(tl.bfloat16)), ALIGN) + offsets, mask)
        else:
            x = load_float(tl.multiple_of(address.to(tl.pointer_type(tl.float16)), ALIGN) + offsets, mask)
        return x
    else:
        return load_float(source + offsets, mask)


@triton.jit
def load_delta(source, base_ptr, offsets, mask, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Return an ``entry`` minus the base in float32; ``base_ptr`` None is no base. 0 where masked off."""
    x = load_entry(source, offsets, mask, DTYPE, ALIGN)
    if base_ptr is not None:
        x = x - load_float(base_ptr + offsets, mask)
    return x


@triton.jit
def store_rounded(ptrs, x, mask):
    """Store float32 values, rounded once to the dtype of ``ptrs``: nearest, ties to even."""
    dtype: tl.constexpr = ptrs.dtype.element_ty
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        x = tl.where(x == x, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        x = x.to(dtype)
    if mask is None:
        tl.store(ptrs, x)
    else:
        tl.store(ptrs, x, mask=mask)


@triton.jit
def magnitude_bits(delta):
    """Return the float32 bits of ``|delta|`` as int32; every NaN as ``keep.NAN_MAGNITUDE``."""
    return tl.minimum(delta.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7F800001)
