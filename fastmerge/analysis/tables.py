"""The CSV files of a report."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .experts import mean_alignment, mean_overlap
from .family import Family
from .measures import add_up, cosines, opposed_shares, weighted_opposed_shares
from .types import Analysis

__all__ = ["write_tables"]


def write_tables(folder: Path, analysis: Analysis) -> None:
    """Write everything that was measured; a number that does not exist is an empty cell."""
    if analysis.family is not None:
        _write_tensors(folder / "tensors.csv", analysis, analysis.family)
        _write_pairs(folder / "pairs.csv", analysis, analysis.family)
        _write_spectra(folder / "spectra.csv", analysis, analysis.family)
        _write(
            folder / "leading.csv", ("tensor", "model", "index", "singular_value"), _leading(analysis, analysis.family)
        )
    if analysis.directions:
        _write(folder / "directions.csv", ("tensor", "direction", "users", "squared_norm"), _directions(analysis))
    if analysis.theorem is not None:
        found = analysis.theorem
        columns = ("task_vectors", "noise_norm", "common_norm", "stable_rank", "stable_rank_common")
        values = zip(found.counts, found.noise, found.ranks, strict=True)
        rows = ((count, noise, found.common, rank, found.floor) for count, noise, rank in values)
        _write(folder / "theorem.csv", columns, rows)


def _leading(analysis: Analysis, family: Family) -> Iterator[Sequence[Any]]:
    for name, found in analysis.ranks.items():
        for label, values in zip(family.labels, found.leading, strict=True):
            yield from ((name, label, index, value) for index, value in enumerate(values, 1))


def _directions(analysis: Analysis) -> Iterator[Sequence[Any]]:
    for item in analysis.directions:
        for index, (users, weight) in enumerate(zip(item.users.tolist(), item.weights.tolist(), strict=True)):
            yield item.name, index, users, weight


def _write_tensors(path: Path, analysis: Analysis, family: Family) -> None:
    count = len(family.models)
    columns = ["tensor", "layer", "module", "elements", "base_norm"]
    columns += [f"{what}:{label}" for label in family.labels for what in ("norm", "relative_norm", "density")]
    columns += [
        "changed_by_two_or_more",
        "of_these_in_conflict",
        "conflict_share",
        "opposed_pairs",
        "opposed_pairs_weighted",
    ]
    columns += [f"stable_rank_of_mean_of_{models}" for models in range(1, count + 1)]
    columns += [*(f"stable_rank:{label}" for label in family.labels), "stable_rank_bound"]

    def rows() -> Iterable[Sequence[Any]]:
        for tensor in family.tensors:
            found = analysis.measures[tensor.name]
            per_model = zip(found.norms, found.relative_norms, found.densities, strict=True)
            matrix = analysis.ranks.get(tensor.name)
            ranks, of_models = (matrix.means, matrix.models) if matrix else ([math.nan] * count,) * 2
            missed = matrix.missed if matrix else math.nan
            yield (
                tensor.name, tensor.layer, tensor.module, found.numel, math.sqrt(found.base),
                *(value for values in per_model for value in values),
                found.shared, found.conflicts, found.conflict, found.opposition, found.weighted_opposition,
                *ranks, *of_models, missed,
            )  # fmt: skip

    _write(path, columns, rows())


def _write_pairs(path: Path, analysis: Analysis, family: Family) -> None:
    found = add_up(analysis.measures.values())
    cosine, opposed, weighted = (of(found).tolist() for of in (cosines, opposed_shares, weighted_opposed_shares))
    tables = [table(analysis.directions) for table in (mean_overlap, mean_alignment)] if analysis.directions else []
    columns = [
        "a",
        "b",
        "inner_product",
        "cosine",
        "changed_by_both",
        "of_these_opposed",
        "opposed_share",
        "opposed_share_weighted",
    ]
    columns += ["overlap", "alignment"] if tables else []
    rows = (
        (
            family.labels[i], family.labels[j], float(found.gram[i, j]), cosine[i][j], int(found.changed[i, j]),
            int(found.opposed[i, j]), opposed[i][j], weighted[i][j],
            *(float(table[i, j]) for table in tables),
        )
        for i in range(len(family.labels))
        for j in range(i, len(family.labels))
    )  # fmt: skip
    _write(path, columns, rows)


def _write_spectra(path: Path, analysis: Analysis, family: Family) -> None:
    names = (*(f"model:{label}" for label in family.labels), "mean", "boosted")
    rows = (
        (item.name, index, *values)
        for item in analysis.spectra
        for index, values in enumerate(
            zip_longest(*(part.tolist() for part in (*item.models, item.merged, item.boosted))), 1
        )
    )
    _write(path, ("tensor", "index", *names), rows)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(["" if value is None or value != value else value for value in row])
