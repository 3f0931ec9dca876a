"""MXFP4 of gpt-oss: the experts' weights, stacked, with groups along the dimension that comes second in the model.

``X_blocks`` [experts, out, groups, 16] and ``X_scales`` [experts, out, groups] make ``X`` [experts, 32 groups, out],
bfloat16, as transformers' ``convert_moe_packed_tensors`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import bfloat16, uint8
from ..types import Coded
from ._bits import fp4_values, powers_of_two
from ._stored import Found, Stored, coded, whole

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32


@dataclass(frozen=True)
class Transposed:
    """Decoder of blocks [experts, out, groups, 16] and scales [experts, out, groups]."""

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        import torch

        blocks, scales = parts
        inner = blocks.shape[2] * GROUP
        row = first
        while row < first + len(out):
            expert, start = divmod(row, inner)
            stop = min(inner, start + first + len(out) - row)
            begin, end = start // GROUP, -(-stop // GROUP)
            codes = blocks[expert, :, begin:end].contiguous()
            values = torch.empty(len(codes), (end - begin) * GROUP, dtype=torch.float32, device=out.device)
            fp4_values(codes.flatten(1), values)
            values.view(len(codes), end - begin, GROUP).mul_(powers_of_two(scales[expert, :, begin:end]).unsqueeze(-1))
            offset = begin * GROUP
            out[row - first : row - first + stop - start].copy_(values[:, start - offset : stop - offset].T)
            row += stop - start


def find(stored: Stored, name: str) -> Found | None:
    """Return the tensor whose codes are stored as ``name``, or None where that is no such tensor."""
    if not name.endswith("_blocks"):
        return None
    target = name.removesuffix("_blocks")
    blocks, scales = stored.tensors[name], stored.get(f"{target}_scales")
    if scales is None:
        return None
    if blocks.dtype != uint8 or len(blocks.shape) != 4 or blocks.shape[-1] != GROUP // 2:
        raise stored.wrong(name, f"is {blocks.dtype} {list(blocks.shape)}, expected uint8 [experts, out, groups, 16]")
    if scales.shape != blocks.shape[:-1] or scales.dtype.itemsize != 1:
        raise stored.wrong(
            f"{target}_scales", f"is {scales.dtype} {list(scales.shape)}, its blocks {list(blocks.shape)}"
        )
    experts, outer, groups, _ = blocks.shape
    scheme = Coded("mxfp4", (whole(blocks), whole(scales)), Transposed(), step=GROUP, stacked=True)
    return Found(target, coded(bfloat16, (experts, groups * GROUP, outer), scheme), (name, f"{target}_scales"))
