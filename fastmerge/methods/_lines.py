"""LiNeS: merged deltas scaled by the depth of their layer, the block ``lines:`` of a recipe."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import kernels
from ..kernels import keep_all
from ..steps.apply import DeltaMerge, delta_blocks
from ..steps.census import Census
from ..steps.method import Group, Parameter, Solve
from ..steps.source import Chunk
from ..steps.survey import TableSurvey, grid_table

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
        table = grid_table(chunk.tensors[0], 4)
        row = 0
        for block in delta_blocks(chunk, [1.0] * len(chunk.tensors)):
            if not self.step.at_once:
                part = Chunk(torch.zeros_like(block.merged), tuple(block.deltas), chunk.offset + block.span.start)
                self.step(block.merged, part)
            plain = block.deltas[0]
            for delta in block.deltas[1:]:
                plain += delta
            rows = slice(row, row + len(grid_table(plain, 4)))
            kernels.norm_partials(table[rows], [plain, block.merged], None, [keep_all()] * 2)
            row = rows.stop
        if self.step.at_once:
            merged = torch.empty(chunk.tensors[0].shape, dtype=torch.float32, device=table.device)
            self.step(merged, chunk)
            partials = table[:, 2:].contiguous()
            kernels.norm_partials(partials, [merged], chunk.base, [keep_all()])
            table[:, 2:] = partials
        return table

    def answer(self, table: Tensor) -> list[tuple[float, float]]:
        plain, _, merged, _ = kernels.total(table)
        return [(plain, merged)]
