"""The parts of a report that come of singular values: what each picture shows, in words, and the pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..pages import MOST_PANELS, Section, mean, model_maps, pair_maps, percent
from ..pages.svg import lines
from .family import Family
from .matrices import Ranks
from .summary import users_histogram
from .theorem import Collapse
from .types import Analysis

__all__ = ["of_directions", "of_spectra", "of_theorem"]


def of_spectra(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Iterator[Section]:
    if analysis.ranks:
        yield _ranks(analysis, family, summary)
        if len(family.models) > 1:
            yield _collapse(analysis, family, summary)
    if analysis.spectra:
        yield _values(analysis, family)


def _ranks(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Section:
    count, of_models = len(family.models), summary["stable_ranks_of_models"]
    panels: dict[str, Callable[[list[Ranks]], float]] = {
        label: lambda found, k=k: mean([item.models[k] for item in found])  # type: ignore[misc]
        for k, label in enumerate(family.labels)
    }
    if count > MOST_PANELS:
        panels = {"a model, on average": lambda found: mean([mean(item.models) for item in found])}
    if count > 1:
        panels[f"mean of {count} models"] = lambda found: mean([item.means[-1] for item in found])
    by_cell: dict[tuple[str, int], list[Ranks]] = {}
    for tensor in family.matrices:
        assert tensor.layer is not None
        by_cell.setdefault((tensor.module, tensor.layer), []).append(analysis.ranks[tensor.name])
    low, high = (f"{pick(of_models):.3g}" for pick in (min, max))
    text = (
        "The stable rank of a matrix, its squared Frobenius norm over its squared largest singular value, says in how "
        f"many directions it lies. Averaged over the matrices it is {low if low == high else f'{low} to {high}'} for "
        f"the {'models' if count > 1 else 'model'}"
    )
    text += f" and {summary['stable_ranks'][-1]:.3g} for the mean of all." if count > 1 else "."
    if summary["missed"]:
        text += (
            " The largest singular values were searched for: whatever the spectrum, a stable rank given here is too "
            f"large by {percent(summary['missed'])} at most, but for one matrix in a thousand, and never too small; "
            "mostly it is right to three digits (--exact decomposes in full)."
        )
    return Section("Stable rank", text, model_maps(by_cell, family.layers, panels, ""))


def _collapse(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Section:
    means = summary["stable_ranks"]
    by_module: dict[str, list[list[float]]] = {}
    for tensor in family.matrices:
        by_module.setdefault(tensor.module, []).append(analysis.ranks[tensor.name].means)
    curves = {
        module: [(k, mean(column)) for k, column in enumerate(zip(*rows, strict=True), 1)]
        for module, rows in sorted(by_module.items())
    }
    change = "falls" if means[-1] < means[0] else "does not fall"
    text = f"Models are added in the order given. The stable rank of their mean {change}: "
    text += ", ".join(f"{value:.3g}" for value in means)
    text += (
        ", averaged over the matrices. It falls where models share few strong directions and cancel in the others, and "
        "rises where each one adds directions of its own."
    )
    picture = lines(curves, "", "models in the mean, in the order given", "stable rank", zero=True)
    return Section("Collapse as models are added", text, (picture,))


def _values(analysis: Analysis, family: Family) -> Section:
    drawn, whole = [], all(len(item.boosted) for item in analysis.spectra)
    for item in analysis.spectra:
        named = {**dict(zip(family.labels, item.models, strict=True)), "mean": item.merged}
        if len(item.boosted):
            named[f"mean, boosted (beta {analysis.beta:g})"] = item.boosted
        curves = {name: _thinned(values.tolist()) for name, values in named.items()}
        drawn.append(lines(curves, item.name, "index of the singular value", "singular value", log_y=True))
    text = "Singular values of each delta and of the mean of the deltas. "
    if whole:
        text += f"Subspace Boosting with beta {analysis.beta:g} raises every value below the one where the sum reaches "
        text += "that share. "
    else:
        text += "Of large matrices the leading ones; --exact takes all, and boosts the mean. "
    return Section("Singular values", text + "The flatter a curve, the more directions a matrix uses.", tuple(drawn))


def _thinned(values: Sequence[float], most: int = 120) -> list[tuple[float, float]]:
    """Return points for a curve: the first ones, and so many in all."""
    step = max(1, len(values) // most)
    return [(index + 1, value) for index, value in enumerate(values) if index < 16 or index % step == 0]


def of_directions(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Iterator[Section]:
    panels = {
        "overlap: directions in common": (summary["overlap"], None),
        "alignment: with the same effect": (summary["alignment"], None),
    }
    text = (
        f"From a higher-order GSVD of {len(analysis.directions)} matrices; each direction is weighted by its squared "
        "norm. Overlap is the share of directions that both models use. Deltas of full rank use them all, so this is "
        "high for unrelated models, too. Alignment is the share that both use and map to the same place: near 0 for "
        "unrelated models, 1 for equal ones."
    )
    choice = summary.get("choice")
    if choice:
        names = ", ".join(choice["models"])
        how = (
            "all subsets were compared"
            if choice["every"]
            else "the one most aligned with the rest was left out in turn"
        )
        text += (
            f" The {len(choice['models'])} models that have least in common are {names}: their alignment is "
            f"{choice['score']:.3f} on average, that of all pairs {choice['usual']:.3f} ({how})."
        )
    yield Section("Directions in common", text, pair_maps(panels, family.labels, summary["cosines"]))
    count = len(family.models)
    edges, shares = users_histogram(analysis, count)
    own = sum(share for share, right in zip(shares, edges[1:], strict=True) if right <= 1 + (count - 1) / 4)
    text = (
        "Each direction of the compared matrices is used by an effective number of models. On average, weighted by "
        f"squared norm, it is {summary['users']:.2f} of {count}; {percent(own)} lies in directions that are close to "
        "one model's own."
    )
    middles = [(left + right) / 2 for left, right in itertools.pairwise(edges)]
    curve = {"share": [(x, 100 * share) for x, share in zip(middles, shares, strict=True)]}
    across = f"models that use a direction: 1 is one model's own, {count} is shared by all"
    yield Section("Shared and own directions", text, (lines(curve, "", across, "share of the energy (%)", zero=True),))


def of_theorem(found: Collapse) -> Section:
    text = (
        "Synthetic task vectors: a common part of low rank and independent noise. In the mean of N the noise falls as "
        f"N to the power {found.exponent:.3f} (fitted; the theorem says -0.5) and the stable rank falls from "
        f"{found.ranks[0]:.3g} to {found.ranks[-1]:.3g}, towards {found.floor:.3g}, that of the common part."
    )
    fit = [found.noise[0] * (count / found.counts[0]) ** found.exponent for count in found.counts]
    noise = {
        "own parts in the mean": list(zip(found.counts, found.noise, strict=True)),
        "fit": list(zip(found.counts, fit, strict=True)),
        "common part": [(count, found.common) for count in found.counts],
    }
    ranks = {
        "mean": list(zip(found.counts, found.ranks, strict=True)),
        "common part": [(count, found.floor) for count in found.counts],
    }
    across = "task vectors in the mean, N"
    drawn = (
        lines(noise, "", across, "spectral norm", log_x=True, log_y=True),
        lines(ranks, "", across, "stable rank", log_x=True, zero=True),
    )
    return Section("Rank collapse of synthetic task vectors", text, drawn)
