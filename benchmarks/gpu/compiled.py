"""What the Triton kernels compile to, without a GPU: ``python -m benchmarks.gpu.compiled``.

Compiles every kernel ahead of time through the launches that a GPU would see, prints registers, shared memory and the
width of loads, and fails on a spill, on a narrow load of tensor data, and on a fused multiply-add outside of divisions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from fastmerge import kernels
from fastmerge.kernels import Boundary, Keep, _registry
from fastmerge.kernels._triton import _launch, split_product

from ._sass import Instructions, Report, show

ARCHITECTURES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# A multiple of every block, so that no masked launch is compiled; memory of the CPU that is never read.
NUMEL = 1 << 16
# These read tables, or a sample of a tensor.
SMALL_KERNELS = ("_descend_kernel", "_sample_kernel")
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


def cases(brief: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield named calls of operations that together launch every kernel; ``brief`` leaves out variants."""
    bfloat16, float32 = torch.bfloat16, torch.float32
    inside, outside = Boundary(0x3A000000, 100), Boundary(0x3B000000, 10)
    rules = {
        "all": kernels.keep_all(),
        "top": kernels.keep_top(inside),
        "band": kernels.keep_band(inside, outside),
        "random": kernels.keep_random(1, 0, 0x12345678),
        "masked": kernels.keep_masked(torch.empty(kernels.mask_words(NUMEL), dtype=torch.int32)),
    }

    def tensors(count: int, dtype: torch.dtype) -> list[Tensor]:
        return [torch.empty(NUMEL, dtype=dtype) for _ in range(count)]

    def merge(count: int, dtype: torch.dtype, rule: Keep, vote: str, divide: str) -> None:
        base, *others = tensors(count + 1, dtype)
        scalars = [0.5] * count
        kernels.sparse_merge(base, base, others, factors=scalars, keeps=[rule] * count, vote=vote, divide=divide)

    def gram(count: int, dtype: torch.dtype) -> None:
        partials = torch.empty(NUMEL // kernels.GRID, len(kernels.pairs(count)), dtype=torch.float64)
        kernels.gram_partials(partials, tensors(count, dtype), tensors(1, dtype)[0])

    def mixed_gram() -> None:
        mixed = [*tensors(3, bfloat16), *tensors(2, float32)]
        partials = torch.empty(NUMEL // kernels.GRID, len(kernels.pairs(5)), dtype=torch.float64)
        kernels.gram_partials(partials, mixed, tensors(1, bfloat16)[0])

    def norms(rule: Keep) -> None:
        partials = torch.empty(NUMEL // kernels.GRID, 6, dtype=torch.float64)
        kernels.norm_partials(partials, tensors(3, bfloat16), tensors(1, bfloat16)[0], [rule] * 3)

    def histogram(level: int) -> None:
        counts = torch.empty(3, kernels.HISTOGRAM_BINS[level], dtype=torch.int64)
        prefixes = [0, 0, 0] if level else []
        kernels.magnitude_histogram(counts, tensors(3, bfloat16), tensors(1, bfloat16)[0], level, prefixes)

    def low_rank() -> None:
        weight, up, down = torch.empty(64, 1024, dtype=bfloat16), torch.empty(64, 8), torch.empty(8, 1024)
        kernels.low_rank_update(weight, weight, up, down, 0.5)

    def split_products(kind: str, pieces: int) -> None:
        x, scale = torch.empty(2, 256, 256), torch.empty(2, 1, 1)
        b = split_product.split(x, scale)[:pieces]
        a = tuple(part.mT for part in b) if kind == "gram" else b
        plus = None if kind == "gram" else x
        split_product.product(a, b, (256, 256), scale, chunk=256, symmetric=kind != "multiply", plus=plus)

    def some(variants: tuple, few: int = 1) -> tuple:
        return variants[:few] if brief else variants

    for count, dtype in some(((4, bfloat16), (1, bfloat16), (16, bfloat16), (4, float32))):
        inputs = tensors(count, dtype)
        yield f"{count} {dtype}", lambda i=inputs: kernels.weighted_sum(i[0], i, [0.5] * len(i))
    merges = (
        ("top", 3, bfloat16, "weighted", "weights"),
        ("random", 3, bfloat16, "weighted", "none"),
        ("masked", 3, bfloat16, "weighted", "weights"),
        ("all", 3, bfloat16, "none", "none"),
        ("top", 3, float32, "weighted", "weights"),
        ("random", 3, bfloat16, "none", "none"),
        ("band", 3, bfloat16, "sum", "count"),
        ("band", 16, bfloat16, "count", "weights"),
    )
    for name, count, dtype, vote, divide in some(merges, 3):
        call = lambda c=count, d=dtype, r=rules[name], v=vote, w=divide: merge(c, d, r, v, w)  # noqa: E731
        yield f"{count} {dtype} {name} vote {vote} divide {divide}", call
    for count, dtype in some(((4, bfloat16), (2, bfloat16), (8, bfloat16), (4, float32))):
        yield f"{count} {dtype}", lambda c=count, d=dtype: gram(c, d)
    if not brief:
        yield "5 mixed", mixed_gram
    for name in some(("random", "top", "masked")):
        yield f"3 {bfloat16} {name}", lambda r=rules[name]: norms(r)
    for level in some((0, 1)):
        yield f"3 {bfloat16} level {level}", lambda level=level: histogram(level)
    for dtype in some((bfloat16, float32)):
        inputs = tensors(4, dtype)
        # Nothing is computed, so there is no result to ask for.
        for size in (NUMEL, NUMEL // 4):
            job = kernels.SelectJob([t[:size] for t in inputs[1:]], inputs[0][:size], [[5]] * 3)
            yield f"3 {dtype} of {size}", lambda job=job: kernels.start_selection([job])
    yield f"{bfloat16}", low_rank
    for pieces in some((2, 1)):
        for kind in ("gram", "square", "multiply"):
            yield f"{kind} of {pieces} pieces", lambda k=kind, p=pieces: split_products(k, p)


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
    reports = {}
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
                key = (name, case if brief else kernel.hash)
                if key not in reports:
                    reports[key] = _report(arch, case, name, kernel)
    JITFunction.run = run
    return list(reports.values())


def _report(arch: int, case: str, name: str, kernel: CompiledKernel) -> Report:
    usage, sass = _disassemble(kernel.asm["cubin"])
    ptx, ttgir = kernel.asm["ptx"], kernel.asm["ttgir"]
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    loads = ("LDG.", "LDGSTS")
    wide, narrow = sass.wide(*loads), sass.narrow(*loads)
    # Scalars: entries of tables, and elements that serve a whole block.
    scalars = len(re.findall(r"tt\.load [^\n]*: !tt\.ptr", ttgir))
    divisions = len(re.findall(r"\bdiv\.rn\.f32\b", ptx))
    faults = sass.faults(stack, divisions)
    if name not in SMALL_KERNELS and (wide == 0 or narrow > scalars):
        faults.append(f"{narrow} narrow loads, {scalars} of them scalars")
    if "fma.rn.f32" in ptx:
        faults.append("fused multiply-adds in PTX")
    # Triton 3.7 compiles some loops around tensor cores to nothing on sm_100.
    if "tt.dot" in kernel.asm["ttir"] and not sass.number(*TENSOR_CORE):
        faults.append("no tensor-core instruction")
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
    options = parser.parse_args()
    faulty = show(report for arch in options.arch for report in compile_all(arch, options.brief))
    print(f"Triton {triton.__version__}: {faulty} faulty kernels")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
