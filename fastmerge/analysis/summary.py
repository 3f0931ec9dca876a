"""The most important numbers of an analysis, as plain values for programs and for the text of the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

from .experts import mean_alignment, mean_overlap
from .family import Family
from .measures import Measure, add_up, cosines, opposed_shares, weighted_opposed_shares
from .types import Analysis

__all__ = ["by_cell", "by_layer", "plain", "summarize", "users_histogram"]

BINS = 24
Key = TypeVar("Key", bound=Hashable)


def by_cell(analysis: Analysis, family: Family) -> dict[tuple[str, int], Measure]:
    """Return the measures by module and layer; the experts of a layer count together."""
    return _by(lambda module, layer: (module, layer), analysis, family)


def by_layer(analysis: Analysis, family: Family) -> dict[int, Measure]:
    """Return the measures of the layers, rising."""
    return dict(sorted(_by(lambda _, layer: layer, analysis, family).items()))


def _by(key: Callable[[str, int], Key], analysis: Analysis, family: Family) -> dict[Key, Measure]:
    """Return the measures of the tensors in layers, added up where the ``key`` of module and layer is the same."""
    groups: dict[Key, list[Measure]] = {}
    for tensor in family.tensors:
        if tensor.layer is not None:
            groups.setdefault(key(tensor.module, tensor.layer), []).append(analysis.measures[tensor.name])
    return {group: add_up(found) for group, found in groups.items()}


def users_histogram(analysis: Analysis, models: int) -> tuple[list[float], list[float]]:
    """Return the edges of the bins from 1 to ``models``, and which share of the deltas lies in each."""
    edges = torch.linspace(1, models, BINS + 1, dtype=torch.float64)
    total = sum(item.energy for item in analysis.directions)
    shares = torch.zeros(BINS, dtype=torch.float64)
    for item in analysis.directions:
        place = torch.bucketize(item.users, edges[1:-1])
        shares.index_add_(0, place, item.weights * (item.energy / total / item.weights.sum()))
    return edges.tolist(), shares.tolist()


def summarize(analysis: Analysis) -> dict[str, Any]:
    """Return the numbers; what does not exist is None."""
    summary: dict[str, Any] = {} if analysis.family is None else _family(analysis, analysis.family)
    if analysis.theorem is not None:
        summary["theorem"] = dataclasses.asdict(analysis.theorem)
    return plain(summary)


def _family(analysis: Analysis, family: Family) -> dict[str, Any]:
    found = add_up(analysis.measures.values())
    per_model = zip(
        family.labels, family.models, found.norms, found.relative_norms, found.densities, strict=True
    )  # fmt: skip
    names = ("label", "model", "norm", "relative_norm", "density")
    cells = by_cell(analysis, family)
    # A norm of few elements would come first by chance.
    matrices = {tensor.module for tensor in family.matrices}
    opposed = [cell for cell in cells if cell[0] in matrices and cells[cell].shared]
    most = max(opposed, key=lambda cell: cells[cell].opposition, default=None)
    summary: dict[str, Any] = {
        "base": family.base,
        "models": [dict(zip(names, values, strict=True)) for values in per_model],
        "cosines": cosines(found).tolist(),
        "opposed_shares": opposed_shares(found).tolist(),
        "conflict": found.conflict,
        "weighted_opposed_shares": weighted_opposed_shares(found).tolist(),
        "opposition": found.opposition,
        "weighted_opposition": found.weighted_opposition,
        "most_opposed": most and {"module": most[0], "layer": most[1], "opposition": cells[most].opposition},
        "stable_ranks": _columns_mean([found.means for found in analysis.ranks.values()]),
        "stable_ranks_of_models": _columns_mean([found.models for found in analysis.ranks.values()]),
        "missed": max((found.missed for found in analysis.ranks.values()), default=0.0),
    }
    if analysis.directions:
        users = [item.users * item.weights * (item.energy / item.weights.sum()) for item in analysis.directions]
        energy = sum(item.energy for item in analysis.directions)
        summary["overlap"] = mean_overlap(analysis.directions).tolist()
        summary["alignment"] = mean_alignment(analysis.directions).tolist()
        summary["users"] = float(sum(part.sum() for part in users)) / energy
        summary["compared"] = [item.name for item in analysis.directions]
    if analysis.choice is not None:
        chosen = [family.labels[model] for model in analysis.choice.models]
        summary["choice"] = {**dataclasses.asdict(analysis.choice), "models": chosen}
    return summary


def _columns_mean(rows: Sequence[list[float]]) -> list[float]:
    return [math.fsum(column) / len(column) for column in zip(*rows, strict=True)]


def plain(value: Any) -> Any:
    """Return ``value`` with None in the place of what JSON lacks."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
