"""bitsandbytes: NF4 and FP4 in blocks of the flattened tensor, and int8 with a scale for each row.

    4 bits:  value = table[code] * absmax[index // blocksize],   8 bits:  value = code * SCB[row] / 127

in float32; 4-bit values are rounded to the dtype that their ``quant_state`` names, 8-bit ones stay float32. Double
quantization stores absmax in 8 bits of its own: ``map[code] * nested_absmax[block // nested_blocksize] + offset``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import bfloat16, float16, float32, int8, uint8
from ..types import Coded, Part, TensorEntry
from ._bits import as_bytes
from ._stored import Found, Stored, coded, is_count, whole

if TYPE_CHECKING:
    from torch import Tensor

TABLES = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": (
        0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
        -0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
    ),
}  # fmt: skip

ROW_SCALE = 7.874015718698502e-3
"""1 / 127, as bitsandbytes writes it."""

_DTYPES = {kind.name: kind for kind in (bfloat16, float16, float32)}


@dataclass(frozen=True)
class FourBits:
    """Decoder of codes, two per byte and the high half first, with absmax and, where ``nested``, its own scales."""

    table: str
    block: int
    packed_rows: bool
    nested: int = 0
    offset: float = 0.0

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        import torch

        codes, absmax, *nested = parts
        rows, columns = out.shape
        start, count = first * columns, rows * columns
        packed = as_bytes(codes).flatten()
        if not self.packed_rows:
            packed = packed[start // 2 : -(-(start + count) // 2)]
        table = torch.tensor(TABLES[self.table], device=out.device)
        pairs = torch.stack([table[(packed >> 4).int()], table[(packed & 15).int()]], dim=-1).flatten()
        skipped = 0 if self.packed_rows else start % 2
        begin, end = start // self.block, -(-(start + count) // self.block)
        scales = self._scales(absmax.flatten(), nested, begin, end).repeat_interleave(self.block)
        at = start - begin * self.block
        out.copy_((pairs[skipped : skipped + count] * scales[at : at + count]).view(rows, columns))

    def _scales(self, absmax: Tensor, nested: Sequence[Tensor], begin: int, end: int) -> Tensor:
        import torch

        if not self.nested:
            return absmax[begin:end].float()
        second, table = nested
        block = torch.arange(begin, end, device=absmax.device) // self.nested
        return table.flatten()[absmax[begin:end].int()] * second.flatten()[block] + self.offset


@dataclass(frozen=True)
class RowScaled:
    """Decoder of int8 codes [n, columns] with scales [n, 1]."""

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        codes, scales = parts
        out.copy_(codes.float().mul_(scales.float()).mul_(ROW_SCALE))


def find(stored: Stored, name: str) -> Found | None:
    """Return the tensor whose codes are stored as ``name``, or None where that is no such tensor."""
    if f"{name}.absmax" in stored.tensors:
        return _four_bits(stored, name)
    row_scales = f"{name.removesuffix('weight')}SCB"
    if name.endswith(".weight") and row_scales in stored.tensors:
        return _eight_bits(stored, name, row_scales)
    return None


def _four_bits(stored: Stored, name: str) -> Found:
    kind, state = _state(stored, name)
    said, dtype = state.get("shape"), _DTYPES.get(str(state.get("dtype")))
    shape = tuple(said) if isinstance(said, list) and all(map(is_count, said)) else ()
    block = state.get("blocksize")
    codes, absmax = stored.tensors[name], stored.tensors[f"{name}.absmax"]
    if not shape or not is_count(block) or dtype is None:
        raise stored.wrong(f"{name}.quant_state.bitsandbytes__{kind}", f"says {state!r:.200}")
    numel = math.prod(shape)
    if codes.nbytes != -(-numel // 2) or math.prod(absmax.shape) != -(-numel // block):
        what = f"has {codes.nbytes} bytes of codes and {math.prod(absmax.shape)} scales for shape {list(shape)}"
        raise stored.wrong(name, what)
    by_row = shape[-1] % 2 == 0 and len(shape) > 1
    stored_rows = codes._replace(dtype=uint8, shape=(*shape[:-1], shape[-1] // 2)) if by_row else codes
    parts = [Part(stored_rows) if by_row else whole(codes), whole(absmax)]
    used = [name, f"{name}.absmax", f"{name}.quant_state.bitsandbytes__{kind}"]
    nested, offset = 0, 0.0
    if f"{name}.nested_absmax" in stored.tensors:
        nested, offset = _nested(stored, name, state, absmax)
        parts += [whole(stored.need(f"{name}.{part}", name)) for part in ("nested_absmax", "nested_quant_map")]
        used += [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
    if f"{name}.quant_map" in stored.tensors:
        used.append(f"{name}.quant_map")  # the table, which the library has built in
    scheme = Coded(f"bitsandbytes {kind}", tuple(parts), FourBits(kind, block, by_row, nested, offset))
    return Found(name, coded(dtype, shape, scheme), tuple(used))


def _state(stored: Stored, name: str) -> tuple[str, dict]:
    for kind in TABLES:
        key = f"{name}.quant_state.bitsandbytes__{kind}"
        if key in stored.tensors:
            return kind, stored.json(key)
    raise stored.wrong(name, "has no quant_state of nf4 or fp4")


def _nested(stored: Stored, name: str, state: dict, absmax: TensorEntry) -> tuple[int, float]:
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    second, table = (stored.need(f"{name}.{part}", name) for part in ("nested_absmax", "nested_quant_map"))
    count = math.prod(absmax.shape)
    # The offset is a value of float32.
    if not is_count(block) or not isinstance(offset, int | float) or not abs(offset) < 2.0**128:
        raise stored.wrong(name, f"has a quant_state without nested_blocksize and nested_offset: {state!r:.200}")
    if absmax.dtype != uint8 or math.prod(second.shape) != -(-count // block) or math.prod(table.shape) != 256:
        raise stored.wrong(f"{name}.nested_absmax", f"has shape {list(second.shape)} for {count} scales")
    return block, float(offset)


def _eight_bits(stored: Stored, name: str, row_scales: str) -> Found:
    codes, scales = stored.tensors[name], stored.tensors[row_scales]
    if codes.dtype != int8 or len(codes.shape) != 2 or scales.shape != codes.shape[:1]:
        raise stored.wrong(name, f"is {codes.dtype} {list(codes.shape)}, its scales {list(scales.shape)}")
    used = [name, row_scales]
    layout = f"{name}_format"
    if layout in stored.tensors:
        used.append(layout)
        if any(stored.described(layout)):
            raise stored.wrong(layout, "is a layout of an old GPU, not row by row: save the model again")
    scheme = Coded("bitsandbytes int8", (Part(codes), Part(scales)), RowScaled())
    return Found(name, coded(float32, codes.shape, scheme), tuple(used))
