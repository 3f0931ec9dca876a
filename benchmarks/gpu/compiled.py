"""What the Triton kernels compile to, without a GPU: ``python -m benchmarks.gpu.compiled``.

Compiles every kernel ahead of time through the launches that a GPU would see, prints registers, shared memory and the
width of loads, and fails on a spill, on a narrow load of tensor data, and on a fused multiply-add outside of divisions.
With ``--brief`` it also fails where a kernel has more registers or instructions than ``limits.json`` allows.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from fastmerge import kernels
from fastmerge.kernels import _registry
from fastmerge.kernels._triton import _launch, split_product

from .. import limits
from ..inventory import CALLS, Inputs
from ._sass import Instructions, Report, show

ARCHITECTURES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# A multiple of every block, so that no masked launch is compiled; memory of the CPU that is never read.
NUMEL = 1 << 16
# These read tables, or a sample of a tensor.
SMALL_KERNELS = ("_descend_kernel", "_sample_kernel")
# This one has tiles come by tensor-memory copies. What it adds to them it loads as tensor cores hold it: 32 bytes of a
# row are two numbers of each of four threads.
BY_COPIES = ("_hopper_product_kernel",)
COMPILER = "Triton " + ".".join(triton.__version__.split(".")[:2])
TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA")


class _Target:
    """Stands for a driver: says for which GPU to compile."""

    def __init__(self, arch: int):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def _inputs(count: int, dtype: torch.dtype, based: bool = True, numel: int = NUMEL) -> Inputs:
    out, base, *tensors = (torch.empty(numel, dtype=dtype) for _ in range(count + 2))
    return Inputs(out, tensors, base if based else None)


B, F = torch.bfloat16, torch.float32
# Operation, models, dtype, variant. ``brief`` takes the first ones of each operation: see ``FEW``.
VARIANTS: tuple[tuple[str, int, torch.dtype, dict[str, Any]], ...] = (
    *(("weighted_sum", *shape, {}) for shape in ((3, B), (0, B), (15, B), (3, F))),
    ("sparse_merge", 3, B, {"keeps": "top", "vote": "weighted", "divide": "weights"}),
    ("sparse_merge", 3, B, {"keeps": "random", "vote": "weighted", "divide": "none"}),
    ("sparse_merge", 3, B, {"keeps": "masked", "vote": "weighted", "divide": "weights"}),
    ("sparse_merge", 3, B, {"keeps": "all", "vote": "none", "divide": "none"}),
    ("sparse_merge", 3, F, {"keeps": "top", "vote": "weighted", "divide": "weights"}),
    ("sparse_merge", 3, B, {"keeps": "random", "vote": "none", "divide": "none"}),
    ("sparse_merge", 3, B, {"keeps": "columns", "vote": "weighted", "divide": "none"}),
    ("sparse_merge", 3, B, {"keeps": "band", "vote": "sum", "divide": "count"}),
    ("sparse_merge", 16, B, {"keeps": "band", "vote": "count", "divide": "weights"}),
    *(("gram", *shape, {}) for shape in ((4, B), (2, B), (8, B), (4, F))),
    *(("norms", 3, B, {"keeps": keeps}) for keeps in ("random", "top", "masked")),
    *(("magnitude_histogram", 3, B, {"level": level, "prefixes": [0] * 3 * level}) for level in (0, 1)),
    ("equal_counts", 3, B, {}),
    ("low_rank", 1, B, {}),
)
FEW = {"sparse_merge": 3}


def cases(brief: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield named calls of operations that together launch every kernel; ``brief`` leaves out variants."""
    seen: Counter[str] = Counter()
    for name, count, dtype, how in VARIANTS:
        seen[name] += 1
        if not brief or seen[name] <= FEW.get(name, 1):
            words = " ".join(f"{key} {value}" for key, value in how.items())
            yield f"{count} {dtype} {words}", functools.partial(CALLS[name], _inputs(count, dtype), **how)
    x, found = _inputs(2, B), kernels.FoundFactors(torch.empty(3), 0, (0.5, 0.5))
    yield f"2 {B} found", lambda: kernels.weighted_sum(x.out, x.tensors, found)
    if not brief:
        mixed = _inputs(5, B)
        mixed.tensors = [*mixed.tensors[:3], *_inputs(2, F).tensors]
        yield "5 mixed", lambda: CALLS["gram"](mixed)
    for dtype in (B,) if brief else (B, F):
        # Nothing is computed, so there is no result to ask for.
        for size in (NUMEL, NUMEL // 4):
            three = _inputs(3, dtype, numel=size)
            job = kernels.SelectJob(three.tensors, three.base, [[5]] * 3)
            yield f"3 {dtype} of {size}", lambda job=job: kernels.start_selection([job])
    for kind in ("gram", "square", "multiply", "narrow"):
        yield f"{kind} of 2 pieces", functools.partial(_split_products, kind)


def _split_products(kind: str) -> None:
    x = torch.empty(2, 256, 256)
    b, unit = split_product.split(x, torch.empty(2, 1, 1))
    a = tuple(part.mT for part in b) if kind == "gram" else b
    plus = None if kind == "gram" else x
    if kind == "narrow":
        b, plus = split_product.split(x[..., :64].contiguous(), torch.empty(2, 1, 1))[0], None
    symmetric, largest = kind in ("gram", "square"), torch.empty(2, 1, 1)
    split_product.product(a, b, (unit, unit), (256, b[0].shape[-1]), 256, symmetric, plus=plus, largest=largest)


def compile_all(arch: int, brief: bool) -> list[Report]:
    """Compile every case for a compute capability and report."""
    # No launch happens: each one only compiles, as a call to ``JITFunction.warmup`` does.
    compiled: list[tuple[str, CompiledKernel]] = []
    run = JITFunction.run

    def only_compile(self: JITFunction, *arguments, grid, warmup, **options):
        assert options["enable_fp_fusion"] is False
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        compiled.append((self.__name__, kernel))
        return kernel

    triton.runtime.driver.set_active(_Target(arch))
    JITFunction.run = only_compile
    _launch.capability = lambda device: divmod(arch, 10)
    found: dict[tuple[str, str], tuple[str, CompiledKernel]] = {}
    for operation in kernels.OPERATIONS.values():
        if "triton" in operation.implementations:
            operation.implementations["triton"].probe = lambda: None
    _registry.PREFERENCE["cpu"] = ("triton", "reference")
    with kernels.use_backend("triton"):
        for case, call in cases(brief):
            compiled.clear()
            call()
            for name, kernel in compiled:
                # The digits of a selection differ by constants only.
                found.setdefault((name, case if brief else kernel.hash), (case, kernel))
    JITFunction.run = run
    # Each waits for a disassembler.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda key: _report(arch, found[key][0], key[0], found[key][1]), found))


def _report(arch: int, case: str, name: str, kernel: CompiledKernel) -> Report:
    usage, sass = _disassemble(kernel.asm["cubin"])
    ptx, ttgir = kernel.asm["ptx"], kernel.asm["ttgir"]
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    loads = ("LDG.", "LDGSTS")
    wide, narrow = sass.wide(*loads), sass.narrow(*loads)
    # Scalars: entries of tables, and elements that serve a whole block.
    scalars = len(re.findall(r"tt\.load [^\n]*: !tt\.ptr", ttgir))
    # Entries of a table of quotients, per element of a thread.
    looked_up = re.findall(r"tt\.load [^\n]*: tensor<(\d+)x!tt\.ptr<i64>", ttgir)
    entries = sum(int(elements) for elements in looked_up) // (32 * kernel.metadata.num_warps)
    divisions = len(re.findall(r"\bdiv\.rn\.f32\b", ptx))
    faults = sass.faults(stack, divisions)
    if name in BY_COPIES:
        faults += [] if sass.number("UTMALDG") else ["no tensor-memory copies"]
    elif name not in SMALL_KERNELS and (wide == 0 or narrow > scalars + entries):
        faults.append(f"{narrow} narrow loads, {scalars} of them scalars, {entries} of tables")
    if "fma.rn.f32" in ptx:
        faults.append("fused multiply-adds in PTX")
    # Triton 3.7 compiles some loops around tensor cores to nothing on sm_100.
    if re.search(r"tt\.dot|warp_group_dot", kernel.asm.get("ttir", ttgir)) and not sass.number(*TENSOR_CORE):
        faults.append("no tensor-core instruction")
    # Where ptxas finds no other way it waits after each.
    if (products := sass.number("HGMMA")) and products <= (waits := sass.number("WARPGROUP.DEPBAR")):
        faults.append(f"{waits} waits for {products} tensor-core instructions")
    if re.search(r"\.(ftz|approx|full)\.f32", ptx):
        faults.append("arithmetic that is not IEEE float32")
    return Report(
        arch, case.replace("torch.", ""), name, registers, stack, kernel.metadata.shared,
        sass.counts.total(), wide, narrow, sass.wide("STG"), tuple(faults),
    )  # fmt: skip


def _disassemble(cubin: bytes) -> tuple[str, Instructions]:
    """Return the resource usage and the instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", "-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return text, Instructions(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.compiled", description=__doc__)
    parser.add_argument("--arch", nargs="+", type=int, default=ARCHITECTURES, help="compute capabilities, as 90")
    parser.add_argument("--brief", action="store_true", help="every kernel, but not every variant")
    parser.add_argument("--record", action="store_true", help="with --brief: write what was found to limits.json")
    options = parser.parse_args()
    if options.record and not options.brief:
        parser.error("--record goes with --brief")
    reports = [report for arch in options.arch for report in compile_all(arch, options.brief)]
    if options.record:
        limits.record(reports, COMPILER)
    faulty = show(limits.checked(reports, COMPILER) if options.brief else reports)
    print(f"Triton {triton.__version__}: {faulty} faulty kernels")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
