"""What the CUDA kernels of an extension compiled to, without a GPU: ``python -m benchmarks.gpu.compiled_cuda [PATH]``.

Disassembles ``fastmerge._cuda`` (or the file at PATH) for each target, prints registers, shared memory and the width of
loads of every kernel, and fails on a spill, on narrow loads where all tensors are aligned, and on a fused multiply-add
outside of divisions, or where a kernel, or the usual path through one (``_paths``), has more registers or instructions
than ``limits.json`` allows (for targets that it has). Of paths it prints the instructions per element, and the least
time of 64M elements on an H200 as issuing them limits it: expected times, not measured ones. Needs the disassembler
that comes with Triton, or one on the PATH.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from .. import limits
from . import _paths
from ._sass import Instructions, Report, show

ARCHITECTURES = (80, 90, 100)
# These read only whole vectors of aligned tensors and bytes of masks, and so many scalars: the answers that the first
# warp of a block finds, or every thread. All others also take what is not aligned.
ALIGNED = {"weighted_sum_kernel": 0, "found_weighted_sum_kernel": 5, "sparse_merge_kernel": 9}


def disassembler() -> str | None:
    """Return the path of cuobjdump, or None."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if bundled.exists():
            return str(bundled)
    return shutil.which("cuobjdump")


def extension() -> Path | None:
    """Return the path of the installed extension, or None."""
    spec = importlib.util.find_spec("fastmerge._cuda")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def compiler(library: Path) -> str:
    """Return which nvcc built the extension, or one without a number."""
    found = re.search(rb"Cuda compilation tools, release ([0-9.]+)", library.read_bytes())
    return f"nvcc {found[1].decode()}" if found else "nvcc"


def reports(library: Path, arch: int) -> list[Report]:
    """Report every kernel in ``library`` for a compute capability."""
    tool = disassembler()
    if tool is None:
        raise RuntimeError("cuobjdump is missing; pip install triton, or install the CUDA toolkit")

    def run(what: str) -> str:
        command = [tool, what, "-arch", f"sm_{arch}", str(library)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    usage = {
        name: tuple(int(value) for value in values)
        for name, *values in re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", run("-res-usage"))
    }
    found = []
    for part in re.split(r"\n\s+Function : ", run("-sass"))[1:]:
        name, _, sass = part.partition("\n")
        report = _report(arch, name.strip(), usage[name.strip()], sass)
        found += [report, *_path_reports(report, sass)]
    return sorted(found, key=lambda report: (report.kernel, report.case))


def _path_reports(report: Report, sass: str) -> Iterator[Report]:
    """Report the usual paths through a kernel of an H200: their instructions in place of all."""
    for path in _paths.PATHS if report.arch == _paths.TARGET else ():
        if path.kernel == report.kernel:
            length = _paths.length(sass, path)
            faults = () if length else ("no such path was found",)
            yield replace(report, case=path.name, instructions=length or 0, faults=faults)


def show_paths(found: Iterable[Report]) -> None:
    """Print what the paths cost."""
    print(
        "sm  kernel                                     path                      per element  64M elements, expected"
    )
    for report in found:
        if report.case and report.instructions:
            each = _paths.per_element(report.kernel, report.case, report.instructions)
            time = _paths.issue_us(each)
            print(f"{report.arch:<3} {report.kernel:42} {report.case:25} {each:11.1f}  >= {time:.0f} us to issue")


def _report(arch: int, symbol: str, usage: tuple[int, ...], sass: str) -> Report:
    registers, stack, shared = usage
    code, name = Instructions(sass), _readable(symbol)
    wide, narrow = code.wide("LDG"), code.narrow("LDG")
    faults = code.faults(stack, divisions=code.number("MUFU.RCP"))
    scalars = ALIGNED.get(name.partition("<")[0])
    if scalars is not None and (narrow > scalars or not wide):
        faults.append(f"{narrow} narrow loads, {wide} wide ones")
    return Report(
        arch, "", name, registers, stack, shared, code.counts.total(), wide, narrow, code.wide("STG"),
        tuple(faults),
    )  # fmt: skip


def _readable(symbol: str) -> str:
    """Return the name and template arguments of a kernel."""
    tool = shutil.which("c++filt")
    text = subprocess.run([tool, symbol], capture_output=True, text=True).stdout if tool else symbol
    found = re.search(r"::(\w+_kernel)(<.*>)?\(", text)
    if found is None:
        return symbol
    return found[1] + re.sub(r"fastmerge::|\((?:int|bool)\)", "", found[2] or "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.compiled_cuda", description=__doc__)
    parser.add_argument("library", nargs="?", type=Path, help="by default the installed extension")
    parser.add_argument("--arch", nargs="+", type=int, default=ARCHITECTURES, help="compute capabilities, as 90")
    parser.add_argument("--record", action="store_true", help="write what was found to limits.json")
    options = parser.parse_args()
    library = options.library or extension()
    if library is None:
        print("fastmerge._cuda is not installed: its kernels are not reported")
        return 0
    found = [report for arch in options.arch for report in reports(library, arch)]
    if options.record:
        limits.record(found, compiler(library))
    faulty = show(limits.checked(found, compiler(library)))
    show_paths(found)
    print(f"CUDA: {faulty} faulty kernels in {library.stat().st_size / 1e6:.1f} MB")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
