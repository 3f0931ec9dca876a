"""Proves and times the GPU backends in one go: ``python -m benchmarks.gpu --out FOLDER``, in about ten minutes.

Compiles every kernel for the GPUs at hand, runs the GPU tests, then compute-sanitizer where it is installed, then the
timings, and leaves a log per step and ``gpu.csv`` in the folder. ``--check`` is a dry run of the timings on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .._record import ROOT

SANITIZED_ELEMENTS = 20001


def steps(out: Path, check: bool, mergekit_python: str | None) -> dict[str, tuple[list[str], int]]:
    """Return the commands by name, each with its limit in seconds."""
    python = sys.executable
    timing = [python, "-m", "benchmarks.gpu.timing", "--csv", str(out / ("check.csv" if check else "gpu.csv"))]
    if check:
        # The tests' own dry run is tests/triton/test_interpreter.py.
        return {"timing": ([*timing, "--check"], 300)}
    tests = [python, "-m", "pytest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", "tests/triton"]
    if importlib.util.find_spec("xdist"):
        tests += ["-n", str(min(8, os.cpu_count() or 1))]
    commands = {"device": (["nvidia-smi"], 30), "compiled": ([python, "-m", "benchmarks.gpu.compiled", "--brief"], 90)}
    commands["tests"] = (tests, 180)
    if sanitizer := shutil.which("compute-sanitizer"):
        verify = [*timing, "--verify", str(SANITIZED_ELEMENTS)]
        for tool in ("memcheck", "racecheck"):
            commands[f"sanitizer {tool}"] = ([sanitizer, "--tool", tool, "--error-exitcode", "1", *verify], 45)
    peer = ["--mergekit-python", mergekit_python] if mergekit_python else []
    commands["timing"] = ([*timing, *peer], 300)
    return commands


def run(name: str, command: list[str], limit: int, out: Path, environment: dict[str, str]) -> bool:
    """Run one step, print its last line, and return whether it succeeded."""
    log = out / f"{name.replace(' ', '_')}.log"
    start = time.monotonic()
    with log.open("w") as file:
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit} s"
    lines = log.read_text().strip().splitlines() or [""]
    print(f"{name:20} {time.monotonic() - start:6.1f} s  exit {code}  {lines[-1]}", flush=True)
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for logs and rows; made if missing")
    parser.add_argument("--mergekit-python", metavar="PATH", help="interpreter that has mergekit, with CUDA")
    parser.add_argument("--check", action="store_true", help="dry run on the CPU, in Triton's interpreter")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if options.check:
        environment["TRITON_INTERPRET"] = "1"
    results = [
        run(name, command, limit, out, environment)
        for name, (command, limit) in steps(out, options.check, options.mergekit_python).items()
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
