"""What is noticed of the tensors that an output is made of, while they are read: checksums, and what is not finite."""

from __future__ import annotations

from ..checkpoint import TensorEntry
from ..dtypes import DType
from ..plan.types import InputTensor, OutputTensor
from .checksums import BLOCK, Checksum
from .finite import Suspect, all_finite
from .parts import Part

# Rows that are read for themselves are summed one by one, which of shorter ones would take too long.
LEAST_ROW_BYTES = 32


class Watch:
    """Looks at the bytes of the stored tensors of one output. Several threads may show it parts, in any order.

    Attributes:
        finite: insist on finite numbers: where the output may hide that an input has others.
    """

    def __init__(self, output: OutputTensor, finite: bool):
        self._output, self.finite = output, finite
        # By identity: two inputs may be the same stored tensor, one of them read by rows and the other by cells.
        self._sums: dict[int, Checksum] = {}

    def look(self, entry: InputTensor | TensorEntry, dtype: DType, start: int, data: memoryview, row: int = 0) -> None:
        """Take ``data``, the elements from ``start`` on of a stored tensor: whole rows, or whole cells where row is 0.

        ``entry`` is one of ``InputTensor.summed`` itself. Suspect where a number is not finite that has to be.
        """
        if self.finite and not all_finite(data, dtype):
            raise Suspect([self._output])
        if row == 0 or row * dtype.itemsize >= LEAST_ROW_BYTES:
            self._sum(entry, dtype, row).add(start * dtype.itemsize, data)

    def note(self, entry: InputTensor, start: int, digests: bytes) -> None:
        """Take the digests of cells from the element ``start`` on, in which all is finite that has to be."""
        self._sum(entry, entry.dtype, 0).put(start * entry.dtype.itemsize, digests)

    def _sum(self, entry: InputTensor | TensorEntry, dtype: DType, row: int) -> Checksum:
        if id(entry) not in self._sums:
            numel, part = entry.nbytes // dtype.itemsize, isinstance(self._output, Part)
            self._sums.setdefault(id(entry), Checksum(numel, dtype.itemsize, row or BLOCK, part))
        return self._sums[id(entry)]

    def checksums(self) -> list[str]:
        """Return a checksum for each stored tensor, in the order of ``InputTensor.summed``; "" where there is none."""
        parts = [part for tensor in self._output.inputs.every for part in tensor.summed]
        sums = (self._sums.get(id(part)) for part in parts)
        return [found.hex() if found is not None else "" for found in sums]
