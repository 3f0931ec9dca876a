"""The pictures of a report. Needs matplotlib; no global state of it is touched.

Colour maps and lines are told apart without colour vision: viridis and cividis, blue to red through white, and the
palette of Okabe and Ito with markers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from .matrices import Spectra
from .theorem import Collapse

__all__ = ["Grid", "draw_collapse", "draw_directions", "draw_heat_maps", "draw_pairs", "draw_spectra", "draw_theorem"]

# Rows are modules, columns are layers; NaN where a layer has no such module.
Grid = Sequence[Sequence[float]]

# Values between models, their unit, lowest and highest colour.
Pairs = tuple[Grid, str, tuple[float, float]]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
MARKERS = "osD^vPX*"
MISSING = "#e8e8e8"
# Above this ratio of the largest to the smallest value, colours follow the logarithm.
WIDE = 30


def draw_heat_maps(
    panels: Mapping[str, Grid],
    modules: Sequence[str],
    title: str,
    unit: str,
    *,
    colours: str = "viridis",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw one heat map per panel, layers to the right and modules upwards, on one scale of colours."""
    layers = len(next(iter(panels.values()))[0])
    width = min(12.0, max(3.0, 0.3 * layers))
    columns = max(1, min(len(panels), int(13 / width)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 + columns * width, 1.3 + rows * (0.7 + 0.27 * len(modules))), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    scale = _scale([value for grid in panels.values() for row in grid for value in row], limits)
    image = None
    for axis, (name, grid) in zip(axes.flat, panels.items(), strict=False):
        axis.set_facecolor(MISSING)
        image = axis.imshow(grid, aspect="auto", norm=scale, cmap=colours, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_yticks(range(len(modules)), modules, fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    assert image is not None
    bar = figure.colorbar(image, ax=axes, label=unit)
    if isinstance(scale, LogNorm):
        _plain_numbers(bar.ax.yaxis)
    figure.suptitle(title, fontsize=12)
    return figure


def draw_pairs(
    panels: Mapping[str, tuple[Grid, str, tuple[float, float]]], labels: Sequence[str], title: str
) -> Figure:
    """Draw matrices [N, N] of numbers between models, each with its unit and limits; the numbers stand in the cells."""
    side = min(7.0, max(2.4, 0.75 * len(labels)))
    longest = max(len(label) for label in labels)
    figure = Figure(
        figsize=(len(panels) * (side + 1.7) + 0.09 * longest, side + 1.3 + 0.05 * longest), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (name, (grid, unit, limits)) in zip(axes, panels.items(), strict=True):
        colours = "RdBu_r" if limits[0] < 0 else "cividis"
        image = axis.imshow(grid, norm=Normalize(*limits), cmap=colours)
        axis.set_facecolor(MISSING)
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(labels)), labels)
        axis.set_title(name, fontsize=11)
        figure.colorbar(image, ax=axis, label=unit, shrink=0.85)
        for i, row in enumerate(grid):
            for j, value in enumerate(row):
                if len(labels) <= 12 and not math.isnan(value):
                    axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=_ink(image, value), fontsize=9)
    figure.suptitle(title, fontsize=12)
    return figure


def draw_collapse(ranks: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw the stable rank over the number of models in the mean, one line per module."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axis = figure.subplots()
    for i, (module, values) in enumerate(ranks.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
        axis.plot(range(1, len(values) + 1), values, label=module, color=colour, marker=marker, markersize=6)
    axis.set_xlabel("models in the mean, in the order given")
    axis.set_ylabel("stable rank, mean over the layers")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(bottom=0)
    _tidy(axis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=12)
    return figure


def draw_spectra(found: Sequence[Spectra], labels: Sequence[str], beta: float) -> Figure:
    """Draw the singular values of each matrix: of the models, of their mean, and of the boosted mean."""
    columns = min(len(found), 2)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(6.2 * columns, 0.9 + 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, item in zip(axes.flat, found, strict=False):
        for i, (label, values) in enumerate(zip(labels, item.models, strict=True)):
            colour = COLOURS[i % 6] if len(labels) <= 6 else "#999999"
            axis.plot(_counted(values), _positive(values), color=colour, linewidth=1, label=label)
        axis.plot(_counted(item.merged), _positive(item.merged), color="black", linewidth=2, label="mean")
        name = f"mean, boosted (beta {beta:g})"
        axis.plot(_counted(item.boosted), _positive(item.boosted), "--", color="black", linewidth=2, label=name)
        axis.set_yscale("log")
        _limit(axis, [values for values in (*item.models, item.merged, item.boosted) if len(values) and values[0] > 0])
        axis.set_title(item.name, fontsize=10)
        axis.set_xlabel("index of the singular value")
        axis.set_ylabel("singular value")
        _tidy(axis)
    for axis in axes.flat[len(found) :]:
        axis.remove()
    handles, names = axes.flat[0].get_legend_handles_labels()
    if len(labels) > 6:
        handles, names = [handles[0], *handles[-2:]], ["models", *names[-2:]]
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 5), frameon=False)
    figure.suptitle("Singular values of the deltas before and after merging and boosting", fontsize=12)
    return figure


def draw_directions(edges: Sequence[float], shares: Sequence[float], models: int) -> Figure:
    """Draw which share of the deltas lies in directions that so many models use."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.stairs([100 * share for share in shares], edges, fill=True, color=COLOURS[0])
    axis.set_xlabel(f"models that use a direction (effective number): 1 is one model's own, {models} is shared by all")
    axis.set_ylabel("share of the deltas' energy (%)")
    axis.set_xlim(1, models)
    _tidy(axis)
    figure.suptitle("Shared and own directions (HO-GSVD)", fontsize=12)
    return figure


def draw_theorem(found: Collapse) -> Figure:
    """Draw the fall of the noise and of the stable rank over the number of synthetic task vectors."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(found.counts, found.noise, color=COLOURS[0], marker="o", label="own parts in the mean")
    fit = [found.noise[0] * (count / found.counts[0]) ** found.exponent for count in found.counts]
    left.loglog(found.counts, fit, color="black", linestyle="--", label=f"fit: N to the power {found.exponent:.3f}")
    left.axhline(found.common, color=COLOURS[5], linestyle=":", linewidth=2, label="common part")
    left.set_ylabel("spectral norm")
    left.set_ylim(min(found.noise) / 1.5, max(*found.noise, found.common) * 1.5)
    _plain_numbers(left.yaxis)
    left.legend(frameon=False)
    right.semilogx(found.counts, found.ranks, color=COLOURS[0], marker="o", label="mean")
    right.axhline(found.floor, color=COLOURS[5], linestyle=":", linewidth=2, label="common part")
    right.set_ylabel("stable rank")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    for axis in (left, right):
        axis.set_xlabel("task vectors in the mean, N")
        axis.set_xticks(found.counts, [str(count) for count in found.counts])
        axis.xaxis.set_minor_locator(NullLocator())
        _tidy(axis)
    figure.suptitle("Rank collapse of averaged synthetic task vectors", fontsize=12)
    return figure


def _scale(values: Sequence[float], limits: tuple[float, float] | None) -> Normalize:
    finite = [value for value in values if math.isfinite(value)]
    if limits is not None:
        return Normalize(*limits)
    positive = [value for value in finite if value > 0]
    if positive and max(positive) > WIDE * min(positive):
        # Zeros and what is a hundred thousand times below the largest get the lowest colour.
        return LogNorm(max(min(positive), max(positive) * 1e-5), max(positive), clip=True)
    return Normalize(0, max(finite, default=0.0) or 1.0)


def _plain_numbers(axis) -> None:
    """Write 0.02, 0.05, 0.1 at a logarithmic axis, not powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def _ink(image, value: float) -> str:
    """Return the colour of text that can be read on the cell of ``value``."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _limit(axis, curves) -> None:
    """Cut the axis where the values of rank-deficient deltas are nothing but rounding."""
    if curves:
        top, lowest = max(float(curve[0]) for curve in curves), min(float(curve[-1]) for curve in curves)
        axis.set_ylim(max(lowest / 2, top * 1e-5), top * 2)


def _counted(values) -> range:
    return range(1, len(values) + 1)


def _positive(values) -> list[float]:
    """Return the values, NaN in the place of zeros, which a logarithmic axis lacks."""
    return [value if value > 0 else math.nan for value in values.tolist()]


def _tidy(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
