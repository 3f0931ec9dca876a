"""What only a device knows, as operations take it in place of numbers: see ``answers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class FoundBoundary(NamedTuple):
    """A boundary on the device: row ``row`` of ``rows`` [R, 3] int64 is threshold, break index, 0 where found."""

    rows: Tensor
    row: int

    @property
    def address(self) -> int:
        return self.rows.data_ptr() + 24 * self.row


class FoundFactors(NamedTuple):
    """Factors on the device: of ``values`` float32 those from ``start`` on, one per weight, then 0 where found."""

    values: Tensor
    start: int
    weights: Sequence[float]

    @property
    def address(self) -> int:
        return self.values.data_ptr() + 4 * self.start
