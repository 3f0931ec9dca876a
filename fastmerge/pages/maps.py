"""Maps of models: pairs in clustered order, and layers by modules side by side on one scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .svg import Grid, Scale, cells
from .trees import Branch, tree

__all__ = ["MOST_PANELS", "clustered", "known", "mean", "model_maps", "model_panels", "pair_maps"]

# Beyond this many models their maps are not drawn side by side, nor their pairs as lines; the tables hold them.
MOST_PANELS = 6
# Beyond this many, numbers do not fit into cells.
MOST_WRITTEN = 12

Cell = tuple[str, int]
Found = TypeVar("Found")


def _grid_of(values: Mapping[Cell, float], modules: Sequence[str], layers: int) -> Grid:
    """Return rows of modules and columns of layers; NaN where there is no such cell."""
    return [[values.get((module, layer), math.nan) for layer in range(layers)] for module in modules]


def model_maps(
    found: Mapping[Cell, Found],
    layers: int,
    panels: Mapping[str, Callable[[Found], float]],
    unit: str,
    scale: Callable[[Sequence[float]], Scale] = Scale.rising,
) -> tuple[str, ...]:
    """Draw a map of layers by modules for each panel, all on one scale.

    Args:
        found:  what is known of each module and layer.
        panels: what each map shows of it, by title.
        scale:  of all values.
    """
    modules = sorted({module for module, _ in found})
    grids = {
        title: _grid_of({cell: value(item) for cell, item in found.items()}, modules, layers)
        for title, value in panels.items()
    }
    shared = scale([value for grid in grids.values() for row in grid for value in row])
    columns = [str(layer) for layer in range(layers)]
    return tuple(cells(grid, modules, columns, shared, title, unit) for title, grid in grids.items())


def model_panels(labels: Sequence[str]) -> dict[str, Callable[[Sequence[float]], float]]:
    """Return what the maps of values by model show: each model; of many their mean, the least and the most."""
    if len(labels) > MOST_PANELS:
        return {
            f"mean of {len(labels)} models": lambda values: mean(known(values)),
            "least of them": lambda values: min(known(values)),
            "most of them": lambda values: max(known(values)),
        }
    return {label: lambda values, k=k: values[k] for k, label in enumerate(labels)}  # type: ignore[misc]


def known(values: Iterable[float]) -> list[float]:
    """Return the values without NaN; one NaN where nothing else is there."""
    return [value for value in values if not math.isnan(value)] or [math.nan]


def mean(values: Sequence[float]) -> float:
    """Return the mean of one value or more."""
    return math.fsum(values) / len(values)


def pair_maps(panels: Mapping[str, tuple[Any, float | None]], labels: Sequence[str], cosine: Any) -> tuple[str, ...]:
    """Draw maps of pairs of models, in clustered order and without diagonals, each about its middle."""
    root = clustered(cosine)
    order = root.leaves
    names = [labels[k] for k in order]
    drawn = []
    for title, (table, middle) in panels.items():
        grid = [[math.nan if i == j else _number(table[i][j]) for j in order] for i in order]
        values = [value for row in grid for value in row]
        scale = Scale.rising(values) if middle is None else Scale.about(middle, values)
        drawn.append(cells(grid, names, names, scale, title, "", written=len(names) <= MOST_WRITTEN))
    if len(labels) > 2:
        drawn.insert(1, tree(root, labels, "which models stand near each other", "mean cosine of a group"))
    return tuple(drawn)


def clustered(table: Sequence[Sequence[float | None]]) -> Branch:
    """Return models as a tree: again and again the two groups with the greatest mean cosine are joined."""
    groups = [Branch((k,)) for k in range(len(table))]

    def nearness(one: Branch, other: Branch) -> float:
        values = [table[i][j] or 0.0 for i in one.leaves for j in other.leaves]
        return mean(values)

    while len(groups) > 1:
        pairs = ((i, j) for j in range(len(groups)) for i in range(j))
        a, b = max(pairs, key=lambda pair: nearness(groups[pair[0]], groups[pair[1]]))
        other = groups.pop(b)
        joined = nearness(groups[a], other)
        groups[a] = Branch((*groups[a].leaves, *other.leaves), joined, (groups[a], other))
    return groups[0]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
