"""Codes as they are packed: bits of bytes, FP4 and E8M0. All hosts that torch runs on here are little-endian."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of FP4 (OCP microscaling formats 1.0), by code."""


def as_bytes(codes: Tensor) -> Tensor:
    """Return the bytes of codes [..., n] of any dtype: uint8 [..., n * itemsize]."""
    import torch

    if codes.dtype == torch.uint8:
        return codes
    # Flat, since a last dimension of one element may have any stride.
    flat = codes.contiguous().reshape(-1).view(torch.uint8)
    return flat.view(*codes.shape[:-1], codes.shape[-1] * codes.itemsize)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return ``count`` unsigned codes of 1 to 8 bits of each row of bytes [n, m]: uint8 [n, count].

    The codes follow each other without gaps, low bits first, also across the words that the bytes were written in.
    """
    import torch

    if bits == 8:
        return packed[:, :count]
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        codes = torch.empty(*packed.shape, 8 // bits, dtype=torch.uint8, device=packed.device)
        for i in range(8 // bits):
            torch.bitwise_and(packed >> (bits * i), mask, out=codes[..., i])
        return codes.flatten(1)[:, :count]
    # Eight codes lie in ``bits`` bytes.
    groups = -(-count // 8)
    if packed.shape[1] < groups * bits:
        packed = torch.nn.functional.pad(packed, (0, groups * bits - packed.shape[1]))
    words = packed[:, : groups * bits].reshape(-1, groups, bits).long()
    joined = words[..., 0]
    for i in range(1, bits):
        joined = joined | (words[..., i] << (8 * i))
    codes = torch.stack([(joined >> (bits * i)) & mask for i in range(8)], dim=-1)
    return codes.to(torch.uint8).flatten(1)[:, :count]


def fp4_values(packed: Tensor, out: Tensor) -> None:
    """Write the values of FP4 codes, two per byte and the low half first, into ``out`` [n, 2 m]; ``packed`` [n, m]."""
    table = _e2m1(out.device, out.dtype)
    pairs = out.view(*packed.shape, 2)
    pairs[..., 0] = table[(packed & 15).int()]
    pairs[..., 1] = table[(packed >> 4).int()]


@functools.cache
def _e2m1(device: torch.device, dtype: torch.dtype) -> Tensor:
    import torch

    return torch.tensor(E2M1, dtype=dtype, device=device)


def check_groups(group: Tensor, count: int) -> None:
    """Raise ValueError where a column belongs to none of ``count`` groups."""
    if group.numel() and not 0 <= int(group.min()) <= int(group.max()) < count:
        raise ValueError(f"g_idx names the groups {int(group.min())} to {int(group.max())}, there are {count}")


def powers_of_two(exponents: Tensor) -> Tensor:
    """Return 2**(e - 127) of E8M0 bytes, as float32: subnormal for 0, infinity for 255."""
    import torch

    if exponents.dtype != torch.uint8:
        exponents = exponents.view(torch.uint8)
    # The exponent field of float32 has the same bias; 0 there means a subnormal, whose top bit is 2**-127.
    bits = exponents.int() << 23
    return torch.where(bits == 0, 1 << 22, bits).view(torch.float32)


def scale_values(scales: Tensor) -> Tensor:
    """Return scales as float32; one-byte integers and E8M0 are exponents."""
    import torch

    if scales.dtype == torch.uint8 or scales.dtype == getattr(torch, "float8_e8m0fnu", None):
        return powers_of_two(scales)
    return scales.float()
