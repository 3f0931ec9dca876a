"""Time whole merges: ``python -m benchmarks.merge``.

Per shape and method, in turns: the installed ``fastmerge merge``, ``mergekit-yaml``, and the fastest plain ways to read
the inputs once and write the output once. Every run ends when its output is durable (fsync).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import _measure, _record
from . import processes
from .bare_cost import WAYS
from .checkpoints import SHAPES, model_names
from .processes import Usage
from .recipes import RECIPES, Recipe

# Screening keeps so many of the plain ways for the timed turns.
FINALISTS = 3


class Bench:
    """One shape's checkpoints and the contenders that merge them."""

    def __init__(self, options: argparse.Namespace, folder: Path, shape: str):
        self.options, self.shape, self.folder = options, shape, folder / shape
        self.out = (options.out or folder) / f"out-{shape}"
        self.log = folder / f"{shape}.log"
        self.usages: dict[str, list[Usage]] = {}
        if not self.folder.exists():
            unfinished = folder / f"unfinished-{shape}"
            shutil.rmtree(unfinished, ignore_errors=True)
            command = [sys.executable, "-m", "benchmarks.merge.checkpoints", unfinished, "--shape", shape]
            processes.run(command, unfinished, self.log)
            unfinished.rename(self.folder)

    def models(self, recipe: Recipe) -> list[Path]:
        return [self.folder / name for name in model_names()[: recipe.inputs]]

    def fastmerge(self, recipe: Recipe) -> list[str | Path]:
        return [Path(sys.executable).with_name("fastmerge"), "merge", self._recipe(recipe), self.out, "--quiet"]

    def mergekit(self, recipe: Recipe) -> list[str | Path]:
        program = Path(self.options.mergekit_python).with_name("mergekit-yaml")
        return [program, self._recipe(recipe), self.out, "--quiet"]

    def bare(self, recipe: Recipe, way: str) -> list[str | Path]:
        return [sys.executable, "-m", "benchmarks.merge.bare_cost", way, self.out, *self.models(recipe)]

    def once(self, name: str, command: Sequence[str | Path], inner_clock: bool = False) -> float:
        """Run ``command`` from a known state of the page cache, keep its usage under ``name`` and return its seconds.

        With ``inner_clock`` those are the seconds that it printed, without the start of its process.
        """
        shutil.rmtree(self.out, ignore_errors=True)
        if self.options.cold:
            processes.drop_cache(self.folder)
        usage = processes.run(command, self.out, self.log)
        if inner_clock:
            usage = Usage(float(json.loads(usage.stdout)), usage.cpu_seconds, usage.peak_rss, "")
        self.usages.setdefault(name, []).append(usage)
        return usage.seconds

    def screen(self, recipe: Recipe) -> list[str]:
        """Try every plain way and return the fastest ones."""
        seconds = {way: self.once(way, self.bare(recipe, way), True) for way in WAYS}
        return sorted(WAYS, key=seconds.__getitem__)[:FINALISTS]

    def verify(self, recipe: Recipe) -> None:
        """Merge once and have ``fastmerge verify`` compare a sample of the output with the reference backend."""
        self.once("verify", self.fastmerge(recipe))
        processes.run([Path(sys.executable).with_name("fastmerge"), "verify", self.out, "--backend", "reference"])

    def measure(self, recipe: Recipe, startup: dict[str, float]) -> list[dict[str, object]]:
        """Time all contenders in turns and return one row per tool and way; ``startup`` has milliseconds by tool."""
        processes.warm_cache(self.folder)
        self.verify(recipe)
        commands = {"fastmerge": self.fastmerge(recipe)}
        if self.options.mergekit_python:
            commands["mergekit"] = self.mergekit(recipe)
        ways = self.screen(recipe)
        contenders = {tool: lambda t=tool, c=command: self.once(t, c) for tool, command in commands.items()}
        contenders |= {way: lambda w=way: self.once(w, self.bare(recipe, w), True) for way in ways}
        samples = _measure.take_turns(contenders, self.options.runs, self.options.budget)
        shutil.rmtree(self.out)
        rows = [self._row(recipe, name, seconds, startup) for name, seconds in samples.items()]
        bare_ms = min(row["ms"] for row in rows if row["tool"] == "bare")
        own_ms = next(row["ms"] for row in rows if row["tool"] == "fastmerge")
        for row in rows:
            net = (row["ms"] - row["startup_ms"]) / bare_ms
            row |= {"bare_ms": bare_ms, "times_bare": row["ms"] / bare_ms, "times_bare_net": net}
            row["ratio"] = row["ms"] / own_ms
        return rows

    def measure_start(self) -> list[dict[str, object]]:
        """Time the merge of almost nothing by each tool, and an interpreter that imports torch; return one row each."""
        recipe = RECIPES["linear"]
        commands = {"fastmerge": self.fastmerge(recipe), "import torch": [sys.executable, "-c", "import torch"]}
        if self.options.mergekit_python:
            commands["mergekit"] = self.mergekit(recipe)
        contenders = {tool: lambda t=tool, c=command: self.once(t, c) for tool, command in commands.items()}
        samples = _measure.take_turns(contenders, self.options.runs, self.options.budget)
        rows = [self._row(recipe, tool, seconds, {}) for tool, seconds in samples.items()]
        for row in rows:
            row |= {"op": "start", "startup_ms": row["ms"], "ratio": row["ms"] / rows[0]["ms"]}
            row |= {"bare_ms": "", "times_bare": "", "times_bare_net": ""}
        return rows

    def _recipe(self, recipe: Recipe) -> Path:
        path = self.folder.parent / f"{self.shape}-{recipe.method}.yml"
        recipe.write(path, self.folder)
        return path

    def _row(self, recipe: Recipe, name: str, seconds: list[float], startup: dict[str, float]) -> dict[str, object]:
        nbytes = [sum(f.stat().st_size for f in model.glob("*.safetensors")) for model in self.models(recipe)]
        return {
            "op": recipe.method, "tool": "bare" if name in WAYS else name, "backend": name if name in WAYS else "",
            "shape": self.shape, "dtype": "bfloat16", "models": recipe.inputs,
            "tensors": len(SHAPES[self.shape].tensors()), "cache": "cold" if self.options.cold else "warm",
            "output": processes.filesystem(self.out.parent),
            **_measure.time_columns(seconds), **processes.columns(self.usages[name][-len(seconds) :]),
            "bytes_read": sum(nbytes), "bytes_written": nbytes[0], "startup_ms": startup.get(name, 0.0),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["llama-0.5b", "llama-1b", "llama-tiny"])
    parser.add_argument("--ops", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="default: all")
    parser.add_argument(
        "--mergekit-python", metavar="PATH", help="interpreter that has mergekit; without it no such rows"
    )
    parser.add_argument("--runs", type=int, default=5, help="most runs of each contender")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of runs after which a contender stops")
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before every run")
    parser.add_argument("--data", type=Path, help="folder for the checkpoints, kept; default: a temporary one, deleted")
    parser.add_argument("--out", type=Path, help="folder for the outputs, deleted; default: beside the checkpoints")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "merge.csv")
    options = parser.parse_args()
    mergekit = _record.mergekit_version(options.mergekit_python)
    facts = _record.run_facts(len(os.sched_getaffinity(0)), mergekit)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = Bench(options, folder, "llama-start").measure_start()
        _report(options.csv, facts, rows)
        startup = {row["tool"]: row["ms"] for row in rows}
        for shape in options.shapes:
            bench = Bench(options, folder, shape)
            for method in options.ops:
                _report(options.csv, facts, bench.measure(RECIPES[method], startup))
            if options.data is None:
                shutil.rmtree(bench.folder)


def _report(path: Path, facts: dict[str, object], rows: list[dict[str, object]]) -> None:
    _record.append(path, _record.MERGE_COLUMNS, [facts | row for row in rows])
    for row in rows:
        bare = f"{row['times_bare']:7.2f} x bare ({row['times_bare_net']:.2f} without start)" if row["bare_ms"] else ""
        print(
            f"{row['shape']:11} {row['op']:10} {row['tool']:12} {row['backend']:24} {row['ms']:9.0f} ms of "
            f"{row['runs']} runs, {row['cpu_ms']:8.0f} CPU ms {row['peak_rss_mb']:6.0f} MB "
            f"{row['ratio']:7.2f} x fastmerge {bare}",
            flush=True,
        )


if __name__ == "__main__":
    main()
