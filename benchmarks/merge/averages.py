"""Time the average of 20 checkpoints: ``python -m benchmarks.merge.averages``.

``fastmerge average`` beside a loop in PyTorch that loads one checkpoint after the other and adds it up in float32, in
turns. Both must write the same bits. Every run starts a process and ends when its output is durable.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from .. import _measure, _record
from . import processes
from .checkpoints import SHAPES

COUNT = 20


def loop(folders: list[Path], out: Path) -> None:
    """Average checkpoints of one file as a user of PyTorch does."""
    from safetensors.torch import load_file, save_file

    sums = {}
    for folder in folders:
        for name, tensor in load_file(folder / "model.safetensors").items():
            term = tensor.float() * (1 / len(folders))
            sums[name] = sums[name].add_(term) if name in sums else term
    out.mkdir()
    save_file({name: tensor.bfloat16() for name, tensor in sums.items()}, out / "model.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Return a row per contender."""
    models, out = [folder / f"expert{k + 1}" for k in range(COUNT)], folder / "out"
    commands = {
        "fastmerge": [Path(sys.executable).with_name("fastmerge"), "average", folder / "expert*", out, "--quiet"],
        "torch": [sys.executable, "-m", "benchmarks.merge.averages", "--loop", out, *models],
    }
    usages: dict[str, list[processes.Usage]] = {tool: [] for tool in commands}

    def once(tool: str) -> float:
        shutil.rmtree(out, ignore_errors=True)
        usages[tool].append(processes.run(commands[tool], out))
        return usages[tool][-1].seconds

    for tool in commands:
        once(tool)
        out.rename(folder / tool)
    if not same_bits(folder / "fastmerge", folder / "torch"):
        raise SystemExit("fastmerge average and the loop differ")
    samples = _measure.take_turns({tool: lambda t=tool: once(t) for tool in commands}, options.runs, options.budget)
    nbytes = (models[0] / "model.safetensors").stat().st_size
    rows = []
    for tool, seconds in samples.items():
        rows.append({
            "op": "average", "tool": tool, "backend": "", "shape": options.shape, "dtype": "bfloat16", "models": COUNT,
            "tensors": len(SHAPES[options.shape].tensors()), "cache": "warm", "output": processes.filesystem(folder),
            **_measure.time_columns(seconds), **processes.columns(usages[tool][-len(seconds) :]),
            "bytes_read": COUNT * nbytes, "bytes_written": nbytes,
            "startup_ms": "", "bare_ms": "", "times_bare": "", "times_bare_net": "",
        })  # fmt: skip
    for row in rows:
        row["ratio"] = row["ms"] / rows[0]["ms"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge.averages", description=__doc__)
    parser.add_argument("--shape", choices=[n for n, s in SHAPES.items() if s.shards == 1], default="llama-15m")
    parser.add_argument("--runs", type=int, default=5, help="most runs of each contender")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of runs after which a contender stops")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "averages.csv")
    parser.add_argument("--loop", nargs="+", type=Path, metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        loop(options.loop[1:], options.loop[0])
        return
    facts = _record.run_facts(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "models"
        command = [sys.executable, "-m", "benchmarks.merge.checkpoints", folder, "--shape", options.shape]
        processes.run([*command, "--experts", COUNT])
        rows = measure(options, folder)
    _record.append(options.csv, _record.MERGE_COLUMNS, [facts | row for row in rows])
    for row in rows:
        print(
            f"{row['tool']:10} {row['ms']:8.0f} ms of {row['runs']} runs, {row['cpu_ms']:8.0f} CPU ms, "
            f"{row['peak_rss_mb']:6.0f} MB, {row['ratio']:6.2f} x fastmerge"
        )


if __name__ == "__main__":
    main()
