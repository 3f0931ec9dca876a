"""What the machine code of a kernel says without a GPU: instructions, widths of loads, and what must not be there."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

# Instructions of a correctly rounded division: inline per division, and once for the path of special values.
FFMA_PER_DIVISION, FFMA_ONCE = 5, 9


@dataclass(frozen=True)
class Report:
    """What one kernel of one case compiled to. Loads and stores are those of global memory."""

    arch: int
    case: str
    kernel: str
    registers: int
    stack: int
    shared: int
    instructions: int
    wide_loads: int
    narrow_loads: int
    wide_stores: int
    faults: tuple[str, ...]

    @property
    def limited(self) -> Mapping[str, int]:
        return {"registers": self.registers, "instructions": self.instructions}

    def with_faults(self, faults: Iterable[str]) -> Report:
        return replace(self, faults=(*self.faults, *faults))


class Instructions:
    """The number of each instruction in a disassembled kernel."""

    def __init__(self, sass: str):
        instruction = r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)"
        self.counts = collections.Counter(op for op in re.findall(instruction, sass, re.MULTILINE) if op != "NOP")

    def number(self, *prefixes: str) -> int:
        """Return how many begin with one of ``prefixes``."""
        return sum(n for op, n in self.counts.items() if op.startswith(prefixes))

    def wide(self, *prefixes: str) -> int:
        """Return how many of them move 16 bytes."""
        return sum(n for op, n in self.counts.items() if op.startswith(prefixes) and op.endswith("128"))

    def narrow(self, *prefixes: str) -> int:
        """Return how many of them move fewer, but not a byte: bytes are words of masks, for eight elements each."""
        bytes_ = sum(n for op, n in self.counts.items() if op.startswith(prefixes) and "U8" in op)
        return self.number(*prefixes) - self.wide(*prefixes) - bytes_

    def faults(self, stack: int, divisions: int) -> list[str]:
        """Return what is wrong with any kernel: spills, and multiplications fused with additions."""
        found = []
        if stack or self.number("STL", "LDL"):
            found.append(f"spills: {stack} bytes of stack")
        fused = self.counts["FFMA"]
        if fused > (FFMA_PER_DIVISION * divisions + FFMA_ONCE if divisions else 0):
            found.append(f"{fused} fused multiply-adds for {divisions} divisions")
        return found


def show(reports: Iterable[Report]) -> int:
    """Print a table and return the number of faulty kernels."""
    print("sm  kernel                                     case                                       "
          "regs stack shared instr ld128 ld< st128")  # fmt: skip
    faulty = 0
    for r in reports:
        faulty += bool(r.faults)
        print(
            f"{r.arch:<3} {r.kernel:42} {r.case:42} {r.registers:4} {r.stack:5} {r.shared:6} {r.instructions:5} "
            f"{r.wide_loads:5} {r.narrow_loads:3} {r.wide_stores:5} {'; '.join(r.faults)}",
            flush=True,
        )
    return faulty
