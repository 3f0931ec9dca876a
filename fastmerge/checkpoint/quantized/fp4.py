"""Packed FP4 along rows: NVFP4 in its two conventions, and MXFP4.

NVFP4 has a float8 scale for every 16 values and a float32 scale for all. compressed-tensors stores what scales were
multiplied by (``weight_global_scale``), modelopt what they are to be multiplied by (``weight_scale_2``):

    value = code * (scale / weight_global_scale),    value = code * (scale * weight_scale_2)

in float32, rounded to bfloat16 at the end, as both packages do. MXFP4 has a power of two for every 32 values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import bfloat16, float4_e2m1fn_x2, int8, uint8
from ..types import Coded, Part
from ._bits import as_bytes, fp4_values, scale_values
from ._grid import Grid, find_grid
from ._stored import Found, Stored, coded, whole
from .scaled import E8M0, FLOAT8, scale_name

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = (uint8, int8, float4_e2m1fn_x2)


@dataclass(frozen=True)
class PackedFp4:
    """Decoder of codes [n, columns / 2], scales [n, groups] and, unless ``second`` is None, a second scale.

    ``second`` is the grid of the second scale, by which scales are divided or multiplied.
    """

    grid: Grid
    second: Grid | None = None
    divide: bool = False

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        import torch

        codes, scales = parts[:2]
        factors = self.grid.of_rows(scale_values(scales), first, len(out))
        if self.second is not None:
            other = self.second.of_rows(parts[2].float(), first, len(out))
            factors = factors / other if self.divide else factors * other
        values = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        fp4_values(as_bytes(codes), values)
        self.grid.multiply(values, factors)
        out.copy_(values)


def find(stored: Stored, name: str) -> Found | None:
    """Return the tensor whose codes are stored as ``name``, or None where that is no such tensor."""
    codes = stored.tensors[name]
    if codes.dtype not in PAIRS or len(codes.shape) < 2:
        return None
    if name.endswith("_packed"):
        return _compressed_tensors(stored, name)
    scale = scale_name(stored, name)
    if scale is None:
        return None
    second = f"{name}_scale_2"
    if second in stored.tensors:
        return _packed(stored, name, name, scale, second, divide=False)
    if stored.tensors[scale].dtype in (E8M0, uint8):
        return _packed(stored, name, name, scale, None, divide=False)
    return None


def _compressed_tensors(stored: Stored, name: str) -> Found | None:
    target = name.removesuffix("_packed")
    scale = f"{target}_scale"
    if scale not in stored.tensors:
        return None
    second = f"{target}_global_scale"
    if f"{target}_zero_point" in stored.tensors:
        raise stored.wrong(f"{target}_zero_point", "is a zero point of FP4, which is not offered")
    if second in stored.tensors:
        return _packed(stored, target, name, scale, second, divide=True)
    if stored.tensors[scale].dtype in FLOAT8:
        raise stored.wrong(name, f"is NVFP4 without {second}")
    return _packed(stored, target, name, scale, None, divide=False)


def _packed(stored: Stored, target: str, name: str, scale: str, second: str | None, divide: bool) -> Found:
    codes, scales = stored.tensors[name], stored.tensors[scale]
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    grid = find_grid(shape, scales.shape)
    if grid is None or grid.width not in (16, 32):
        raise stored.wrong(scale, f"has shape {list(scales.shape)}, which does not fit {list(shape)} of {target}")
    parts, used, other = [Part(codes), Part(scales, grid.by_row)], [name, scale], None
    if second is not None:
        entry = stored.tensors[second]
        other = find_grid(shape, entry.shape)
        if other is None or other.width != shape[-1]:
            raise stored.wrong(second, f"has shape {list(entry.shape)}, which does not fit {list(shape)} of {target}")
        parts.append(whole(entry) if not other.by_row else Part(entry))
        used.append(second)
    title = "mxfp4" if second is None else "nvfp4"
    scheme = Coded(title, tuple(parts), PackedFp4(grid, other, divide))
    return Found(target, coded(bfloat16, shape, scheme), tuple(used))
