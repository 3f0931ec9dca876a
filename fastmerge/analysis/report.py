"""The report: one page that opens without a network, tables, the numbers as JSON, and a recipe to try first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..pages import MOST_PANELS, Page, Section, Table, percent
from .advice import Advice, advise
from .family import Family
from .sections import of_counts
from .spectral_sections import of_directions, of_spectra, of_theorem
from .summary import summarize
from .tables import write_tables
from .types import Analysis

__all__ = ["write_report"]

PAGE, RECIPE = "report.html", "recipe.yml"
# What the other files hold.
FILES = {
    RECIPE: "the recipe to try first",
    "analysis.json": "the numbers of this page (schema in docs/analysis.md)",
    "tensors.csv": "one row per tensor: norms, densities, sign conflicts, stable ranks",
    "pairs.csv": "one row per pair of models, over all tensors",
    "leading.csv": "the leading singular values of every matrix, by model",
    "spectra.csv": "the singular values that are drawn",
    "directions.csv": "for each direction of the compared matrices, how many models use it and its squared norm",
    "theorem.csv": "the demonstration of rank collapse",
}


def write_report(folder: Path, analysis: Analysis) -> dict[str, Any]:
    """Write all files of the report into ``folder``; return the summary."""
    write_tables(folder, analysis)
    summary = summarize(analysis)
    family, parts, advice = analysis.family, list[Section](), None
    if family is not None:
        parts += [*of_counts(analysis, family, summary), *of_spectra(analysis, family, summary)]
        if analysis.directions:
            parts += of_directions(analysis, family, summary)
        advice = advise(family, summary)
        summary["advice"] = {"sentences": list(advice.sentences), "first": advice.first}
        _write(folder / RECIPE, advice.recipe)
    if analysis.theorem is not None:
        parts.append(of_theorem(analysis.theorem))
    _write(folder / "analysis.json", json.dumps({"schema": 1, **summary}, indent=1) + "\n")
    written = {path.name for path in folder.iterdir()}
    files = {name: text for name, text in FILES.items() if name in written}
    _write(folder / PAGE, replace(_page(analysis, summary, advice, parts), files=files).html() + "\n")
    return summary


def _page(analysis: Analysis, summary: dict[str, Any], advice: Advice | None, parts: Sequence[Section]) -> Page:
    if analysis.family is None or advice is None:
        return Page("Rank collapse", parts)
    tables = [_models(analysis.family, summary), *_outside(analysis, analysis.family)]
    first = f"{advice.first} The recipe is in {RECIPE}; fastmerge merge {RECIPE} OUT makes it."
    top = Section("", "\n\n".join(advice.sentences), (), tables, first, advice.recipe)
    return Page("What the models changed", [top, *parts])


def _models(family: Family, summary: dict[str, Any]) -> Table:
    rows = [
        (model["label"], f"{model['norm']:.4g}", percent(model["relative_norm"]), percent(model["density"]))
        for model in summary["models"]
    ]
    head = ("model", "norm of the delta", "relative to the base", "elements changed")
    return Table(head, rows, f"Base: {family.base}. A delta is a model minus the base, in float32.")


def _outside(analysis: Analysis, family: Family) -> Iterator[Table]:
    outside = [tensor for tensor in family.tensors if tensor.layer is None]
    if not outside:
        return
    many = len(family.labels) > MOST_PANELS
    rows = []
    for tensor in outside:
        found = analysis.measures[tensor.name]
        norms = found.relative_norms
        shown = (min(norms), math.fsum(norms) / len(norms), max(norms)) if many else norms
        rows.append((tensor.name, *map(percent, shown), percent(found.opposition)))
    head = ("tensor", *(("least", "mean", "most") if many else family.labels), "opposed pairs")
    yield Table(head, rows, "Outside the layers (relative norm of each delta):")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
