"""The report: tables, pictures where matplotlib is installed, and ``index.md``, which says in words what they show."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import explained
from .family import Family
from .sections import Section, percent, sections
from .summary import summarize
from .tables import write_tables
from .types import Analysis

__all__ = ["write_report"]

NO_PLOTS = "matplotlib is not installed, so the report has tables only (pip install 'fastmerge[plot]')"


# What the tables hold.
TABLES = {
    "tensors.csv": "one row per tensor: norms, densities, sign conflicts, stable ranks",
    "pairs.csv": "one row per pair of models, over all tensors",
    "spectra.csv": "the singular values that are drawn",
    "directions.csv": "for each direction of the compared matrices, how many models use it and its squared norm",
    "theorem.csv": "the demonstration of rank collapse",
}


def write_report(folder: Path, analysis: Analysis) -> tuple[dict[str, Any], list[str]]:
    """Write all files of the report into ``folder``; return the summary and notes."""
    write_tables(folder, analysis)
    tables = {path.name for path in folder.iterdir()}
    summary = summarize(analysis)
    parts = [*sections(analysis, summary)]
    pictures = importlib.util.find_spec("matplotlib") is not None
    if pictures:
        for section in parts:
            with explained(str(folder / section.picture), "writing"):
                section.draw().savefig(folder / section.picture, dpi=130)
    with explained(str(folder / "index.md"), "writing"):
        (folder / "index.md").write_text(_index(analysis, summary, parts, tables, pictures), encoding="utf-8")
    return summary, [] if pictures else [NO_PLOTS]


def _index(analysis: Analysis, summary: dict[str, Any], parts: list[Section], tables: set[str], pictures: bool) -> str:
    lines = ["# What the models changed", ""] if analysis.family else ["# Rank collapse", ""]
    if analysis.family is not None:
        lines += [*_models_table(analysis.family, summary), *_outside_table(analysis, analysis.family)]
    if not pictures:
        lines += [f"{NO_PLOTS[0].upper()}{NO_PLOTS[1:]}.", ""]
    for section in parts:
        lines += [f"## {section.title}", "", section.text, ""]
        lines += [f"![{section.title}]({section.picture})", ""] if pictures else []
    lines += ["## Tables", ""]
    lines += [f"- `{name}`: {text}" for name, text in TABLES.items() if name in tables]
    return "\n".join(lines) + "\n"


def _models_table(family: Family, summary: dict[str, Any]) -> Iterator[str]:
    yield f"Base: `{family.base}`. A delta is a model minus the base, in float32."
    yield ""
    yield "| model | norm of the delta | relative to the base | elements changed |"
    yield "| --- | ---: | ---: | ---: |"
    for model in summary["models"]:
        relative, density = percent(model["relative_norm"]), percent(model["density"])
        yield f"| {model['label']} | {model['norm']:.4g} | {relative} | {density} |"
    yield ""


def _outside_table(analysis: Analysis, family: Family) -> Iterator[str]:
    outside = [tensor for tensor in family.tensors if tensor.layer is None]
    if not outside:
        return
    yield "Outside the layers (relative norm of each delta):"
    yield ""
    yield "| tensor | " + " | ".join(family.labels) + " | opposed pairs |"
    yield "| --- |" + " ---: |" * (len(family.labels) + 1)
    for tensor in outside:
        found = analysis.measures[tensor.name]
        norms = " | ".join(map(percent, found.relative_norms))
        yield f"| {tensor.name} | {norms} | {percent(found.opposition)} |"
    yield ""
