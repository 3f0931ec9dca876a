"""Goals on a GPU beside what was measured: ``python -m benchmarks.gpu.goals FILE``. Computed from the rows alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import _rows
from .._record import DATA
from ..inventory import CALLS

LARGE = 64 << 20
# How many times as long mergekit's function must take.
MERGEKIT = {"ties": 50, "dare_ties": 50, "della": 50, "linear": 5, "slerp": 5}
STREAMED = ("ties", "linear", "dare_ties")
# What a merge may take over the transfers alone, from memory that has to be copied and from memory that has not; and
# from file to file over the copy of as many bytes.
FROM_HOST, FROM_PINNED, FROM_FILES = 1.3, 1.15, 1.3
ALL_MS, ALL = 12_500, 70e9
# Milliseconds at most, of rows by op: a 70B model (base + 3) in the GPU's memory; tensors of 64M elements; and 300
# tensors of 8192 elements, at 8 us each.
WALL_MS = {"linear, 70B, wall": 170, "ties, 70B, wall": 360, "dare_ties, 70B, wall": 360}
ONE_MS = {"slerp": 0.35, "della": 1.5}
SMALL_MS = {f"{operation}_many of 300": 2.4 for operation in ("weighted_sum", "sparse_merge", "select_boundaries")}
# Our ways to boost that are as exact as a float32 SVD, in rows until November 2026 also with products by Triton where
# those by the library were the default; and how many times as long ``torch.linalg.svd`` must take.
EXACT = ("fastmerge", "fastmerge, triton")
SVD, SVD_OF_EXPERTS = 50, 200

Row = Mapping[str, str]


@dataclass(frozen=True)
class Goal:
    """What is wanted, what the rows say, and whether that is enough; None where rows are missing."""

    wanted: str
    measured: str
    met: bool | None

    def line(self) -> str:
        verdict = "not measured" if self.met is None else "met" if self.met else "missed"
        return f"{verdict:12}  {self.wanted:62}  {self.measured}"


def best(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """Return fastmerge's fastest backend for everything that was measured."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row[column] for column in ("op", "shape", "dtype", "models"))
        if row["tool"] == "fastmerge" and (key not in found or float(row["ms"]) < float(found[key]["ms"])):
            found[key] = row
    return found


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Return every goal."""
    fastest = best(rows).values()
    return [
        _kernels([row for row in fastest if int(row["shape"]) >= LARGE]),
        _at_most("ties, 64M elements and more: time of its bytes, each once", "times_bound", 2.3, "x", [
            row for row in fastest if row["op"] == "ties" and int(row["shape"]) >= LARGE
        ]),
        _at_most("ties of a 70B (base + 3): kernels, ms", "ms", 500, " ms", [
            row for row in fastest if row["op"] == "ties, 70B, kernels"
        ]),
        *(
            _at_most(f"{op}, ms", "ms", limit, " ms", [row for row in fastest if row["op"] == op])
            for op, limit in {**WALL_MS, **SMALL_MS}.items()
        ),
        *(
            _at_most(f"{op} of 64M elements, ms", "ms", limit, " ms", [
                row for row in fastest if row["op"] == op and int(row["shape"]) == LARGE
            ])
            for op, limit in ONE_MS.items()
        ),
        *(
            _at_most(f"{method} streamed from {memory}: time of the transfers alone", "times_bound", limit, "x", [
                row for row in fastest if row["op"] == f"{method}, streamed{suffix}"
            ])
            for method in STREAMED
            for memory, suffix, limit in (
                ("host memory", "", FROM_HOST),
                ("host memory in place", ", in place", FROM_HOST),
                ("pinned memory", ", pinned", FROM_PINNED),
            )
        ),
        _at_most("ties of a 70B (base + 3) from host memory, ms", "ms", ALL_MS, " ms", [
            row for row in fastest if row["op"] == "ties, streamed" and float(row["shape"]) > ALL
        ]),
        *(
            _at_most(f"{method} of files on the GPU: time of their copy", "times_bound", FROM_FILES, "x", [
                row for row in rows if row["op"] == f"{method}, files, without start" and row["backend"] == "cuda"
            ])
            for method in ("ties", "linear")
        ),
        *(_mergekit(rows, fastest, method, factor) for method, factor in MERGEKIT.items()),
    ]  # fmt: skip


def _kernels(rows: Sequence[Row]) -> Goal:
    wanted = "every kernel, 64M elements and more: share of a copy >= 0.9"
    rows = [row for row in rows if row["op"].split(",")[0] in CALLS]
    if not rows:
        return Goal(wanted, "", None)
    slow = sorted((row for row in rows if float(row["fraction"]) < 0.9), key=lambda row: float(row["fraction"]))
    measured = f"{len(rows) - len(slow)} of {len(rows)}"
    if slow:
        worst = slow[0]
        measured += (
            f"; least {float(worst['fraction']):.2f}: {worst['op']}, {worst['backend']}, {worst['dtype']}, "
            f"{worst['models']} inputs"
        )
    return Goal(wanted, measured, not slow)


def _at_most(wanted: str, column: str, limit: float, unit: str, rows: Sequence[Row]) -> Goal:
    wanted = f"{wanted} <= {limit:g}"
    if not rows:
        return Goal(wanted, "", None)
    worst = max(rows, key=lambda row: float(row[column]))
    value = float(worst[column])
    return Goal(wanted, f"{value:.4g}{unit}, {worst['backend']}, {worst['shape']} elements", value <= limit)


def _mergekit(rows: Sequence[Row], fastest: Iterable[Row], method: str, factor: float) -> Goal:
    wanted = f"{method}: mergekit's time over fastmerge's >= {factor}"
    own = {row["shape"]: float(row["ms"]) for row in fastest if row["op"] == method}
    ratios = [
        float(row["ms"]) / own[row["shape"]]
        for row in rows
        if row["tool"] == "mergekit" and row["op"] == method and row["shape"] in own
    ]
    if not ratios:
        return Goal(wanted, "", None)
    return Goal(wanted, f"{min(ratios):.1f}x", min(ratios) >= factor)


def spectral_goals(rows: Sequence[Row]) -> list[Goal]:
    """Return every goal of Subspace Boosting, from the rows of ``gpu_spectral.csv``."""
    matrices = [row for row in rows if row["op"] == "subspace_boost" and row["shape"].count("x") == 1]
    experts = [row for row in rows if row["op"] == "subspace_boost, experts"]
    seconds = [1e-3 * float(row["ms"]) for row in rows if row["op"] == "subspace_boost, 70B" and row["tool"] in EXACT]
    wanted = "boosting a 70B: s <= 80"
    return [
        _beside_svd("boosting a matrix", matrices, SVD),
        _beside_svd("boosting a mixture of experts", experts, SVD_OF_EXPERTS),
        Goal(wanted, f"{min(seconds):.1f} s", min(seconds) <= 80) if seconds else Goal(wanted, "", None),
    ]


def _beside_svd(what: str, rows: Sequence[Row], factor: float) -> Goal:
    """Compare the fastest of the ways that are no less exact than ``torch.linalg.svd`` is, on every shape."""
    wanted = f"{what}: torch.linalg.svd's time at its error >= {factor}"
    ratios = {}
    for peer in (row for row in rows if row["tool"] == "torch"):
        own = [row for row in rows if row["shape"] == peer["shape"] and row["tool"] in EXACT]
        as_exact = [float(row["ms"]) for row in own if float(row["error"]) <= float(peer["error"])]
        if own:
            ratios[peer["shape"]] = float(peer["ms"]) / min(as_exact) if as_exact else 0.0
    if not ratios:
        return Goal(wanted, "", None)
    worst = min(ratios, key=lambda shape: ratios[shape])
    measured = f"{ratios[worst]:.1f}x" if ratios[worst] else "less exact"
    return Goal(wanted, f"{measured}, {worst}", ratios[worst] >= factor)


def report(path: Path) -> str:
    """Return the goals as lines of text, with the device and the commit that they were measured on.

    Those of spectral operations follow from the file beside ``path`` that is called ``..._spectral``.
    """
    rows, spectral = _rows.read(path), _rows.read(path.with_stem(f"{path.stem}_spectral"))
    lines = [f"{rows[-1]['device']}, commit {rows[-1]['commit']}, {rows[-1]['date']}"] if rows else ["no rows"]
    return "\n".join([*lines, *(goal.line().rstrip() for goal in (*goals(rows), *spectral_goals(spectral)))])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.goals", description=__doc__)
    parser.add_argument("csv", type=Path, nargs="?", default=DATA / "gpu.csv")
    print(report(parser.parse_args().csv))


if __name__ == "__main__":
    main()
