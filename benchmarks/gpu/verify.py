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

from fastmerge import kernels

from ..kernels.cases import CASES
from ..kernels.plain_torch import MERGES
from .cases import OPERATIONS, Case, make_inputs, verify
from .timing import backends_on

# Several chunks of the reduction grid, with and without an odd end.
VERIFY_ELEMENTS = (8 * kernels.GRID + 12345, 8 * kernels.GRID)


def verified(
    device: torch.device, case: Case, elements: int, models: int, dtype: torch.dtype, **width: float
) -> list[str]:
    """Return the backends that have this operation; AssertionError if one has other bits than the reference."""
    backends = [backend for backend in backends_on(device) if case.can_run(device, backend)]
    verify(case, make_inputs(case, elements, models, dtype, torch.device("cpu"), 1, **width), device, backends)
    return backends


def every(case: Case, device: torch.device) -> str:
    """Verify an operation at every point that is timed."""
    from .operations import points

    for _, models, dtype in dict.fromkeys((0, *point[1:]) for point in points(check=False)):
        for elements in VERIFY_ELEMENTS:
            backends = verified(device, case, elements, models, dtype)
    return f"{case.name}: {', '.join(backends)}"


def compiled(method: str, device: torch.device) -> str:
    """Compile plain PyTorch for the tensors that are timed."""
    from .methods import SIZES, make_tensors

    case = next(case for case in CASES if case.method == method)
    tensors = case.shaped(make_tensors(SIZES[0], device, 0))[: case.inputs]
    torch.compile(MERGES[method])(tensors, **case.values)
    return f"torch.compile of {method}"


def _task(kind: str, index: int, device: str) -> tuple[str, bool]:
    try:
        if kind == "operation":
            return every(OPERATIONS[index], torch.device(device)), True
        return compiled(CASES[index].method, torch.device(device)), True
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
            backends = verified(device, case, elements, 3, torch.bfloat16)
            print(f"{case.name} of {elements} elements: {', '.join(backends)}", flush=True)
    return 0


def _in_processes(device: str) -> int:
    tasks: Sequence[tuple[str, int]] = [("method", i) for i in range(len(CASES))]
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
