"""The parts of a report that come of counting: what each picture shows, in words, and the pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..pages import MOST_PANELS, Section, clustered, known, mean, model_maps, model_panels, pair_maps, percent
from ..pages.svg import Scale, cells, lines
from .family import Family
from .measures import Measure, cosines
from .summary import by_cell, by_layer
from .types import Analysis

__all__ = ["of_counts"]


def of_counts(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Iterator[Section]:
    found = by_cell(analysis, family)
    several = len(family.labels) > 1
    if several:
        yield _agreement(family, summary)
        if found:
            yield _by_layer(analysis, family, summary)
    if not found:
        return
    if several:
        yield _conflicts(family, summary, found)
    largest = max(found, key=lambda cell: max(found[cell].relative_norms))
    yield Section(
        "Norms",
        "How far each model moved each module from the base: the norm of the delta over the norm of the base. "
        f"The largest is {percent(max(found[largest].relative_norms))}, in {largest[0]} of layer {largest[1]}.",
        _maps(family, found, lambda cell: [100 * norm for norm in cell.relative_norms]),
    )
    yield Section(
        "Densities",
        "Which share of the elements each model changed at all. Low values are frozen or sparsely trained parts, or "
        "updates that vanish in the rounding of the weights.",
        _maps(family, found, lambda cell: [100 * share for share in cell.densities], lambda _: Scale(0, 100)),
    )


def _maps(
    family: Family,
    found: dict[tuple[str, int], Measure],
    values: Callable[[Measure], list[float]],
    scale: Callable[[Sequence[float]], Scale] = Scale.rising,
) -> tuple[str, ...]:
    """Draw one map per model, all on one scale; of many models what they have in common."""
    return model_maps(
        {cell: values(item) for cell, item in found.items()}, family.layers, model_panels(family.labels), "%", scale
    )


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


def _by_layer(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Section:
    found = {layer: cosines(measure).tolist() for layer, measure in by_layer(analysis, family).items()}
    labels = family.labels
    pairs = [(i, j) for i in range(len(labels)) for j in range(i)]
    curves = {f"{labels[j]}, {labels[i]}": [(layer, table[i][j]) for layer, table in found.items()] for i, j in pairs}
    text = "The cosine of the deltas in each layer, all its tensors together. Layers where it is high were tuned alike."
    drawn = []
    if len(pairs) > MOST_PANELS:
        of_layer = {layer: known(table[i][j] for i, j in pairs) for layer, table in found.items()}
        curves = {
            "nearest pair": [(layer, max(values)) for layer, values in of_layer.items()],
            "mean of the pairs": [(layer, mean(values)) for layer, values in of_layer.items()],
            "farthest pair": [(layer, min(values)) for layer, values in of_layer.items()],
        }
        text += " The map has the mean cosine of each model with all others."
        order = clustered(summary["cosines"]).leaves
        grid = [[_mean_of_others(table, k) for table in found.values()] for k in order]
        scale = Scale.about(0.0, [value for row in grid for value in row])
        layers, names = [str(layer) for layer in found], [labels[k] for k in order]
        drawn.append(cells(grid, names, layers, scale, "mean cosine with the other models, by layer", ""))
    return Section("Cosine by layer", text, (lines(curves, "", "layer", "cosine", mark=0.0), *drawn))


def _mean_of_others(table: Sequence[Sequence[float]], model: int) -> float:
    return mean(known(value for other, value in enumerate(table[model]) if other != model))


def _conflicts(family: Family, summary: dict[str, Any], found: dict) -> Section:
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
    panels: dict[str, Callable[[Measure], float]] = {
        "pairs of changes that go apart, by count": lambda cell: 100 * cell.opposition,
        "pairs of changes that go apart, by magnitude": lambda cell: 100 * cell.weighted_opposition,
    }
    scale = functools.partial(Scale.about, 50.0, least=5.0)
    return Section("Sign conflicts", text, model_maps(found, family.layers, panels, "%", scale))
