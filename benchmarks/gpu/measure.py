"""Runs steps of the timings: ``python -m benchmarks.gpu.measure STEP ... --csv FILE``. Each verifies before it times.

With ``--check`` the same code runs on the CPU, on tiny tensors: it tests this program, and its rows say so.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from pathlib import Path

from .._bench import Bench
from .goals import report

STEPS = (
    "transfers",
    "methods",
    "model",
    "operations",
    "host",
    "threads",
    "streamed",
    "files",
    "spectral",
    "spectral_pieces",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.measure", description=__doc__)
    parser.add_argument("steps", nargs="+", choices=[*STEPS, "all"], metavar="STEP", help=f"all, or {', '.join(STEPS)}")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--mergekit-python", metavar="PATH", help="interpreter that has mergekit, with CUDA")
    parser.add_argument("--seconds", type=float, default=math.inf, help="until the step is stopped")
    parser.add_argument("--commit", help="in the rows, where there is no repository to ask")
    parser.add_argument("--check", action="store_true", help="dry run on the CPU")
    options = parser.parse_args()
    bench = Bench(options.csv, "cuda", options.mergekit_python, options.check, options.seconds, options.commit)
    if not bench.backends:
        parser.error("no backend runs on this GPU; the reasons are above")
    for step in STEPS if "all" in options.steps else options.steps:
        importlib.import_module(f"{__package__}.{step}").run(bench)
    measured = [line for line in report(options.csv).splitlines() if not line.startswith("not measured")]
    print("\n".join([*measured, f"{bench.failures} failures"]), flush=True)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
