"""The campaign: ``python -m tests.fuzz --cases 100000``. Exits with status 1 where anything was found.

Every case follows from (seed, target, number). Cases run in a process of their own, so that one that ends the
interpreter is a finding like any other. The files of a finding are kept in ``--keep``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only these; may be repeated")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for the files of findings")
    parser.add_argument("--atheris", action="store_true", help="let Atheris choose the cases of one target")
    parser.add_argument("--worker", nargs=2, type=int, metavar=("FIRST", "LAST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.target[0], options.seed, *options.worker, options.keep)
    if options.atheris:
        from .guided import guided

        if len(options.target or ()) != 1:
            parser.error("--atheris takes one --target")
        return guided(options.target[0], options.seed, options.cases, options.keep)
    from .targets import TARGETS  # not before Atheris, which looks at what is imported

    names = options.target or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(TARGETS)}")
    begin, found, each = time.perf_counter(), 0, -(-options.cases // len(names))
    for name in names:
        findings = campaign(name, options.seed, each, options.keep)
        print(f"{name}: {each} cases, {findings} findings", flush=True)
        found += findings
    print(f"{each * len(names)} cases, {found} findings, {time.perf_counter() - begin:.0f} s")
    return 1 if found else 0


def campaign(name: str, seed: int, cases: int, keep: Path) -> int:
    """Run the cases of one target in processes that are started anew after one that ended; return the findings."""
    first = found = 0
    while first < cases:
        command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--seed", str(seed), "--keep", str(keep)]
        process = subprocess.Popen(
            [*command, "--worker", str(first), str(cases)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        out, err = process.communicate()
        lines = out.splitlines()
        for line in lines:
            if line.startswith("finding "):
                print(line, flush=True)
                found += 1
        done = next((int(line.split()[1]) for line in reversed(lines) if line.startswith("case ")), first)
        if process.returncode == 0:
            return found
        found += 1
        last = err.strip().splitlines()[-1:] or [""]
        print(f"finding {name} {done}: the process ended with {process.returncode}: {last[0]}", flush=True)
        first = done + 1
    return found


def work(name: str, seed: int, first: int, last: int, keep: Path) -> int:
    import torch

    from fastmerge.methods import all_methods

    from .targets import TARGETS
    from .watching import Finding, watched

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    all_methods()  # they are imported on first use, which opens files
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        for number in range(first, last):
            # What a parent reads that outlives this process: the case that ended it.
            print(f"case {number}", flush=True)
            folder = Path(place) / "case"
            folder.mkdir()
            target.write(Random(f"{seed} {name} {number}"), folder)
            try:
                with watched(folder):
                    target.use(folder)
            except Finding as finding:
                print(f"finding {name} {number}: {finding}", flush=True)
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copytree(folder, keep / f"{name}-{seed}-{number}", symlinks=True, dirs_exist_ok=True,
                                ignore=lambda at, names: [n for n in names if (Path(at) / n).is_fifo()])  # fmt: skip
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
