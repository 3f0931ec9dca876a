"""Makes the table of errors: ``python -m benchmarks.accuracy --mergekit-python PATH``.

Exits with status 1 where a method of fastmerge is farther from its formula than its peer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fastmerge.methods import all_methods
from fastmerge.recipe import mergekit_names

from .._mergekit import MergekitPeer
from . import spectral
from .cases import DTYPES, SEEDS, Merge
from .formulas import FORMULAS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- accuracy: begin -->\n", "<!-- accuracy: end -->"
BACKENDS = ("reference", "cpu")
COLUMNS = ("method", "dtype", *BACKENDS, "peer")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument(
        "--mergekit-python", metavar="PATH", help="interpreter that has mergekit; without it no such column"
    )
    parser.add_argument("--methods", nargs="+", default=list(all_methods()), help="by default all")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.write and not (options.mergekit_python and {*options.methods} == {*all_methods()}):
        parser.error("--write makes the whole table: it goes with --mergekit-python and without --methods")
    merges = [Merge(m, dtype, seed) for m in options.methods for dtype in DTYPES for seed in SEEDS]
    peers = _mergekit(options.mergekit_python, merges) if options.mergekit_python else {}
    rows, worse = [COLUMNS, ("---",) * len(COLUMNS)], []
    for method in options.methods:
        for dtype in DTYPES:
            group = [Merge(method, dtype, seed) for seed in SEEDS]
            own = [max(merge.error(*merge.own(backend)) for merge in group) for backend in BACKENDS]
            peer, name = _peer(group, peers)
            peers_error = "" if peer is None else f"{_shown(peer)} ({name})"
            rows.append((f"`{method}`", str(dtype).removeprefix("torch."), *map(_shown, own), peers_error))
            if peer is not None and max(own) > peer:
                worse.append(f"{method} in {dtype}: {max(own):.4f} beside {peer:.4f} of {name}")
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    print(table)
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + table + "\n" + END + rest.partition(END)[2])
    print("\n".join(worse), file=sys.stderr)
    sys.exit(bool(worse))


def _shown(error: float) -> str:
    return f"{error:.2f}" if error < 100 else f"{error:.3g}"


def _peer(group: list[Merge], results: dict[str, tuple[Tensor, list[Tensor]]]) -> tuple[float | None, str]:
    """Return the largest error of a method's peer: mergekit, or the formula in PyTorch in the dtype of the inputs."""
    first = group[0]
    if first.method in mergekit_names.METHODS:
        if first.name not in results:
            return None, ""
        return max(merge.error(*results[merge.name]) for merge in group), "mergekit"
    # There are no decompositions in less than float32.
    dtype = torch.float32 if FORMULAS[first.method].__module__ == spectral.__name__ else first.dtype
    return max(merge.error(merge.formula(dtype)[0]) for merge in group), "torch"


def _mergekit(python: str, merges: list[Merge]) -> dict[str, tuple[Tensor, list[Tensor]]]:
    """Return what mergekit makes of the merges that it knows, and the masks that it drew."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = MergekitPeer(python, Path(folder), torch.get_num_threads())
        for merge in (merge for merge in merges if merge.method in mergekit_names.METHODS):
            base, tensors = merge.inputs()
            every = tensors if base is None else [base, *tensors]
            peer.give(every)
            peer.merge(merge.method, merge.group.values, len(every), merge.has_base, save=True)
            results[merge.name] = peer.saved()
        peer.close()
    return results


if __name__ == "__main__":
    main()
