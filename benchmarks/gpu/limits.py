"""The most registers and instructions that a kernel may compile to: ``limits.json``.

A loop that grows by accident fails the report, and so its test. Where it grows for a reason, run the report with
``--record`` and commit the file. Each compiler has its own numbers: with another one nothing is compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from ._sass import Report

FILE = Path(__file__).with_name("limits.json")
# Of registers a GPU gives out eight at a time; instructions may grow by so much before anybody looks.
REGISTERS_STEP, INSTRUCTIONS_MARGIN = 8, 1.05


def _key(report: Report) -> str:
    return f"{report.kernel} {report.case}".strip()


def checked(reports: Iterable[Report], compiler: str, file: Path = FILE) -> list[Report]:
    """Return the reports; to the faults of each are added the limits for ``compiler`` that it exceeds or lacks."""
    recorded = json.loads(file.read_text()).get(compiler, {})
    found = list(reports)
    for arch in sorted({report.arch for report in found if str(report.arch) not in recorded}):
        print(f"{file.name} has no limits for {compiler} and sm_{arch}: registers and instructions are not compared")
    return [dataclasses.replace(r, faults=(*r.faults, *_faults(r, recorded.get(str(r.arch))))) for r in found]


def _faults(report: Report, limits: dict[str, list[int]] | None) -> list[str]:
    if limits is None:
        return []
    if _key(report) not in limits:
        return [f"no limits in {FILE.name}; run again with --record"]
    registers, instructions = limits[_key(report)]
    found = [(report.registers, registers, "registers"), (report.instructions, instructions, "instructions")]
    return [f"{value} {what}, at most {limit} are allowed" for value, limit, what in found if value > limit]


def record(reports: Iterable[Report], compiler: str, file: Path = FILE) -> None:
    """Write the limits that these reports meet, in place of the compiler's limits for the same targets."""
    everything = json.loads(file.read_text()) if file.exists() else {}
    targets: dict[str, dict[str, list[int]]] = {}
    for report in reports:
        registers = -(-report.registers // REGISTERS_STEP) * REGISTERS_STEP
        instructions = math.ceil(report.instructions * INSTRUCTIONS_MARGIN)
        limits = targets.setdefault(str(report.arch), {})
        limits[_key(report)] = list(map(max, limits.get(_key(report), (0, 0)), (registers, instructions)))
    everything[compiler] = everything.get(compiler, {}) | targets
    # A line per kernel, for the sake of differences.
    text = json.dumps(everything, indent=1, sort_keys=True)
    file.write_text(re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n")
