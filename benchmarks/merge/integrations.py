"""Time mergekit and PEFT with our kernels inside: ``python -m benchmarks.merge.integrations --python PYTHON``.

Per method, in turns: a whole run of mergekit-yaml (0.5B, a base and three models) as it is, and with
``fastmerge.integrations.mergekit``; and PEFT's ``add_weighted_adapter`` by ``svd`` (4096 x 4096, three adapters of rank
16) without and with ``fastmerge.integrations.peft``. PYTHON has mergekit, PEFT and fastmerge. ``startup_ms`` is the
processor time of importing mergekit's command, which both runs take; ``ratio_net`` compares processor time without it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import _record
from . import processes
from .checkpoints import SHAPES
from .recipes import RECIPES, Recipe

COLUMNS = (
    *_record.RUN_COLUMNS, "op", "tool", "shape", "runs", "ms", "cpu_ms", "peak_rss_mb", "startup_ms", "ratio",
    "ratio_net", "difference",
)  # fmt: skip
METHODS = {**RECIPES, "della": Recipe("della", RECIPES["ties"].inputs)}
OWN = ["-c", "from mergekit.scripts.run_yaml import main; main()"]
OURS = ["-m", "fastmerge.integrations.mergekit", "mergekit-yaml"]
OPTIONS = ["--no-copy-tokenizer", "--no-write-model-card", "--random-seed", "1", "--quiet"]

_PEFT = """
import contextlib, json, resource, sys, time, torch
from peft import LoraConfig, get_peft_model
from fastmerge.integrations.peft import patch

torch.manual_seed(0)
layer = torch.nn.Sequential(torch.nn.Linear(4096, 4096, bias=False))
config = LoraConfig(r=16, target_modules=["0"])
model = get_peft_model(layer, config, "one")
for name in ("two", "three"):
    model.add_adapter(name, config)
for name, parameter in model.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter, std=0.1)

def run(name, patched):
    with patch() if patched else contextlib.nullcontext():
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        model.add_weighted_adapter(["one", "two", "three"], [0.3, 0.4, 0.3], name, combination_type="svd", svd_rank=16)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

run("warm", True)
ours = sorted(run(f"ours{i}", True) for i in range(5))[2]
own = run("own", False)
target = model.base_model.model[0]
want, have = (target.get_delta_weight(name) for name in ("own", "ours0"))
print(json.dumps({"own": own, "ours": ours, "difference": float((want - have).norm() / want.norm())}))
"""


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference of elements of two checkpoints, of which one tensor is held at a time."""
    from safetensors import safe_open

    def opened(folder: Path) -> dict[str, object]:
        files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}  # noqa: SIM118

    first, second = opened(one), opened(other)
    assert first.keys() == second.keys(), "the outputs hold other tensors"
    return max(float((first[n].get_tensor(n).float() - second[n].get_tensor(n).float()).abs().max()) for n in first)


def mergekit_rows(options: argparse.Namespace, folder: Path, facts: dict[str, object]) -> list[dict[str, object]]:
    """Return a row per method and contender."""
    models = folder / options.shape
    if not models.exists():
        command = [sys.executable, "-m", "benchmarks.merge.checkpoints", models, "--shape", options.shape]
        processes.run(command, models)
    start = 1e3 * processes.run([options.python, "-c", "import mergekit.scripts.run_yaml"]).cpu_seconds
    rows: list[dict[str, object]] = []
    for method in options.methods:
        recipe, outs = folder / f"{method}.yml", {tool: folder / f"{method}-{tool}" for tool in ("mergekit", "patched")}
        METHODS[method].write(recipe, models)
        usages: dict[str, list[processes.Usage]] = {tool: [] for tool in outs}
        for _ in range(options.runs):
            for tool, program in (("mergekit", OWN), ("patched", OURS)):
                shutil.rmtree(outs[tool], ignore_errors=True)
                command: Sequence[str | Path] = [options.python, *program, recipe, outs[tool], *OPTIONS]
                usages[tool].append(processes.run(command, outs[tool]))
        difference = largest_difference(*outs.values())
        medians = {
            tool: {"ms": 1e3 * statistics.median(usage.seconds for usage in of), **processes.columns(of)}
            for tool, of in usages.items()
        }
        own = medians["mergekit"]
        for tool, found in medians.items():
            rows.append({
                **facts, "op": method, "tool": tool, "shape": options.shape, "runs": options.runs, **found,
                "startup_ms": start, "ratio": own["ms"] / found["ms"],
                "ratio_net": (own["cpu_ms"] - start) / (found["cpu_ms"] - start),
                "difference": difference if tool == "patched" else 0.0,
            })  # fmt: skip
        for out in outs.values():
            shutil.rmtree(out)
    return rows


def peft_rows(options: argparse.Namespace, facts: dict[str, object]) -> list[dict[str, object]]:
    """Return the row of PEFT and that of ours."""
    usage = processes.run([options.python, "-W", "ignore", "-c", _PEFT])
    found = json.loads(usage.stdout)
    return [
        {
            **facts, "op": "peft_svd", "tool": tool, "shape": "4096x4096 r16 x3", "runs": 1 if tool == "peft" else 5,
            "ms": 1e3 * found[key][0], "cpu_ms": 1e3 * found[key][1], "peak_rss_mb": "", "startup_ms": 0,
            "ratio": found["own"][0] / found[key][0], "ratio_net": found["own"][1] / max(found[key][1], 1e-9),
            "difference": found["difference"] if tool == "patched" else 0.0,
        }
        for tool, key in (("peft", "own"), ("patched", "ours"))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge.integrations", description=__doc__)
    parser.add_argument("--python", required=True, metavar="PATH", help="interpreter with mergekit, PEFT and fastmerge")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-0.5b")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps the checkpoints; by default they are made anew")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "integrations.csv")
    options = parser.parse_args()
    facts = _record.run_facts(len(os.sched_getaffinity(0)), _record.mergekit_version(options.python))
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        if not options.no_peft:
            _record.append(options.csv, COLUMNS, peft_rows(options, facts))
        _record.append(options.csv, COLUMNS, mergekit_rows(options, options.folder or Path(scratch), facts))


if __name__ == "__main__":
    main()
