"""The parts of a report: what each picture shows, in words, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .family import Family
from .measures import Measure
from .summary import by_cell, users_histogram
from .types import Analysis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .plots import Grid

__all__ = ["Section", "percent", "sections"]

# Beyond this many models their heat maps are not drawn side by side; the tables hold them.
MOST_PANELS = 6


@dataclass(frozen=True)
class Section:
    """A part of the report: what it shows, in words, and how its picture is drawn."""

    title: str
    text: str
    picture: str
    draw: Callable[[], Figure]


def sections(analysis: Analysis, summary: dict[str, Any]) -> Iterator[Section]:
    if analysis.family is not None:
        yield from _elementwise(analysis, analysis.family, summary)
        yield from _spectral(analysis, analysis.family, summary)
        if analysis.directions:
            yield _directions(analysis, analysis.family, summary)
            yield _users(analysis, analysis.family, summary)
    if analysis.theorem is not None:
        yield _theorem(analysis, summary)


def _elementwise(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Iterator[Section]:
    labels, cells = family.labels, by_cell(analysis, family)
    modules = sorted({module for module, _ in cells})

    def maps(value: Callable[[Measure], list[float]], title: str, unit: str, **options: Any) -> Callable[[], Figure]:
        def draw() -> Figure:
            from .plots import draw_heat_maps

            def grid(pick: Callable[[list[float]], float]) -> Grid:
                return _grid(cells, modules, family.layers, lambda found: pick(value(found)))

            panels = {label: grid(lambda values, k=k: values[k]) for k, label in enumerate(labels)}  # type: ignore[misc]
            if len(labels) > MOST_PANELS:
                panels = {f"mean of {len(labels)} models": grid(lambda values: math.fsum(values) / len(values))}
            return draw_heat_maps(panels, modules, title, unit, **options)

        return draw

    if len(labels) > 1:
        yield _cosines(family, summary)
    if not modules:
        return
    largest = max(cells, key=lambda cell: max(cells[cell].relative_norms))
    yield Section(
        "Norms",
        "How far each model moved each module from the base: the norm of the delta over the norm of the base. "
        f"The largest is {percent(max(cells[largest].relative_norms))}, in `{largest[0]}` of layer {largest[1]}.",
        "norms.png",
        maps(
            lambda found: [100 * norm for norm in found.relative_norms],
            "Norm of the delta, relative to the base", "norm of delta / norm of base (%)",
        ),
    )  # fmt: skip
    yield Section(
        "Densities",
        "Which share of the elements each model changed at all. Low values are frozen or sparsely trained parts, or "
        "updates that vanish in the rounding of the weights.",
        "densities.png",
        maps(
            lambda found: [100 * density for density in found.densities],
            "Elements that differ from the base", "changed elements (%)", limits=(0, 100),
        ),
    )  # fmt: skip
    if len(labels) > 1:
        yield _conflicts(family, summary, cells, modules)


def _cosines(family: Family, summary: dict[str, Any]) -> Section:
    labels, cosine = family.labels, summary["cosines"]
    pairs = [(i, j) for i in range(len(labels)) for j in range(i) if cosine[i][j] is not None]
    text = "Left, the cosine of each pair of deltas over all tensors: 1 is the same direction, 0 is unrelated."
    if pairs:
        near, far = (pick(pairs, key=lambda pair: cosine[pair[0]][pair[1]]) for pick in (max, min))
        text += f" Closest are {_named(near, labels)} ({cosine[near[0]][near[1]]:.3f})"
        text += f", farthest {_named(far, labels)} ({cosine[far[0]][far[1]]:.3f})." if far != near else "."
    text += " Right, the share of the elements changed by both models that they move apart; 0.5 is chance."

    def draw() -> Figure:
        from .plots import draw_pairs

        panels = {
            "cosine of the deltas": (_filled(cosine), "cosine", (-1.0, 1.0)),
            "opposed signs": (_filled(summary["opposed_shares"]), "share of elements changed by both", (0.0, 1.0)),
        }
        return draw_pairs(panels, labels, "Agreement of the models")

    return Section("Agreement of the models", text, "agreement.png", draw)


def _conflicts(family: Family, summary: dict[str, Any], cells: dict, modules: list[str]) -> Section:
    count, most = len(family.labels), summary["most_opposed"]

    def draw() -> Figure:
        from .plots import draw_heat_maps

        grid = _grid(cells, modules, family.layers, lambda found: 100 * found.opposition)
        title = "Sign conflicts between the models (50 % is chance)"
        return draw_heat_maps(
            {"all pairs": grid}, modules, title, "pairs of changes that go apart (%)", colours="cividis"
        )

    if summary["opposition"] is None:
        return Section("Sign conflicts", "No element was changed by two models.", "conflicts.png", draw)
    text = (
        "Where two models changed the same element, the share in which one raises it and the other lowers it: "
        f"{percent(summary['opposition'])} over all tensors and pairs; chance is 50 %."
    )
    if most:
        text += f" Among the matrices it is largest in `{most['module']}` of layer {most['layer']}: "
        text += f"{percent(most['opposition'])}."
    text += (
        f" Changes of both signs meet in {percent(summary['conflict'])} of the elements that at least two models "
        f"changed; independent signs of {count} models would give {percent(1 - 0.5 ** (count - 1))}."
    )
    return Section("Sign conflicts", text, "conflicts.png", draw)


def _spectral(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Iterator[Section]:
    ranks, count = summary["stable_ranks"], len(family.models)
    places = {tensor.name: (tensor.module, tensor.layer) for tensor in family.matrices}
    modules = sorted({module for module, _ in places.values()})
    if ranks:

        def draw_ranks() -> Figure:
            from .plots import draw_heat_maps

            def grid(models: int) -> Grid:
                cells: dict[tuple[str, int | None], list[float]] = {}
                for name, values in analysis.ranks.items():
                    cells.setdefault(places[name], []).append(values.means[models - 1])
                return _grid(cells, modules, family.layers, lambda found: math.fsum(found) / len(found))

            panels = {family.labels[0]: grid(1)} | ({f"mean of {count} models": grid(count)} if count > 1 else {})
            return draw_heat_maps(panels, modules, "Stable rank of the delta", "stable rank")

        text = (
            "The stable rank of a matrix, its squared Frobenius norm over its squared largest singular value, says in "
        )
        text += f"how many directions it lies. Averaged over the matrices it is {ranks[0]:.3g} for {family.labels[0]}"
        text += f" and {ranks[-1]:.3g} for the mean of all models." if count > 1 else "."
        yield Section("Stable rank", text, "stable_rank.png", draw_ranks)
    if ranks and count > 1:

        def draw_lines() -> Figure:
            from .plots import draw_collapse

            lines = {
                module: _columns_mean(
                    [analysis.ranks[name].means for name, place in places.items() if place[0] == module]
                )
                for module in modules
            }
            return draw_collapse(lines, "Stable rank of the mean as models are added")

        change = "falls" if ranks[-1] < ranks[0] else "does not fall"
        text = f"Models are added in the order given. The stable rank of their mean {change}: "
        text += (
            ", ".join(f"{value:.3g}" for value in ranks) + ", averaged over the matrices. It falls where models share "
        )
        text += "few strong directions and cancel in the others, and rises where each one adds directions of its own."
        yield Section("Collapse as models are added", text, "collapse.png", draw_lines)
    if analysis.spectra:

        def draw_values() -> Figure:
            from .plots import draw_spectra

            return draw_spectra(analysis.spectra, family.labels, analysis.beta)

        text = "Singular values of each delta, of the mean of the deltas, and of the mean after Subspace Boosting with "
        text += f"beta {analysis.beta:g}, which raises every value below the one where the sum reaches that share. "
        text += "The flatter a curve, the more directions the matrix uses."
        yield Section("Singular values", text, "spectra.png", draw_values)


def _directions(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Section:
    def draw() -> Figure:
        from .plots import draw_pairs

        panels = {
            "overlap": (summary["overlap"], "share of directions in common", (0.0, 1.0)),
            "alignment": (summary["alignment"], "share with the same effect", (0.0, 1.0)),
        }
        return draw_pairs(panels, family.labels, "Directions that the models have in common")

    text = (
        f"From a higher-order GSVD of {len(analysis.directions)} matrices; each direction is weighted by its squared "
        "norm. Left, the share of directions that both models use. Deltas of full rank use them all, so this is high "
        "for unrelated models, too. Right, the share that both use and map to the same place: near 0 for unrelated "
        "models, 1 for equal ones."
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
            f" The {len(choice['models'])} models that have least in common are **{names}**: their alignment is "
            f"{choice['score']:.3f} on average, that of all pairs {choice['usual']:.3f} ({how})."
        )
    return Section("Directions in common", text, "overlap.png", draw)


def _users(analysis: Analysis, family: Family, summary: dict[str, Any]) -> Section:
    count = len(family.models)
    edges, shares = users_histogram(analysis, count)

    def draw() -> Figure:
        from .plots import draw_directions

        return draw_directions(edges, shares, count)

    own = sum(share for share, right in zip(shares, edges[1:], strict=True) if right <= 1 + (count - 1) / 4)
    text = (
        "Each direction of the compared matrices is used by an effective number of models. On average, weighted by "
        f"squared norm, it is {summary['users']:.2f} of {count}; {percent(own)} lies in directions that are close to "
        "one model's own."
    )
    return Section("Shared and own directions", text, "directions.png", draw)


def _theorem(analysis: Analysis, summary: dict[str, Any]) -> Section:
    found = analysis.theorem
    assert found is not None

    def draw() -> Figure:
        from .plots import draw_theorem

        return draw_theorem(found)

    text = (
        "Synthetic task vectors: a common part of low rank and independent noise. In the mean of N the noise falls as "
        f"N to the power {found.exponent:.3f} (fitted; the theorem says -0.5) and the stable rank falls from "
        f"{found.ranks[0]:.3g} to {found.ranks[-1]:.3g}, towards {found.floor:.3g}, that of the common part."
    )
    return Section("Rank collapse of synthetic task vectors", text, "theorem.png", draw)


def _grid(cells: dict, modules: list[str], layers: int, value: Callable[[Any], float]) -> list[list[float]]:
    """Return rows of modules and columns of layers; NaN where there is no such cell."""
    return [
        [value(cells[module, layer]) if (module, layer) in cells else math.nan for layer in range(layers)]
        for module in modules
    ]


def _columns_mean(rows: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(column) for column in zip(*rows, strict=True)]


def _filled(matrix: list[list[float | None]]) -> list[list[float]]:
    return [[math.nan if value is None else value for value in row] for row in matrix]


def _named(pair: tuple[int, int], labels: tuple[str, ...]) -> str:
    return f"{labels[pair[1]]} and {labels[pair[0]]}"


def percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.3g} %"
