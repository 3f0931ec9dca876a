"""Compares operations on a GPU with the reference on the CPU: ``python -m benchmarks.gpu.verify ELEMENTS ...``.

For compute-sanitizer, on small tensors. ``--every`` takes every point that is timed instead, and compiles what plain
PyTorch is compiled to, in several processes: the timings, which verify again, then find all of it in the caches.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from .._bench import backends_on
from ..inventory import CASES as OPERATIONS
from ..kernels.cases import CASES as METHODS
from ..kernels.methods import make_tensors
from ..kernels.plain_torch import MERGES
from .cases import MODELS, SIZES, VERIFY_ELEMENTS, sweep, verified


def _every(index: int, device: torch.device) -> str:
    """Verify an operation at every point that is timed."""
    case = OPERATIONS[index]
    for _, models, dtype in dict.fromkeys((0, *point[1:]) for point in sweep(case)):
        for elements in VERIFY_ELEMENTS:
            backends = verified(device, case, (elements, models, dtype))
    return f"{case.name}: {', '.join(backends)}"


def _compiled(index: int, device: torch.device) -> str:
    """Compile plain PyTorch for the tensors that are timed."""
    case = METHODS[index]
    tensors = case.shaped(make_tensors(SIZES[0], device, 0))[: case.inputs]
    torch.compile(MERGES[case.method])(tensors, **case.values)
    return f"torch.compile of {case.method}"


def _task(kind: str, index: int, device: str) -> tuple[str, bool]:
    try:
        return (_every if kind == "operation" else _compiled)(index, torch.device(device)), True
    except Exception:
        return f"{kind} {index} FAILED\n{traceback.format_exc()}", False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.verify", description=__doc__)
    parser.add_argument("elements", nargs="*", type=int, help="per tensor")
    parser.add_argument("--every", action="store_true", help="every point that is timed")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.every:
        return _in_processes(options.device)
    device = torch.device(options.device)
    if not backends_on(device):
        parser.error(f"no backend runs on {device}; the reasons are above")
    for elements in options.elements:
        for case in OPERATIONS:
            backends = verified(device, case, (elements, case.models or MODELS, torch.bfloat16))
            print(f"{case.name} of {elements} elements: {', '.join(backends)}", flush=True)
    return 0


def _in_processes(device: str) -> int:
    tasks: Sequence[tuple[str, int]] = [("method", i) for i in range(len(METHODS))]
    tasks = [*tasks, *(("operation", i) for i in range(len(OPERATIONS)))]
    failures = 0
    # A process that uses a GPU cannot be forked.
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        for line, passed in pool.map(_task, *zip(*tasks, strict=True), [device] * len(tasks)):
            print(line, flush=True)
            failures += not passed
    print(f"{failures} failures", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
