"""Proves and times the GPU backends in one go: ``python -m benchmarks.gpu --out FOLDER``, in less than ten minutes.

Builds fastmerge in the interpreter that runs this, without a network; runs the GPU tests, compute-sanitizer
and the reports on compiled kernels, side by side; then times, the most valuable first. FOLDER then holds
``log.txt`` (all that the steps printed), ``gpu.csv`` and ``gpu_spectral.csv`` (rows) and ``summary.txt`` (steps, and
goals beside what was measured). A step that fails or runs out of time does not stop the others; the exit status is then
1. ``--check`` is a dry run of the timings on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .._record import ROOT
from .goals import report

# Around blocks and chunks of the grid of reductions, small enough for compute-sanitizer.
SANITIZED_ELEMENTS = ("1", "1023", "20001", "49157")
CHECK_SECONDS = 300
SECONDS = "SECONDS"
# Of a step's output, in the log.
LOG_BYTES = 1 << 19


# What the build and the steps import; the rest of pyproject.toml's test dependencies only widens the tests.
NEEDED = (
    "torch", "numpy", "safetensors", "pydantic", "yaml", "click", "rich", "xxhash", "pip", "setuptools", "pybind11",
    "pytest",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name:        as ``--only`` and the log name it.
        command:     what is run, at the root of the repository; SECONDS stands for the time that it has.
        environment: added to that of all.
        says:        part of the last line of its output, without which it has failed.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    says: str = ""


@dataclass(frozen=True)
class Stage:
    """Steps that run side by side, and the seconds that they have. What earlier stages left over is added."""

    seconds: int
    steps: list[Step]


def stages(csv: Path, mergekit_python: str | None, commit: str | None, path: str) -> list[Stage]:
    """Return what is run, in this order; tools are looked for on ``path``."""
    python = sys.executable

    def step(name: str, *command: str, **environment: str) -> Step:
        return Step(name, list(command), environment)

    def module(name: str, *arguments: str, **environment: str) -> Step:
        return step(name, python, "-m", *arguments, **environment)

    def timing(name: str, *arguments: str) -> Step:
        return module(name, "benchmarks.gpu.measure", name, "--csv", str(csv), "--seconds", SECONDS, *known, *arguments)

    known = ["--commit", commit] if commit else []
    insist = "1" if shutil.which("nvcc", path=path) else "auto"
    nvcc = {"FASTMERGE_CUDA": os.environ.get("FASTMERGE_CUDA", insist)}
    install = ("pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-e", ".")
    tests = ["pytest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors", "tests"]
    if importlib.util.find_spec("xdist"):
        tests += ["-n", str(min(8, os.cpu_count() or 1))]
    few = {"OMP_NUM_THREADS": "2"}
    # Tests skip what they cannot run; a run that only skips proves nothing.
    checks = [
        Step("tests", [python, "-m", *tests], few, says=" passed"),
        module("verify", "benchmarks.gpu.verify", "--every", **few),
        module("doctor", "fastmerge", "doctor"),
    ]
    for tool in ("memcheck", "racecheck"):
        # PyTorch asks the driver for what it may not have; our own calls have their errors checked.
        options = ["--error-exitcode", "1", *(["--report-api-errors", "no"] if tool == "memcheck" else [])]
        checks.append(
            step(
                tool, "compute-sanitizer", "--tool", tool, *options, python, "-m", "benchmarks.gpu.verify",
                *SANITIZED_ELEMENTS,
                # Every tensor is an allocation of its own, so that its end is guarded.
                PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            )
        )  # fmt: skip
    checks += [
        module("compiled", "benchmarks.gpu.compiled", "--brief"),
        module("compiled_cuda", "benchmarks.gpu.compiled_cuda"),
    ]
    peer = ["--mergekit-python", mergekit_python] if mergekit_python else []
    return [
        Stage(80, [step("device", "nvidia-smi"), module("build", *install, **nvcc)]),
        Stage(100, checks),
        Stage(15, [timing("transfers")]),
        Stage(80, [timing("methods", *peer)]),
        Stage(40, [timing("model")]),
        Stage(80, [timing("operations")]),
        Stage(50, [timing("streamed")]),
        Stage(40, [timing("files")]),
        Stage(85, [timing("spectral")]),
    ]


def dry_run(csv: Path) -> list[Stage]:
    """Return the timings on the CPU, all in one process. The tests have dry runs of their own."""
    command = [sys.executable, "-m", "benchmarks.gpu.measure", "all", "--check", "--csv", str(csv)]
    return [Stage(CHECK_SECONDS, [Step("check", command)])]


def run(step: Step, limit: float, environment: Mapping[str, str], log: Path) -> tuple[str, bool]:
    """Run one step, add its output to the log, and return a line about it and whether it succeeded."""
    start, limit = time.monotonic(), max(1.0, limit)
    command = [f"{limit:.0f}" if part == SECONDS else part for part in step.command]
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**environment, **step.environment}, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            # Its children too: workers of pytest, mergekit's interpreter.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = f"stopped after {limit:.0f} s"
        except OSError as error:
            code = str(error)
        seconds = time.monotonic() - start
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - LOG_BYTES))
        text = output.read().decode(errors="replace")
    with log.open("a") as file:
        file.write(f"==== {step.name}: {' '.join(command)}\n{text}\n==== {step.name}: exit {code}\n\n")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return f"{step.name:13} {seconds:6.1f} s  exit {code}  {last[:150]}", code == 0 and step.says in last


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made if missing")
    parser.add_argument("--mergekit-python", metavar="PATH", help="interpreter that has mergekit, with CUDA")
    parser.add_argument("--commit", help="in the rows, where the checkout came without its repository")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run these steps alone, in the time of all")
    parser.add_argument("--check", action="store_true", help="dry run of the timings on the CPU")
    options = parser.parse_args()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        parser.error(f"{sys.executable} lacks {', '.join(missing)}; benchmarks/README.md says how to bring them")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    toolkit = Path(environment.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    environment["PATH"] = f"{environment.get('PATH', os.defpath)}{os.pathsep}{toolkit}"
    csv, log, summary = out / ("check.csv" if options.check else "gpu.csv"), out / "log.txt", out / "summary.txt"
    plan = dry_run(csv) if options.check else stages(csv, options.mergekit_python, options.commit, environment["PATH"])
    names = [step.name for stage in plan for step in stage.steps]
    if unknown := set(options.only or names) - set(names):
        parser.error(f"--only names no step: {', '.join(sorted(unknown))}; steps are {', '.join(names)}")
    for path in (log, summary, csv, csv.with_stem(f"{csv.stem}_spectral")):
        path.unlink(missing_ok=True)
    start, passed = time.monotonic(), True
    end = sum(stage.seconds for stage in plan) if options.only else 0

    def say(text: str) -> None:
        print(text, flush=True)
        with summary.open("a") as file:
            file.write(text + "\n")

    for stage in plan:
        end += 0 if options.only else stage.seconds
        steps = [step for step in stage.steps if step.name in (options.only or names)]
        with ThreadPoolExecutor(len(stage.steps)) as pool:
            limit = end - (time.monotonic() - start)
            for line, succeeded in pool.map(lambda step, limit=limit: run(step, limit, environment, log), steps):
                say(line)
                passed &= succeeded
    say(f"\n{report(csv)}")
    return 0 if passed else 1


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
