"""Reads what was measured: all runs of a command on one machine and commit, as medians with their range."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]

# What a measurement is told by; a file has some of them.
KEYS = ("op", "tool", "backend", "shape", "rank", "dtype", "models", "threads", "cache", "output")
# Columns that vary from run to run and that figures are taken from.
MEASURED = (
    "ms", "ratio", "gbps", "fraction", "times_bound", "bound_gbps", "bare_ms", "times_bare", "cpu_ms", "peak_rss_mb"
)  # fmt: skip


def read(path: Path, device: str | None = None) -> list[Row]:
    """Return one row per measurement, none where there is no file.

    Rows that measured the same on the same commit are one: their medians, with ``..._low`` and ``..._high`` beside
    them and their number in ``commands``. Of several commits the last counts. ``device`` is part of a device's name;
    by default the device of the last row.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    here = [row for row in rows if (device in row["device"] if device else row["device"] == rows[-1]["device"])]
    groups: dict[tuple[str | None, ...], list[Row]] = {}
    for row in here:
        same = groups.setdefault(tuple(row.get(key) for key in KEYS), [])
        if same and same[-1]["commit"] != row["commit"]:
            same.clear()
        same.append(row)
    return [_median(same) for same in groups.values()]


def _median(rows: Sequence[Row]) -> Row:
    median = dict(rows[-1], commands=str(len(rows)))
    for column in MEASURED:
        values = [float(row[column]) for row in rows if row.get(column)]
        if values:
            figures = statistics.median(values), min(values), max(values)
            for suffix, value in zip(("", "_low", "_high"), figures, strict=True):
                median[column + suffix] = f"{value:.6g}"
    return median
