"""Which scale belongs to which value: a scale for a tensor, a row, a column, a group, or a block of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The value [r, c] of a matrix has the scale [r // height, c // width]; stacked matrices have stacked scales.

    Attributes:
        rows:   of one matrix.
        height: rows of a block.
        width:  columns of a block.
        lines:  rows of scales of one matrix.
        shared: all stacked matrices have the scales of the first.
    """

    rows: int
    height: int
    width: int
    lines: int
    shared: bool = False

    @property
    def by_row(self) -> bool:
        """True when every row of values has its own row of scales."""
        return self.height == 1 and not self.shared

    def of_rows(self, scales: Tensor, first: int, count: int) -> Tensor:
        """Return the scales of ``count`` rows from ``first`` on, [count, blocks] or [1, blocks]."""
        import torch

        if self.by_row:
            return scales.reshape(count, -1)
        table = scales.reshape(-1, scales.shape[-1]) if scales.dim() > 1 else scales.reshape(-1, 1)
        if len(table) == 1:
            return table
        row = torch.arange(first, first + count, device=scales.device)
        line = (row % self.rows) // self.height
        return table[line if self.shared else line + (row // self.rows) * self.lines]

    def spread(self, scales: Tensor, columns: int) -> Tensor:
        """Return scales [n, blocks] so that they broadcast against values [n, columns]."""
        if scales.shape[1] == 1:
            return scales
        return scales.repeat_interleave(self.width, 1)[:, :columns] if self.width > 1 else scales

    def multiply(self, values: Tensor, scales: Tensor) -> None:
        """Multiply values [n, columns] in place by their scales [n, blocks]."""
        blocks = scales.shape[1]
        if blocks > 1 and blocks * self.width == values.shape[1]:
            values.view(len(values), blocks, self.width).mul_(scales.unsqueeze(-1))
        else:
            values.mul_(self.spread(scales, values.shape[1]))


def find_grid(shape: Sequence[int], scales: Sequence[int], blocks: Sequence[int | None] = (None, None)) -> Grid | None:
    """Return how scales of shape ``scales`` belong to values of shape ``shape``, or None where they cannot.

    ``blocks`` are height and width where a config states them; the last block of a row or column may be cut.
    """
    if len(shape) < 2:
        shape = (1, *shape) if shape else (1, 1)
    if 0 in (*shape, *scales):
        return None
    rows, columns = shape[-2:]
    lead = list(shape[:-2])
    count = _product(scales)
    if count == 1:
        return Grid(rows, rows, columns, 1, shared=True)
    wanted = list(scales)
    if len(wanted) == 1:
        wanted = [wanted[0], 1] if not lead else [wanted[0], 1, 1]
    elif lead and len(wanted) == 2:
        wanted = [*wanted, 1] if wanted[0] == lead[0] else [1, *wanted]
    if len(wanted) != len(shape) or wanted[:-2] not in (lead, [1] * len(lead)):
        return None
    height, width = (_block(n, s, b) for n, s, b in zip((rows, columns), wanted[-2:], blocks, strict=True))
    if height is None or width is None:
        return None
    return Grid(rows, height, width, wanted[-2], shared=bool(lead) and wanted[:-2] != lead)


def _block(extent: int, scales: int, stated: int | None) -> int | None:
    if scales in (1, extent):
        return extent // scales
    if stated and -(-extent // stated) == scales:
        return stated
    return extent // scales if scales and extent % scales == 0 else None


def _product(shape: Sequence[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
