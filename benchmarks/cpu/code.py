"""The machine code of the CPU extension: where its loops are, and what its instructions take of a core."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# What a core does in a cycle, at most: fewer than recent ones of either maker, by vector bytes where that matters.
ISSUED, LOADS, STORES = 4, 2, 1
ARITHMETIC = {16: 3, 32: 3, 64: 2}
# Cycles of a division.
DIVISION = {0: 10, 16: 4, 32: 5, 64: 10}
REGISTER_BYTES = {"x": 16, "y": 32, "z": 64}

_VECTOR = re.compile(r"%([xyz])mm(\d+)")
# With memory as the last operand: these only write to it, these only read it. Others do both.
_WRITES = re.compile(r"v?mov|v?extract|v?pextr|vpcompress|vpmov|vextract|set|push|call")
_READS = re.compile(r"v?u?comis|cmp|test|prefetch|jmp|v?ptest|[a-z]*mul|i?div|bt\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction: bytes of the vectors that it handles (0 is none), and how often it uses parts of a core."""

    width: int
    registers: frozenset[int]
    arithmetic: bool
    divides: bool
    loads: int
    stores: int
    spills: bool


def parse(text: str) -> Instruction:
    """Return an instruction from a line of objdump, in AT&T's order of operands."""
    name, _, operands = " ".join(text.split()).partition(" ")
    vectors = _VECTOR.findall(operands)
    width = max((REGISTER_BYTES[kind] for kind, _ in vectors), default=0)
    memory = "(" in operands and not name.startswith(("lea", "nop"))
    last = memory and operands.rstrip().endswith((")", "}")) and "(" in re.split(r",(?![^(]*\))", operands)[-1]
    stores = bool(last and not _READS.match(name)) or name in ("push", "call")
    loads = bool(memory and not (last and _WRITES.match(name))) or name in ("pop", "ret")
    moves = memory and re.match(r"v?mov|vbroadcast|v?lddqu", name) is not None
    return Instruction(
        width, frozenset(int(number) for _, number in vectors), bool(width) and not moves,
        re.match(r"v?(i?div|sqrt)", name) is not None, int(loads), int(stores),
        bool(width and re.search(r"\(%r[sb]p\)", operands)),
    )  # fmt: skip


class Library:
    """A compiled extension, by its symbols and its disassembly."""

    def __init__(self, path: Path):
        self.path = path
        self._entries: dict[tuple[str, str], int] = {}
        file = ""
        for line in _output("readelf", "-sW", path).splitlines():
            found = re.match(r"\s*\d+: ([0-9a-f]+)\s+\d+ (FILE|FUNC)\s.* (\S+)$", line)
            if found and found[2] == "FILE":
                file = found[3]
            elif found:
                self._entries[file, found[3]] = int(found[1], 16)
        code = _output("objdump", "-dw", "--no-show-raw-insn", path)
        self._texts = {int(at, 16): text for at, text in re.findall(r"^\s*([0-9a-f]+):\t([^#\n]+)", code, re.MULTILINE)}
        self.code_end = max(self._texts) + 1

    def compiler(self) -> str:
        """Return which compiler built the library, by its major version."""
        found = re.search(rb"GCC: \([^)]*\) (\d+)\.", self.path.read_bytes())
        return f"g++ {found[1].decode()}" if found else "an unknown compiler"

    def loaded_at(self) -> int:
        """Return the address of this library in this process."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(str(self.path)):
                return int(line.partition("-")[0], 16)
        raise RuntimeError(f"{self.path} is not loaded")

    def entry(self, isa: str, loop: str) -> int:
        """Return the address in the library of a loop for an instruction set (csrc/cpu/isa.h)."""
        prefix = f"_ZN9fastmerge3cpu12_GLOBAL__N_1{len(loop)}{loop}E"
        for (file, symbol), address in self._entries.items():
            if file == f"isa_{isa}.cpp" and symbol.startswith(prefix) and "." not in symbol:
                return address
        raise RuntimeError(f"{self.path.name} has no symbol of {loop} for {isa}: it was stripped, or built otherwise")

    def executed(self, counts: Tensor) -> list[tuple[Instruction, int]]:
        """Return the instructions with how often each was executed."""
        addresses = torch.nonzero(counts).flatten().tolist()
        return [(parse(self._texts[address]), int(counts[address])) for address in addresses]


def _output(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def cycles(executed: list[tuple[Instruction, int]]) -> float:
    """Return the least cycles that a core takes for what was executed, as its parts limit it, waiting for nothing."""
    issued = sum(n for _, n in executed) / ISSUED
    loads = sum(n * i.loads for i, n in executed) / LOADS
    stores = sum(n * i.stores for i, n in executed) / STORES
    arithmetic = sum(n / ARITHMETIC[i.width] for i, n in executed if i.arithmetic)
    divisions = sum(n * DIVISION[i.width] for i, n in executed if i.divides)
    return max(issued, loads, stores, arithmetic, divisions)
