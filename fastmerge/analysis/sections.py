"""The parts of a report that come of counting: what each picture shows, in words, and the pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .family import Family
from .measures import Measure, cosines
from .summary import by_cell, by_layer
from .svg import Grid, Scale, cells, lines
from .types import Analysis

__all__ = ["Section", "clustered", "grid_of", "of_counts", "pair_maps", "percent"]

# Beyond this many models their maps are not drawn side by side, nor their pairs as lines; the tables hold them.
MOST_PANELS = 6
# Beyond this many, numbers do not fit into cells.
MOST_WRITTEN = 12


@dataclass(frozen=True)
class Section:
    """A part of the report: its title, what it shows, in words, and its pictures, as SVG."""

    title: str
    text: str
    pictures: tuple[str, ...]


def of_counts(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Iterator[Section]:
    found = by_cell(analysis, family)
    modules = sorted({module for module, _ in found})
    several = len(family.labels) > 1
    if several:
        yield _agreement(family, summary)
        if modules:
            yield _by_layer(analysis, family)
    if not modules:
        return
    if several:
        yield _conflicts(family, summary, found, modules)
    largest = max(found, key=lambda cell: max(found[cell].relative_norms))
    yield Section(
        "Norms",
        "How far each model moved each module from the base: the norm of the delta over the norm of the base. "
        f"The largest is {percent(max(found[largest].relative_norms))}, in {largest[0]} of layer {largest[1]}.",
        _maps(family, found, modules, lambda cell: [100 * norm for norm in cell.relative_norms]),
    )
    yield Section(
        "Densities",
        "Which share of the elements each model changed at all. Low values are frozen or sparsely trained parts, or "
        "updates that vanish in the rounding of the weights.",
        _maps(family, found, modules, lambda cell: [100 * share for share in cell.densities], Scale(0, 100)),
    )


def _maps(
    family: Family,
    found: dict[tuple[str, int], Measure],
    modules: Sequence[str],
    values: Callable[[Measure], list[float]],
    scale: Scale | None = None,
) -> tuple[str, ...]:
    """Draw one map per model, all on one scale; of many models, their mean and their largest."""
    of_cell = {cell: values(measure) for cell, measure in found.items()}
    panels: dict[str, Callable[[list[float]], float]] = {
        label: lambda of_models, k=k: of_models[k]  # type: ignore[misc]
        for k, label in enumerate(family.labels)
    }
    if len(panels) > MOST_PANELS:
        panels = {f"mean of {len(panels)} models": lambda of_models: math.fsum(of_models) / len(of_models), "most": max}
    grids = {
        label: grid_of({cell: pick(value) for cell, value in of_cell.items()}, modules, family.layers)
        for label, pick in panels.items()
    }
    scale = scale or Scale.rising([value for grid in grids.values() for row in grid for value in row])
    layers = [str(layer) for layer in range(family.layers)]
    return tuple(cells(grid, modules, layers, scale, label, "%") for label, grid in grids.items())


def _agreement(family: Family, summary: dict[str, Any]) -> Section:
    panels = {
        "cosine of the deltas": (summary["cosines"], 0.0),
        "opposed signs, of elements changed by both": (summary["opposed_shares"], 0.5),
        "the same, weighted by magnitude": (summary["weighted_opposed_shares"], 0.5),
    }
    text = (
        "Each pair of models over all tensors. A cosine of 1 is the same direction, 0 is unrelated. Opposed signs are "
        "changes of one element that go apart, 0.5 is chance; weighted by |d_i d_j|, what is large counts more. Models "
        "are ordered so that near ones stand side by side."
    )
    return Section("Agreement of the models", text, pair_maps(panels, family.labels, summary["cosines"]))


def pair_maps(panels: Mapping[str, tuple[Any, float | None]], labels: Sequence[str], cosine: Any) -> tuple[str, ...]:
    """Draw maps of pairs of models, in clustered order and without diagonals, each about its middle."""
    order = clustered(cosine)
    names = [labels[k] for k in order]
    drawn = []
    for title, (table, middle) in panels.items():
        grid = [[math.nan if i == j else _number(table[i][j]) for j in order] for i in order]
        values = [value for row in grid for value in row]
        scale = Scale.rising(values) if middle is None else Scale.about(middle, values)
        drawn.append(cells(grid, names, names, scale, title, "", written=len(names) <= MOST_WRITTEN))
    return tuple(drawn)


def clustered(table: Sequence[Sequence[float | None]]) -> list[int]:
    """Return the models in an order that has near ones side by side: groups joined by their mean cosine."""
    groups = [[k] for k in range(len(table))]

    def nearness(pair: tuple[int, int]) -> float:
        values = [table[i][j] or 0.0 for i in groups[pair[0]] for j in groups[pair[1]]]
        return math.fsum(values) / len(values)

    while len(groups) > 1:
        a, b = max(((i, j) for j in range(len(groups)) for i in range(j)), key=nearness)
        groups[a] += groups.pop(b)
    return groups[0] if groups else []


def _by_layer(analysis: Analysis, family: Family) -> Section:
    found = {layer: cosines(measure).tolist() for layer, measure in by_layer(analysis, family).items()}
    labels = family.labels
    pairs = [(i, j) for i in range(len(labels)) for j in range(i)]
    curves = {f"{labels[j]}, {labels[i]}": [(layer, table[i][j]) for layer, table in found.items()] for i, j in pairs}
    if len(pairs) > MOST_PANELS:
        of_layer = {
            layer: [table[i][j] for i, j in pairs if math.isfinite(table[i][j])] or [math.nan]
            for layer, table in found.items()
        }
        curves = {
            "nearest pair": [(layer, max(values)) for layer, values in of_layer.items()],
            "mean of the pairs": [(layer, math.fsum(values) / len(values)) for layer, values in of_layer.items()],
            "farthest pair": [(layer, min(values)) for layer, values in of_layer.items()],
        }
    text = "The cosine of the deltas in each layer, all its tensors together. Layers where it is high were tuned alike."
    return Section("Cosine by layer", text, (lines(curves, "", "layer", "cosine", mark=0.0),))


def _conflicts(family: Family, summary: dict[str, Any], found: dict, modules: list[str]) -> Section:
    count, most = len(family.labels), summary["most_opposed"]
    if summary["opposition"] is None:
        return Section("Sign conflicts", "No element was changed by two models.", ())
    text = (
        "Where two models changed the same element, the share in which one raises it and the other lowers it: "
        f"{percent(summary['opposition'])} over all tensors and pairs, {percent(summary['weighted_opposition'])} when "
        "pairs are weighted by magnitude; chance is 50 %."
    )
    if most:
        text += f" Among the matrices it is largest in {most['module']} of layer {most['layer']}: "
        text += f"{percent(most['opposition'])}."
    text += (
        f" Changes of both signs meet in {percent(summary['conflict'])} of the elements that at least two models "
        f"changed; independent signs of {count} models would give {percent(1 - 0.5 ** (count - 1))}."
    )
    layers = [str(layer) for layer in range(family.layers)]
    drawn = []
    for title, value in (
        ("by count", lambda cell: 100 * cell.opposition),
        ("by magnitude", lambda cell: 100 * cell.weighted_opposition),
    ):
        grid = grid_of({cell: value(measure) for cell, measure in found.items()}, modules, family.layers)
        scale = Scale.about(50.0, [value for row in grid for value in row], least=5.0)
        drawn.append(cells(grid, modules, layers, scale, f"pairs of changes that go apart, {title}", "%"))
    return Section("Sign conflicts", text, tuple(drawn))


def grid_of(values: dict[tuple[str, int], float], modules: Sequence[str], layers: int) -> Grid:
    """Return rows of modules and columns of layers; NaN where there is no such cell."""
    return [[values.get((module, layer), math.nan) for layer in range(layers)] for module in modules]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def percent(share: float | None) -> str:
    return "" if share is None or math.isnan(share) else f"{100 * share:.3g} %"
