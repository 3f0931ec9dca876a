"""Shows what the host does per small tensor of one call on a GPU: ``python -m benchmarks.calls``. No GPU is needed.

The sources of the CUDA backend are compiled for the emulator of the tests, optimized. First its kernels run, and their
results are compared with the reference. Then they are left out: all that is timed is the host's work, in the thread's
processor time, from the checks to the tables of each launch. What a driver takes per launch (a launch serves 32 to 240
tensors here) and what a GPU takes is not in it. ``checks``, ``packing`` and ``native`` are parts of it; the rest
chooses a backend, allocates, and makes what is returned.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from fastmerge import kernels
from fastmerge.kernels import _checks, _cuda, _native, _registry
from fastmerge.kernels._cuda import select as cuda_select

from . import _record
from .inventory import make_inputs

TENSORS, MODELS, ELEMENTS = 300, 3, 32
# Of an operation, while no kernel runs; the least counts, since other processes share the caches.
RUNS = 100
PARTS = ("checks", "packing", "native", "all")
COLUMNS = (*_record.RUN_COLUMNS, "op", "tensors", "models", *(f"{part}_us" for part in PARTS))
PACKED = {"weighted_sum": _native.sums, "sparse_merge": _native.merges, "select": _native.selections}


@contextlib.contextmanager
def emulated() -> Iterator[tuple[ModuleType, Callable[[bool], object]]]:
    """Yield the extension for the CPU, which operations take meanwhile, and what lets its kernels run or not."""
    sys.path.insert(0, str(_record.ROOT / "tests" / "support"))
    import cuda_emulation

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        library = cuda_emulation.build(Path(folder), extra=("-O2",))
        extension = cuda_emulation.load(library)
        stack.enter_context(mock.patch.object(_cuda, "_load", lambda: (extension, None)))
        stack.enter_context(mock.patch.dict(_registry.PREFERENCE, {"cpu": ("cuda", "reference")}))
        yield extension, ctypes.CDLL(str(library)).fastmerge_emulated_kernels


def make_jobs(count: int) -> dict[str, list[Any]]:
    """Return jobs of each operation on tensors that cost the emulator next to nothing; the host does not see sizes."""
    inputs = [make_inputs(True, ELEMENTS, MODELS, torch.bfloat16, torch.device("cpu"), seed) for seed in range(count)]
    outs = [torch.empty_like(tensors[0]) for tensors in inputs]
    keeps = [kernels.keep_random(1, model, 2**31) for model in range(MODELS)]
    merge = {"factors": [0.5] * MODELS, "keeps": keeps, "vote": "weighted", "divide": "weights"}
    return {
        "weighted_sum": [
            kernels.SumJob(out, tensors, [0.25] * (MODELS + 1)) for out, tensors in zip(outs, inputs, strict=True)
        ],
        "sparse_merge": [
            kernels.MergeJob(out, base, models, **merge) for out, (base, *models) in zip(outs, inputs, strict=True)
        ],
        "select": [kernels.SelectJob(models, base, [[ELEMENTS // 2]] * MODELS) for base, *models in inputs],
    }


def measure(operation: str, jobs: list[Any], extension: ModuleType, runs: int, let_run: Callable) -> dict[str, float]:
    """Return the microseconds per tensor of each part, once the results are those of the reference."""
    module = importlib.import_module(f"fastmerge.kernels.{operation}")
    many = getattr(kernels, {"select": "select_boundaries"}.get(operation, operation) + "_many")

    def result(backend: str) -> object:
        return many(jobs, backend=backend) or [job.out.clone() for job in jobs]

    kept: list[torch.Tensor] = []
    download = cuda_select.download
    with mock.patch.object(cuda_select, "download", lambda rows: kept.append(rows) or download(rows)):
        found, expected = result("cuda"), result("reference")
    same = found == expected if operation == "select" else all(map(torch.equal, found, expected))
    assert same, f"{operation}: the emulator has other bits than the reference"

    checked = _checks.checked_jobs(jobs, module._checked)
    # What a selection searches: every rank here.
    packed = PACKED[operation]([item.job for item in checked] if operation == "select" else checked)
    calls: dict[str, Callable[[], object]] = {
        "checks": lambda: _checks.checked_jobs(jobs, module._checked),
        "packing": lambda: PACKED[operation](jobs if operation == "select" else checked),
        "native": lambda: getattr(extension, operation)(*packed, (0, 0)),
        "all": lambda: many(jobs, backend="cuda"),
    }
    if operation == "select":
        settings, rows = (cuda_select.DEVIATIONS, cuda_select.SPARE, cuda_select.WORKSPACE), kept[0].data_ptr()
        calls["native"] = lambda: (
            extension.select_workspace(packed, settings), extension.select(rows, 0, packed, settings, (0, 0)),
        )  # fmt: skip
    let_run(False)
    try:
        # Without kernels nothing is written: the answers are those of before.
        with mock.patch.object(cuda_select, "download", lambda rows: lambda: kept[0]):
            return {part: 1e6 * _least(call, runs) / len(jobs) for part, call in calls.items()}
    finally:
        let_run(True)


def _least(call: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        begin = time.thread_time()
        call()
        times.append(time.thread_time() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--check", action="store_true", help="dry run on few tensors")
    parser.add_argument("--csv", type=Path, help="append the rows, e.g. to benchmarks/data/calls.csv")
    options = parser.parse_args()
    jobs = make_jobs(3 if options.check else TENSORS)
    with emulated() as (extension, let_run):
        for operation, work in jobs.items():
            times = measure(operation, work, extension, 1 if options.check else RUNS, let_run)
            parts = ", ".join(f"{part} {times[part]:.2f}" for part in PARTS[:-1])
            print(f"{operation}_many of {len(work)}: the host takes {times['all']:.2f} us per tensor ({parts})")
            if options.csv:
                facts = _record.run_facts(1) | {"op": f"{operation}_many", "tensors": len(work), "models": MODELS + 1}
                row = facts | {f"{part}_us": round(times[part], 2) for part in PARTS}
                _record.append(options.csv, COLUMNS, [row])


if __name__ == "__main__":
    main()
