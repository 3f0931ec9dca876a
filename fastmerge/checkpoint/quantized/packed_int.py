"""Integers packed into int32 by compressed-tensors (pack-quantized): 1 to 8 bits, low bits first.

    value = (code - zero point) * scale

Codes are stored with an offset of 2**(bits - 1), zero points too, packed across rows. Scales are for the tensor, a
row, or a group of a row; with ``weight_g_idx`` (actorder: group) that says the group of each column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import int8, int32
from ..types import Coded, Part, TensorEntry
from ._bits import as_bytes, check_groups, unpack
from ._grid import Grid, find_grid
from ._stored import INDEXES, Found, Stored, coded, is_count, whole
from .scaled import value_dtype

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PackedInt:
    """Decoder of codes [n, words], scales [n, groups], then zero points and the group of each column, if there are.

    ``zeros`` says how zero points are stored: "" for none, "packed" across rows, or "plain", one byte each.
    """

    bits: int
    grid: Grid
    zeros: str
    ordered: bool

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        codes, scales, *rest = parts
        rows, columns = out.shape
        values = unpack(as_bytes(codes), self.bits, columns).float()
        scale = self.grid.of_rows(scales.float(), first, rows)
        group = self._order(rest[-1], scale.shape[1]) if self.ordered else None
        zero = self._zero(rest, first, rows)
        if zero is None:
            values.sub_(1 << (self.bits - 1))
        else:
            values.sub_(self.grid.spread(zero, columns) if group is None else zero[:, group])
        if group is None:
            self.grid.multiply(values, scale)
        else:
            values.mul_(scale[:, group])
        out.copy_(values)

    @staticmethod
    def _order(groups: Tensor, count: int) -> Tensor | None:
        """Return the group of each column, or None for groups in the order of the columns."""
        if bool((groups == -1).any()):  # the tool never set them
            return None
        check_groups(groups, count)
        return groups.long()

    def _zero(self, rest: Sequence[Tensor], first: int, count: int) -> Tensor | None:
        """Return the zero points as the codes are stored, with the offset."""
        if self.zeros == "packed":
            return self._unpacked(rest[0], first, count).float()
        if self.zeros == "plain":
            return self.grid.of_rows(rest[0], first, count).float() + (1 << (self.bits - 1))
        return None

    def _unpacked(self, packed: Tensor, first: int, count: int) -> Tensor:
        """Return the zero points of rows [count, groups], packed along the rows of each matrix [.., words, groups]."""
        import torch

        packed = packed.reshape(-1, *packed.shape[-2:])
        zeros = []
        row = first
        while row < first + count:
            matrix, start = divmod(row, self.grid.rows)
            stop = min(self.grid.rows, start + first + count - row)
            # Thirty-two rows begin at a whole word.
            begin = start // 32 * 32
            words = packed[matrix, begin // 32 * self.bits : -(-stop * self.bits // 32)]
            found = unpack(as_bytes(words.T.contiguous()), self.bits, stop - begin)
            zeros.append(found[:, start - begin :].T)
            row += stop - start
        return zeros[0] if len(zeros) == 1 else torch.cat(zeros)


def find(stored: Stored, name: str) -> Found | None:
    """Return the tensor whose codes are stored as ``name``, or None where that is no such tensor."""
    codes = stored.tensors[name]
    if not name.endswith("_packed") or codes.dtype != int32 or len(codes.shape) < 2:
        return None
    target = name.removesuffix("_packed")
    scales = stored.need(f"{target}_scale", name)
    used = [name, f"{target}_scale"]
    shape = _shape(stored, target, codes)
    bits = _bits(stored, name, codes, shape)
    groups = scales.shape[-1] if scales.shape else 1
    order = stored.get(f"{target}_g_idx")
    grid = find_grid(shape, scales.shape)
    if grid is None and order is not None and scales.shape[:-1] == shape[:-1]:
        grid = Grid(shape[-2], 1, 1, shape[-2])
    if grid is None:
        raise stored.wrong(f"{target}_scale", f"has shape {list(scales.shape)}, which does not fit {list(shape)}")
    parts = [Part(codes), Part(scales, grid.by_row)]
    zero = stored.get(f"{target}_zero_point")
    if zero is not None:
        parts.append(_zero_part(stored, f"{target}_zero_point", (*shape[:-1], groups), bits, scales, grid))
        used.append(f"{target}_zero_point")
    if order is not None:
        if order.shape != shape[-1:] or order.dtype not in INDEXES:
            what = f"is {order.dtype} {list(order.shape)}, expected one integer for each of {shape[-1]} columns"
            raise stored.wrong(f"{target}_g_idx", what)
        parts.append(whole(order))
        used.append(f"{target}_g_idx")
    if f"{target}_shape" in stored.tensors:
        used.append(f"{target}_shape")
    stored_zeros = "" if zero is None else "packed" if zero.dtype == int32 else "plain"
    decoder = PackedInt(bits, grid, stored_zeros, order is not None)
    scheme = Coded(f"int{bits}", tuple(parts), decoder)
    return Found(target, coded(value_dtype(scales.dtype), shape, scheme), tuple(used))


def _zero_part(stored: Stored, name: str, shape: tuple[int, ...], bits: int, scales: TensorEntry, grid: Grid) -> Part:
    """Return the zero points as a part: packed across rows, or one byte each where the tensor has one scale."""
    zero = stored.tensors[name]
    if zero.dtype == int8 and zero.shape == scales.shape:
        return Part(zero, grid.by_row)
    wanted = (*shape[:-2], -(-shape[-2] * bits // 32), shape[-1])
    if zero.dtype != int32 or zero.shape != wanted:
        raise stored.wrong(name, f"is {zero.dtype} {list(zero.shape)}, expected int32 {list(wanted)}")
    return whole(zero)


def _shape(stored: Stored, target: str, codes: TensorEntry) -> tuple[int, ...]:
    """Return the shape of the values, which the codes' padding hides."""
    name = f"{target}_shape"
    if name not in stored.tensors:
        bits = stored.setting("num_bits")
        return (*codes.shape[:-1], codes.shape[-1] * 32 // (bits if is_count(bits) else 4))
    shape = stored.integers(name)
    if len(shape) == len(codes.shape) - 1:  # of one expert of a stack
        shape = (*codes.shape[: len(codes.shape) - len(shape)], *shape)
    if len(shape) < 2 or shape[:-1] != codes.shape[:-1] or shape[-1] < 1:
        raise stored.wrong(name, f"says {list(shape)}, its codes are {list(codes.shape)}")
    return shape


def _bits(stored: Stored, name: str, codes: TensorEntry, shape: tuple[int, ...]) -> int:
    fitting = [bits for bits in range(1, 9) if -(-shape[-1] * bits // 32) == codes.shape[-1]]
    stated = stored.of_weights("num_bits")
    chosen = [bits for bits in fitting if bits in stated] or fitting
    if len(chosen) != 1:
        what = f"has {codes.shape[-1]} words for {shape[-1]} values, which is no packing without gaps of 1 to 8 bits"
        raise stored.wrong(name, what if not fitting else f"{what} that the config names")
    return chosen[0]
