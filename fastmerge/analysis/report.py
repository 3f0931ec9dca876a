"""The report: one page that opens without a network, tables, the numbers as JSON, and a recipe to try first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import explained
from . import svg
from .advice import Advice, advise
from .family import Family
from .sections import MOST_PANELS, Section, of_counts, percent
from .spectral_sections import of_directions, of_spectra, of_theorem
from .summary import summarize
from .tables import write_tables
from .types import Analysis

__all__ = ["write_report"]

PAGE = "report.html"
# What the other files hold.
FILES = {
    "recipe.yml": "the recipe to try first",
    "analysis.json": "the numbers of this page (schema in docs/analysis.md)",
    "tensors.csv": "one row per tensor: norms, densities, sign conflicts, stable ranks",
    "pairs.csv": "one row per pair of models, over all tensors",
    "leading.csv": "the leading singular values of every matrix, by model",
    "spectra.csv": "the singular values that are drawn",
    "directions.csv": "for each direction of the compared matrices, how many models use it and its squared norm",
    "theorem.csv": "the demonstration of rank collapse",
}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1b1b;background:#fff;max-width:1120px;margin:2em auto;padding:0 1em}
h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2em;border-top:1px solid #ddd;padding-top:.8em}p{max-width:48em}
.first{background:#f2f6fa;border-left:4px solid #2171b5;padding:.6em 1em;max-width:46em}
table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #e4e4e4;text-align:right}
td:first-child,th:first-child{text-align:left}pre{background:#f6f6f6;padding:.8em;max-height:24em;overflow:auto}
svg{display:inline-block;max-width:100%;height:auto;margin:.4em 1.2em .8em 0;vertical-align:top}
"""


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
        _write(folder / "recipe.yml", advice.recipe)
    if analysis.theorem is not None:
        parts.append(of_theorem(analysis.theorem))
    _write(folder / "analysis.json", json.dumps({"schema": 1, **summary}, indent=1) + "\n")
    files = {path.name for path in folder.iterdir()}
    _write(folder / PAGE, "\n".join(_page(analysis, summary, advice, parts, files)) + "\n")
    return summary


def _page(
    analysis: Analysis, summary: dict[str, Any], advice: Advice | None, parts: Sequence[Section], files: set[str]
) -> Iterator[str]:
    title = "What the models changed" if analysis.family else "Rank collapse"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>{svg.STYLE}</head>'
    yield f"<body><h1>{title}</h1>"
    if analysis.family is not None and advice is not None:
        yield "".join(f"<p>{escape(sentence)}</p>" for sentence in advice.sentences)
        yield f'<p class="first">{escape(advice.first)}</p><pre>{escape(advice.recipe)}</pre>'
        yield f"<p>Base: {escape(analysis.family.base)}. A delta is a model minus the base, in float32.</p>"
        yield from _models(summary)
        yield from _outside(analysis, analysis.family)
    for part in parts:
        yield f"<h2>{escape(part.title)}</h2><p>{escape(part.text)}</p>"
        yield from part.pictures
    yield "<h2>Files</h2><ul>"
    yield from (f'<li><a href="{name}">{name}</a>: {text}</li>' for name, text in FILES.items() if name in files)
    yield "</ul></body></html>"


def _models(summary: dict[str, Any]) -> Iterator[str]:
    rows = (
        (model["label"], f"{model['norm']:.4g}", percent(model["relative_norm"]), percent(model["density"]))
        for model in summary["models"]
    )
    yield from _table(("model", "norm of the delta", "relative to the base", "elements changed"), rows)


def _outside(analysis: Analysis, family: Family) -> Iterator[str]:
    outside = [tensor for tensor in family.tensors if tensor.layer is None]
    if not outside:
        return
    yield "<p>Outside the layers (relative norm of each delta):</p>"
    many = len(family.labels) > MOST_PANELS
    rows = []
    for tensor in outside:
        found = analysis.measures[tensor.name]
        norms = found.relative_norms
        shown = (min(norms), math.fsum(norms) / len(norms), max(norms)) if many else norms
        rows.append((tensor.name, *map(percent, shown), percent(found.opposition)))
    yield from _table(("tensor", *(("least", "mean", "most") if many else family.labels), "opposed pairs"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"
    yield from (f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>" for row in rows)
    yield "</table>"


def _write(path: Path, text: str) -> None:
    with explained(str(path), "writing"):
        path.write_text(text, encoding="utf-8")
