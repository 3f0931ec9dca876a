"""Time the inner functions: ``python -m benchmarks.kernels``. Verifies first, then times all contenders in turns."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from fastmerge.kernels import _native

from .. import _record
from .._bench import Bench
from . import methods
from .cases import CASES, OTHERS, WHOLE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    every = {case.method: case for case in (*CASES, *OTHERS, *WHOLE)}
    parser.add_argument(
        "--ops", nargs="+", default=[case.method for case in CASES], metavar="METHOD", choices=[*every, "all"],
        help=f"of {', '.join(every)}, or all; default: {', '.join(case.method for case in CASES)}",
    )  # fmt: skip
    parser.add_argument("--millions", nargs="+", type=int, default=[16, 64], help="elements per tensor, times 2**20")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument(
        "--mergekit-python", metavar="PATH", help="interpreter that has mergekit; without it no such rows"
    )
    parser.add_argument("--runs", type=int, default=15, help="most runs of each contender")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of runs after which a contender stops")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "kernels.csv")
    options = parser.parse_args()
    cases, failures = [case for name, case in every.items() if {name, "all"} & set(options.ops)], 0
    for threads in options.threads:
        torch.set_num_threads(threads)
        if _native.why_no_cpu_extension() is None:
            _native.cpu_extension().set_threads(threads)
        bench = Bench(
            options.csv, "cpu", options.mergekit_python, runs=options.runs, budget=options.budget
        )  # fmt: skip
        for millions in options.millions:
            methods.run(bench, cases, millions << 20)
        failures += bench.failures
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
