"""What the CPU loops execute per element: ``python -m benchmarks.cpu.compiled``.

Runs each loop of ``fastmerge._C`` one instruction at a time, for every instruction set that this processor has: on few
elements and on more, whose difference is what an element takes, or on many, where a call works by blocks. Prints
instructions, the share of those that handle whole vectors, accesses to spilled vectors, vector registers, and the least
cycles as the parts of a core limit them, with the bytes of memory that a core would move in a cycle: expected, not
measured. Where that is more than memory gives (4 to 8 bytes), instructions do not matter. Fails where a loop executes
more than ``limits.json`` allows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmerge.kernels import _native

from .. import limits
from ..inventory import CALLS, Inputs, make_inputs
from .code import Instruction, Library, cycles
from .stepping import CannotStep, Stepper, why_not

# Limits are of so many elements, in whole numbers.
PER = 1024
# Elements of a chunk and of a row of the reductions (csrc/jobs.h).
CHUNK, ROW = 16384, 256
ISAS = {"baseline": 16, "avx2": 32, "avx512": 64}
WRITE = ("weighted_sum", "sparse_merge", "low_rank")
B, F, H = torch.bfloat16, torch.float32, torch.float16


@dataclass(frozen=True)
class Case:
    """A loop in one variant.

    Attributes:
        operation: what calls it, where it has another name.
        few, many: numbers of elements whose difference is counted; where ``few`` is 0, all of a first chunk.
        based:     whether it reads a base.
    """

    loop: str
    models: int
    dtype: torch.dtype
    how: Mapping[str, Any] = field(default_factory=dict)
    operation: str = ""
    few: int = 256
    many: int = 512
    based: bool = True

    def __str__(self) -> str:
        words = " ".join(f"{key} {value}" for key, value in self.how.items())
        return f"{self.models} {self.dtype} {words}".replace("torch.", "").strip()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that an element takes."""
        return (self.models + self.based + (self.loop in WRITE)) * self.dtype.itemsize

    def call(self, elements: int) -> Callable[[], object]:
        base, *tensors = make_inputs(True, elements, self.models, self.dtype)
        inputs = Inputs(torch.empty_like(base), tensors, base if self.based else None)
        return lambda: (CALLS | BYTES)[self.operation or self.loop](inputs, **self.how)


def _bytes(x: Inputs) -> memoryview:
    return memoryview(x.tensors[0].view(torch.uint8).numpy())


BYTES: dict[str, Callable[[Inputs], object]] = {
    "cell_digests": lambda x: _native.cpu_extension().cell_digests(_bytes(x), 1 << 20),
    "all_finite": lambda x: _native.cpu_extension().all_finite(_bytes(x), _native.array_pair(x.tensors[0])[1]),
}

TIES = {"vote": "weighted", "divide": "weights"}
PLAIN = {"vote": "none", "divide": "none"}
CASES = (
    *(Case("weighted_sum", n, t, based=False) for n, t in ((2, B), (3, B), (5, B), (8, B), (3, F), (3, H))),
    *(Case("sparse_merge", n, t, {"keeps": "all", **PLAIN}) for n, t in ((3, B), (6, B), (3, F), (3, H))),
    *(
        Case("sparse_merge", n, t, {"keeps": "top", **TIES})
        for n, t in ((2, B), (3, B), (4, B), (6, B), (3, F), (3, H))
    ),
    *(Case("sparse_merge", 3, B, {"keeps": keeps, **TIES}) for keeps in ("band", "random", "masked")),
    Case("sparse_merge", 3, F, {"keeps": "random", **TIES}),
    Case("sparse_merge", 3, B, {"keeps": "random", **PLAIN}),
    Case("sparse_merge", 3, B, {"keeps": "top", "vote": "count", "divide": "count"}),
    *(Case("gram", n, B, few=0, many=2048) for n in (2, 5)),
    *(Case("norms", 1, B, {"keeps": keeps}, few=0, many=CHUNK) for keeps in ("all", "random")),
    Case("collect", 1, B, operation="select", few=0, many=5 * CHUNK),
    Case("collect", 1, F, operation="select"),
    *(Case("count_equal", 1, t, operation="equal_counts") for t in (B, F)),
    Case("histogram", 1, B, operation="magnitude_histogram"),
    Case("rank_mask", 3, B, few=4096, many=8192),
    *(Case("rank_mask", 1, B, {"rows": (4096 // n, n, 1)}, few=0, many=4096) for n in (32, 256)),
    *(Case("low_rank", 1, t, few=1024, many=2048, based=False) for t in (B, F)),
    Case("cell_digests", 1, B, few=4096, many=8192, based=False),
    *(Case("all_finite", 1, t, few=4096, many=8192, based=False) for t in (B, F)),
)


@dataclass(frozen=True)
class Report:
    """What a loop executes for ``PER`` elements."""

    arch: str
    kernel: str
    case: str
    executed: list[tuple[Instruction, float]]
    nbytes: int
    faults: tuple[str, ...] = ()

    @property
    def instructions(self) -> int:
        return round(sum(n for _, n in self.executed))

    @property
    def spilled(self) -> int:
        return round(sum(n for i, n in self.executed if i.spills))

    @property
    def registers(self) -> int:
        """The vector registers of instructions that are executed at least once for a row of the reductions."""
        return len(frozenset().union(*(i.registers for i, n in self.executed if ROW * n >= PER)))

    @property
    def limited(self) -> Mapping[str, int]:
        return {f"spills of {PER} elements": self.spilled, f"instructions of {PER} elements": self.instructions}

    def with_faults(self, faults: Iterable[str]) -> Report:
        return replace(self, faults=(*self.faults, *faults))


def count(stepper: Stepper, library: Library, isa: str, case: Case) -> Report:
    """Return what a loop executes, in the instruction set that was chosen."""

    def counts(elements: int) -> Tensor:
        call = case.call(elements)
        # What is done once per process is done.
        call()
        return stepper.count(isa, case.loop, call)

    found, elements = counts(case.many), min(case.many, CHUNK)
    if case.few:
        found, elements = found - counts(case.few), case.many - case.few
    executed = [(instruction, n * PER / elements) for instruction, n in library.executed(found)]
    return Report(isa, case.loop, str(case), executed, case.nbytes)


def show(reports: Iterable[Report]) -> int:
    """Print a table and return the number of faulty loops."""
    print(
        "isa      loop         case                                                  instr whole spills regs cycles "
        "bytes/cycle"
    )
    faulty = 0
    for r in reports:
        faulty += bool(r.faults)
        whole = sum(n for i, n in r.executed if i.width == ISAS[r.arch]) / r.instructions
        least = cycles(r.executed) / PER
        print(
            f"{r.arch:8} {r.kernel:12} {r.case:52} {r.instructions / PER:6.2f} {whole:5.0%} {r.spilled / PER:6.2f} "
            f"{r.registers:4} {least:6.2f} {r.nbytes / least:11.1f} {'; '.join(r.faults)}"
        )
    return faulty


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.compiled", description=__doc__)
    parser.add_argument("loops", nargs="*", metavar="LOOP", help="of csrc/cpu/isa.h; by default all")
    parser.add_argument("--isa", nargs="+", choices=ISAS, default=list(ISAS))
    parser.add_argument("--record", action="store_true", help="write what was found to limits.json")
    options = parser.parse_args()
    loops = {case.loop for case in CASES}
    if unknown := set(options.loops) - loops:
        parser.error(f"no such loop: {', '.join(sorted(unknown))}; there are {', '.join(sorted(loops))}")
    if options.record and options.loops:
        parser.error("--record takes all loops")
    if why := why_not():
        print(f"instructions of the CPU loops are not counted: {why}")
        return 0
    extension = _native.cpu_extension()
    library = Library(Path(extension.__file__))
    stepper = Stepper(library)
    extension.set_threads(1)
    found = []
    try:
        for isa in options.isa:
            if isa not in extension.available_isas():
                print(f"{isa} does not run here: its loops are not counted")
                continue
            extension.set_isa(isa)
            chosen = [case for case in CASES if case.loop in (options.loops or loops)]
            found += [count(stepper, library, isa, case) for case in chosen]
    except CannotStep as error:
        print(f"instructions of the CPU loops are not counted: {error}")
        return 0
    if options.record:
        limits.record(found, library.compiler())
    faulty = show(limits.checked(found, library.compiler()))
    print(f"{library.compiler()}: {faulty} loops beyond their limits")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
