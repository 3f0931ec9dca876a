"""LiNeS: merged deltas scaled by the depth of their layer, the block ``lines:`` of a recipe."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import kernels
from ..dtypes import float32
from ..kernels import empty, keep_all, zeros
from ..steps.apply import DeltaMerge
from ..steps.arrays import as_strip
from ..steps.blocks import delta_blocks
from ..steps.census import Census
from ..steps.method import Group, Parameter, Solve
from ..steps.source import Chunk
from ..steps.survey import TableSurvey, grid_table

if TYPE_CHECKING:
    from torch import Tensor

LINES_PARAMETERS = (
    Parameter("alpha", float, 1.0, doc="factor of the first layer, and of tensors outside the layers"),
    Parameter("beta", float, doc="what the last layer's factor has more"),
    Parameter("auto", bool, False, doc="multiply alpha by the paper's: what merging did to the L1 norm of the model"),
)


def scaled_by_depth(group: Group, step: DeltaMerge) -> Solve:
    """Return ``step`` with its merged delta scaled; a census where alpha is automatic."""
    if group.layout is None:
        raise ValueError(f"{group.name}: lines needs to know the layers of the model; merge whole models")
    alpha, layout = group["lines.alpha"], group.layout
    if group["lines.auto"]:
        norms = yield Census("lines", MergeNorms(step), operator.add, group)
        plain, merged = (math.fsum(column) for column in zip(*norms, strict=True))
        alpha *= plain / merged / group.models if merged else 1.0
    depth = layout.layer / (layout.layers - 1) if layout.layer is not None and layout.layers > 1 else 0.0
    return replace(step, scale=step.scale * (alpha + group["lines.beta"] * depth))  # type: ignore[type-var]


@dataclass(frozen=True)
class MergeNorms(TableSurvey):
    """The L1 norms of the sum of the deltas and of the merged delta that ``step`` makes, as a list of one pair."""

    step: DeltaMerge

    def partials(self, chunk: Chunk) -> Tensor:
        with np.errstate(all="ignore"):  # infinity and NaN are results like others
            return self._partials(chunk)

    def _partials(self, chunk: Chunk) -> Tensor:
        like = chunk.tensors[0]
        table = grid_table(like, 4)
        row = 0
        for block in delta_blocks(chunk, [1.0] * len(chunk.tensors)):
            merged, deltas = as_strip(block.merged), [as_strip(delta) for delta in block.deltas]
            if not self.step.at_once:
                base = zeros(merged, float32, merged.numel())
                self.step(merged, Chunk(base, tuple(deltas), chunk.offset + block.span.start))
            plain = block.deltas[0]
            for delta in block.deltas[1:]:
                plain += delta
            rows = slice(row, row + len(grid_table(merged, 4)))
            kernels.norm_partials(table[rows], [deltas[0], merged], None, [keep_all()] * 2)
            row = rows.stop
        if self.step.at_once:
            merged = empty(like, float32, *like.shape)
            self.step(merged, chunk)
            partials = grid_table(like, 2)
            kernels.norm_partials(partials, [merged], chunk.base, [keep_all()])
            table[:, 2:] = partials
        return table

    def answer(self, table: np.ndarray) -> list[tuple[float, float]]:
        plain, _, merged, _ = kernels.total(table)
        return [(plain, merged)]
