"""The most registers and instructions that a kernel may compile to: ``limits.json``.

A loop that grows by accident fails the report, and so its test. Where it grows for a reason, run the report with
``--record`` and commit the file. Each compiler has its own numbers: with another one nothing is compared.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

FILE = Path(__file__).with_name("limits.json")
# Of registers a GPU gives out eight at a time; all else may grow by so much before anybody looks.
REGISTERS_STEP, MARGIN = 8, 1.05


class Report(Protocol):
    """What a kernel compiled to for one target, with the two numbers that are limited, by their names."""

    @property
    def arch(self) -> object: ...
    @property
    def kernel(self) -> str: ...
    @property
    def case(self) -> str: ...
    @property
    def limited(self) -> Mapping[str, int]: ...

    def with_faults(self: R, faults: Iterable[str]) -> R: ...


R = TypeVar("R", bound=Report)


def _key(report: Report) -> str:
    return f"{report.kernel} {report.case}".strip()


def checked(reports: Iterable[R], compiler: str, file: Path = FILE) -> list[R]:
    """Return the reports; to the faults of each are added the limits for ``compiler`` that it exceeds or lacks."""
    recorded = json.loads(file.read_text()).get(compiler, {})
    found = list(reports)
    for arch in sorted({str(report.arch) for report in found} - recorded.keys()):
        print(f"{file.name} has no limits for {compiler} and {arch}: nothing is compared with limits")
    return [report.with_faults(_faults(report, recorded.get(str(report.arch)))) for report in found]


def _faults(report: Report, limits: dict[str, list[int]] | None) -> list[str]:
    if limits is None:
        return []
    if _key(report) not in limits:
        return [f"no limits in {FILE.name}; run again with --record"]
    found = zip(report.limited.items(), limits[_key(report)], strict=True)
    return [f"{value} {what}, at most {limit} are allowed" for (what, value), limit in found if value > limit]


def record(reports: Iterable[Report], compiler: str, file: Path = FILE) -> None:
    """Write the limits that these reports meet, in place of the compiler's limits for the same targets."""
    everything = json.loads(file.read_text()) if file.exists() else {}
    targets: dict[str, dict[str, list[int]]] = {}
    for report in reports:
        limits = targets.setdefault(str(report.arch), {})
        now = [_allowed(what, value) for what, value in report.limited.items()]
        limits[_key(report)] = list(map(max, limits.get(_key(report), now), now))
    everything[compiler] = everything.get(compiler, {}) | targets
    # A line per kernel, for the sake of differences.
    text = json.dumps(everything, indent=1, sort_keys=True)
    file.write_text(re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n")


def _allowed(what: str, value: int) -> int:
    return -(-value // REGISTERS_STEP) * REGISTERS_STEP if what == "registers" else math.ceil(value * MARGIN)
