"""Proves and times the GPU backends: ``python -m benchmarks.gpu --out FOLDER [PHASE ...]``, by default all phases.

A phase takes four minutes at most, and each can be run alone, in any order:

tests     the tests for GPUs, compute-sanitizer, and the reports on compiled kernels, side by side
kernels   copies, methods and operations on tensors in the GPU's memory
bus       what the host does for a GPU, and streamed merges by more and fewer threads
pipeline  a 70B model in memory, its tensors streamed from the host, and merges of files
spectral  Subspace Boosting of large matrices, and its pieces

Each begins by building fastmerge in the interpreter that runs this, without a network: seconds where nothing changed.
FOLDER gathers ``log.txt`` (all that the steps printed), ``gpu.csv`` and ``gpu_spectral.csv`` (rows) and ``summary.txt``
(a line per step; then the goals, met or missed, by all rows so far). A step that fails or runs out of time does not
stop the others; the exit status is then 1. ``--check`` is a dry run of the timings on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .._record import ROOT
from .goals import report

PHASES = ("tests", "kernels", "bus", "pipeline", "spectral")
# Around blocks and chunks of the grid of reductions, small enough for compute-sanitizer.
SANITIZED_ELEMENTS = ("1", "1023", "20001", "49157")
CHECK_SECONDS = 300
SECONDS = "SECONDS"
# Of a step's output, in the log.
LOG_BYTES = 1 << 19


# What the build and the steps import; the rest of pyproject.toml's test dependencies only widens the tests. Looked up
# as distributions: where pip is looked up as a module, setuptools leaves its distutils to the standard library's.
NEEDED = (
    "torch", "numpy", "safetensors", "pydantic", "PyYAML", "click", "rich", "xxhash", "pip", "setuptools", "pybind11",
    "pytest",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name:        as the log names it.
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


def phases(csv: Path, mergekit_python: str | None, commit: str | None, path: str) -> dict[str, list[Stage]]:
    """Return what each phase runs, in this order; tools are looked for on ``path``."""
    python = sys.executable
    known = ["--commit", commit] if commit else []
    peer = ["--mergekit-python", mergekit_python] if mergekit_python else []

    def timing(seconds: int, name: str, *arguments: str) -> Stage:
        measure = ("benchmarks.gpu.measure", name, "--csv", str(csv), "--seconds", SECONDS, *known, *arguments)
        return Stage(seconds, [Step(name, [python, "-m", *measure])])

    insist = "1" if shutil.which("nvcc", path=path) else "auto"
    nvcc = {"FASTMERGE_CUDA": os.environ.get("FASTMERGE_CUDA", insist)}
    install = ("pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-e", ".")
    build = [Step("device", ["nvidia-smi"]), Step("build", [python, "-m", *install], nvcc)]
    return {
        "tests": [Stage(60, build), Stage(175, _checks(python))],
        "kernels": [
            Stage(40, build), timing(10, "transfers"), timing(60, "methods", *peer), timing(125, "operations"),
        ],
        "bus": [Stage(40, build), timing(60, "host"), timing(100, "threads")],
        "pipeline": [Stage(40, build), timing(45, "model"), timing(90, "streamed"), timing(60, "files")],
        "spectral": [Stage(40, build), timing(130, "spectral"), timing(65, "spectral_pieces")],
    }  # fmt: skip


def _checks(python: str) -> list[Step]:
    """Return what proves the kernels, all of it side by side."""

    def module(name: str, *arguments: str, **environment: str) -> Step:
        return Step(name, [python, "-m", *arguments], environment)

    tests = ["pytest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors", "tests"]
    if importlib.util.find_spec("xdist"):
        tests += ["-n", str(min(8, os.cpu_count() or 1))]
    few = {"OMP_NUM_THREADS": "2"}
    steps = [
        # Tests skip what they cannot run; a run that only skips proves nothing.
        Step("tests", [python, "-m", *tests], few, says=" passed"),
        module("verify", "benchmarks.gpu.verify", "--every", **few),
        module("doctor", "fastmerge", "doctor"),
        module("compiled", "benchmarks.gpu.compiled", "--brief"),
        module("compiled_cuda", "benchmarks.gpu.compiled_cuda"),
    ]
    for tool in ("memcheck", "racecheck"):
        # PyTorch asks the driver for what it may not have; our own calls have their errors checked.
        options = ["--error-exitcode", "1", *(["--report-api-errors", "no"] if tool == "memcheck" else [])]
        verify = [python, "-m", "benchmarks.gpu.verify", *SANITIZED_ELEMENTS]
        # Every tensor is an allocation of its own, so that its end is guarded.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        steps.append(Step(tool, ["compute-sanitizer", "--tool", tool, *options, *verify], environment))
    return steps


def dry_run(csv: Path) -> dict[str, list[Stage]]:
    """Return the timings on the CPU, all in one process. The tests have dry runs of their own."""
    command = [sys.executable, "-m", "benchmarks.gpu.measure", "all", "--check", "--csv", str(csv)]
    return {"check": [Stage(CHECK_SECONDS, [Step("check", command)])]}


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


def run_phase(stages: Sequence[Stage], environment: Mapping[str, str], log: Path, say: Callable[[str], None]) -> bool:
    """Run the stages of a phase and return whether every step succeeded."""
    start, end, passed = time.monotonic(), 0.0, True
    for stage in stages:
        end += stage.seconds
        with ThreadPoolExecutor(len(stage.steps)) as pool:
            limit = end - (time.monotonic() - start)
            for line, succeeded in pool.map(lambda step, limit=limit: run(step, limit, environment, log), stage.steps):
                say(line)
                passed &= succeeded
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("phases", nargs="*", metavar="PHASE", help=f"by default all: {', '.join(PHASES)}")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made if missing")
    parser.add_argument("--mergekit-python", metavar="PATH", help="interpreter that has mergekit, with CUDA")
    parser.add_argument("--commit", help="in the rows, where the checkout came without its repository")
    parser.add_argument("--check", action="store_true", help="dry run of the timings on the CPU")
    options = parser.parse_args()
    present = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    if missing := [name for name in NEEDED if name.lower() not in present]:
        parser.error(f"{sys.executable} lacks {', '.join(missing)}; benchmarks/README.md says how to bring them")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    toolkit = Path(environment.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    environment["PATH"] = f"{environment.get('PATH', os.defpath)}{os.pathsep}{toolkit}"
    csv, log, summary = out / ("check.csv" if options.check else "gpu.csv"), out / "log.txt", out / "summary.txt"
    path = environment["PATH"]
    plan = dry_run(csv) if options.check else phases(csv, options.mergekit_python, options.commit, path)
    if unknown := set(options.phases) - set(plan):
        parser.error(f"there is no phase {', '.join(sorted(unknown))}; phases are {', '.join(plan)}")

    def say(text: str) -> None:
        print(text, flush=True)
        with summary.open("a") as file:
            file.write(text + "\n")

    passed = True
    for phase in options.phases or plan:
        say(f"== {phase}")
        passed &= run_phase(plan[phase], environment, log, say)
        say(f"\n{report(csv)}\n")
    return 0 if passed else 1


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
