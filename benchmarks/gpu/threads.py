"""Times streamed merges from pinned memory by 4 to 32 threads, and asks py-spy who holds the interpreter's lock."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from .._bench import Bench, Contender
from ..bus import shares_of
from ..kernels.cases import CASES
from .cases import TINY
from .streamed import BUDGET, PART, PINNED, host_models, merge, outputs, transfers

METHODS = ("linear", "ties")
THREADS = (4, 8, 18, 32)
# What all runs of a method may take, and what is sampled.
METHOD_SECONDS, SAMPLED_SECONDS = 20, 3
# PR_SET_PTRACER of prctl(2), and any process: a child may look at its parent then.
PTRACER, ANY = 0x59616D61, -1


def run(bench: Bench) -> None:
    _, models = host_models(bench)
    for method in METHODS:
        case = next(case for case in CASES if case.method == method)
        tensors = outputs(case, TINY if bench.check else PART)
        elements = sum(tensor.nbytes for tensor in tensors) // 2
        if not bench.has(METHOD_SECONDS, method):
            continue
        with bench.attempt(method):
            for threads in THREADS:
                bench.measure(
                    f"{method}, streamed, pinned, {threads} threads",
                    [Contender("fastmerge", merge(bench, tensors, models, PINNED, threads), "auto")],
                    shape=elements, dtype=torch.bfloat16, models=case.inputs, once=case.bytes_once(elements, 2),
                    clock=bench.on_wall, bound=transfers(bench, 2 * elements, case.inputs), budget=BUDGET, warm=True,
                )  # fmt: skip
            if not bench.check and shutil.which("py-spy"):
                one = merge(bench, tensors, models, PINNED)
                with tempfile.TemporaryDirectory() as folder:
                    shares = _sampled(Path(folder) / "stacks", one)
                print(
                    f"{method}: checksums are {shares[0]:.1%} of py-spy's samples of the lock, {shares[1]:.1%} of those"
                    " of workers",
                    flush=True,
                )


def _sampled(stacks: Path, run) -> tuple[float, float]:
    """Run for some seconds while py-spy looks at this process, and return the shares of checksums."""
    ctypes.CDLL(None).prctl(PTRACER, ctypes.c_ulong(ANY))
    command = ["py-spy", "record", "--pid", str(os.getpid()), "--gil", "--rate", "500", "--format", "raw"]
    process = subprocess.Popen([*command, "--duration", str(SAMPLED_SECONDS), "--output", str(stacks)])
    end = time.monotonic() + SAMPLED_SECONDS
    while time.monotonic() < end:
        run()
    if process.wait() != 0:
        raise RuntimeError("py-spy may not look at this process")
    return shares_of(stacks)
