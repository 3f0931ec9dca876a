"""Elements: surveys of what a function makes of the deltas of each element, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import kernels
from ..kernels import GRID, keep_all
from .apply import SparseMerge
from .arrays import as_strip, copy, join, quiet
from .blocks import Selection, delta_blocks
from .source import Chunk, Resident, Source
from .survey import Survey, TableSurvey, grid_table

if TYPE_CHECKING:
    from torch import Tensor

# Makes float32 vectors of a block from the deltas of the models and what a step makes of them (see ``apply.Change``).
Map = Callable[[Sequence["Tensor"], "Tensor"], Sequence["Tensor"]]

# Elements whose images are kept in memory at once: those of a larger tensor are made again for every reading.
WHOLE = 1 << 20


@dataclass(frozen=True)
class ElementSums(TableSurvey):
    """The sums of the magnitudes of ``count`` functions of the deltas, or their squares (``power`` 2), over a tensor.

    One read. Relative error bound: ``72 * 2**-53`` of what the functions return (see ``kernels.norms``). As in
    ``ElementwiseMerge``, delta k is ``weights[k] * (theta_k - base)``, ``step`` makes a merged one of them, and
    ``selection`` says which elements take part.
    """

    weights: Sequence[float]
    change: Map
    count: int
    step: SparseMerge | None = None
    selection: Selection | None = None
    power: int = 1

    def partials(self, chunk: Chunk) -> Tensor:
        table = grid_table(chunk.tensors[0], 2 * self.count)
        row = 0
        with quiet():
            for block in delta_blocks(chunk, self.weights, self.step, self.selection):
                images = [as_strip(image) for image in self.change(block.deltas, block.merged)]
                rows = slice(row, row + -(-len(images[0]) // GRID))
                kernels.norm_partials(table[rows], images, None, [keep_all()] * self.count, power=self.power)
                row = rows.stop
        return table

    def answer(self, table: np.ndarray) -> list[float]:
        return kernels.total(table)[::2]


@dataclass(frozen=True)
class OfElements(Survey):
    """Another survey, of functions of the deltas in place of the deltas.

    A large tensor's functions are computed again for every reading of that survey.
    """

    weights: Sequence[float]
    change: Map
    survey: Survey

    def run(self, source: Source) -> Any:
        if source.whole and source.numel <= WHOLE:
            (chunk,) = source.chunks()
            return self.survey.run(Resident(None, self.images(chunk)))
        return self.survey.run(_Images(self, source))

    def images(self, chunk: Chunk) -> tuple[Tensor, ...]:
        """Return what the functions make of a chunk, flat."""
        with quiet():
            blocks = [
                [copy(image) for image in self.change(block.deltas, block.merged)]
                for block in delta_blocks(chunk, self.weights)
            ]
        return tuple(as_strip(join(vectors)) for vectors in zip(*blocks, strict=True))


class _Images:
    """The functions of the deltas of a source, in parts, as a source."""

    whole = False

    def __init__(self, survey: OfElements, source: Source):
        self._survey, self._source = survey, source
        self.numel = source.numel

    def chunks(self) -> Iterator[Chunk]:
        for chunk in self._source.chunks():
            pieces = chunk.map(lambda tensor: tensor.view(-1).split(WHOLE))
            for i in range(len(pieces.tensors[0])):
                part = Chunk.of(pieces.like([each[i] for each in pieces.every]), chunk.offset + i * WHOLE)
                yield Chunk(None, self._survey.images(part), part.offset)

    def read(self, start: int, stop: int) -> Chunk | None:
        chunk = self._source.read(start, stop)
        return None if chunk is None else Chunk(None, self._survey.images(chunk), start)

    def reduce(self, state: np.ndarray) -> np.ndarray:
        return self._source.reduce(state)
