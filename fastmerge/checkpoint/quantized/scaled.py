"""Codes of one byte with scales: float8 of several tools, MXFP8, and int8 of compressed-tensors.

    value = (code - zero point) * scale

in float32, rounded once to the scales' dtype where that is bfloat16 or float16; scales that are powers of two (E8M0)
give bfloat16, float32 scales float32. So transformers' ``Fp8Dequantize`` and compressed-tensors' ``dequantize`` do.
A scale is for the tensor, a row, a column, a group of a row, or a block (DeepSeek: 128 x 128).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import (
    DType,
    bfloat16,
    float8_e4m3fn,
    float8_e4m3fnuz,
    float8_e5m2,
    float8_e5m2fnuz,
    float8_e8m0fnu,
    float16,
    float32,
    int8,
    uint8,
)
from ..types import Coded, Part, TensorEntry
from ._bits import scale_values
from ._grid import Grid, find_grid
from ._stored import Found, Stored, coded, is_count

if TYPE_CHECKING:
    from torch import Tensor

FLOAT8 = (float8_e4m3fn, float8_e5m2, float8_e4m3fnuz, float8_e5m2fnuz)
E8M0 = float8_e8m0fnu

# transformers, DeepSeek and most others; compressed-tensors and modelopt; DeepSeek V4; Mistral.
_BESIDE = ("_scale_inv", "_scale")
_OF_MODULE = ("scale", "qscale_weight")


@dataclass(frozen=True)
class Scaled:
    """Decoder of codes [n, columns] with scales, and zero points of their shape."""

    grid: Grid

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        codes, scales, *zeros = parts
        values = codes.float()
        if zeros:
            zero = self.grid.of_rows(zeros[0].float(), first, len(out))
            values.sub_(self.grid.spread(zero, out.shape[1]))
        self.grid.multiply(values, self.grid.of_rows(scale_values(scales), first, len(out)))
        out.copy_(values)


def find(stored: Stored, name: str) -> Found | None:
    """Return the tensor whose codes are stored as ``name``, or None where that is no such tensor."""
    codes = stored.tensors[name]
    if codes.dtype not in FLOAT8 and codes.dtype != int8:
        return None
    scale = scale_name(stored, name)
    if scale is None:
        return None
    scales = stored.tensors[scale]
    if codes.dtype == int8 and scales.dtype in (E8M0, uint8):
        return None  # FP4 in pairs
    if f"{name}_g_idx" in stored.tensors:
        raise stored.wrong(f"{name}_g_idx", "orders the columns of codes that are not packed, which is not offered")
    grid = find_grid(codes.shape, scales.shape, _blocks(stored))
    if grid is None:
        raise stored.wrong(scale, f"has shape {list(scales.shape)}, which does not fit {list(codes.shape)} of {name}")
    parts = [Part(codes), Part(scales, grid.by_row)]
    used = [name, scale]
    zero = stored.get(f"{name}_zero_point")
    if zero is not None:
        if zero.shape != scales.shape:
            raise stored.wrong(f"{name}_zero_point", f"has shape {list(zero.shape)}, its scales {list(scales.shape)}")
        parts.append(Part(zero, grid.by_row))
        used.append(f"{name}_zero_point")
    scheme = Coded(_title(codes, scales, grid), tuple(parts), Scaled(grid))
    return Found(name, coded(value_dtype(scales.dtype), codes.shape, scheme), tuple(used))


def scale_name(stored: Stored, name: str) -> str | None:
    """Return the name of the scales of the codes ``name``."""
    candidates = [name + ending for ending in _BESIDE]
    if name.endswith(".weight"):
        candidates += [name.removesuffix("weight") + own for own in _OF_MODULE]
    return next((candidate for candidate in candidates if candidate in stored.tensors), None)


def value_dtype(scales: DType) -> DType:
    """Return the dtype of values by that of their scales."""
    if scales in (bfloat16, float16, float32):
        return scales
    return bfloat16


def _blocks(stored: Stored) -> Sequence[int | None]:
    for stated in (stored.setting("weight_block_size"), *stored.of_weights("block_structure")):
        if isinstance(stated, list) and len(stated) == 2 and all(map(is_count, stated)):
            return stated
    return (128, 128)


def _title(codes: TensorEntry, scales: TensorEntry, grid: Grid) -> str:
    if codes.dtype == int8:
        return "int8"
    return "mxfp8" if scales.dtype in (E8M0, uint8) and (grid.height, grid.width) == (1, 32) else "fp8"
