"""Times whole merges of files by the command, on the CPU and on the GPU, and compares the bytes of their outputs."""

from __future__ import annotations

import filecmp
import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from .._bench import Bench, Bound, Contender
from ..merge import processes
from ..merge.checkpoints import SHAPES, make_checkpoints, model_names
from ..merge.recipes import RECIPES

METHODS = ("ties", "linear")
# What one of them may take.
METHOD_SECONDS = 20
# A fast one of the plain ways to read and write as many bytes.
BARE = "preadv+behind t2 4MiB"
BUDGET = 1.0


def run(bench: Bench) -> None:
    """Make a base and three experts of 1.2B parameters and merge them; their files are in the page cache."""
    name = "llama-start" if bench.check else "llama-1b"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_checkpoints(folder / name, SHAPES[name], device=bench.device.type)
        for method in METHODS[:1] if bench.check else METHODS:
            if bench.has(METHOD_SECONDS, method):
                with bench.attempt(method):
                    _merge(bench, method, folder, name)


def _merge(bench: Bench, method: str, folder: Path, name: str) -> None:
    recipe = folder / f"{method}.yml"
    models = [folder / name / model for model in model_names()[: RECIPES[method].inputs]]
    RECIPES[method].write(recipe, folder / name)
    # The dry run has no GPU to ask for.
    devices = ("cpu", "auto" if bench.check else "cuda")
    # Without the start of the programs.
    inner: dict[str, float] = {}

    def merge(device: str) -> float:
        out = folder / device
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "fastmerge", "merge", recipe, out, "--device", device, "--json"]
        usage = processes.run(command, out, folder / "log")
        inner[device] = json.loads(usage.stdout)["seconds"]
        return usage.seconds

    def bare() -> float:
        out = folder / "bare"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.merge.bare_cost", BARE, out, *models]
        inner["bare"] = float(json.loads(processes.run(command, out, folder / "log").stdout))
        return inner["bare"]

    nbytes = 2 * SHAPES[name].parameters * (len(models) + 1)
    facts = {
        "shape": SHAPES[name].parameters, "dtype": torch.bfloat16, "models": len(models), "once": nbytes,
        "budget": BUDGET, "warm": True,
    }  # fmt: skip
    for op, clock in (
        (f"{method}, files", {"bare": bare} | {device: functools.partial(merge, device) for device in devices}),
        (f"{method}, files, without start", {key: lambda key=key: inner[key] for key in ("bare", *devices)}),
    ):
        contenders = [Contender("fastmerge", backend=device, measure=clock[device]) for device in devices]
        bench.measure(op, contenders, bound=Bound("bare", nbytes, [clock["bare"]]), **facts)
    names = sorted(path.name for path in (folder / devices[0]).glob("*.safetensors"))
    outs = [folder / device for device in devices]
    _, different, missing = filecmp.cmpfiles(*outs, names, shallow=False)
    assert names and not different and not missing, f"{method}: {different + missing} differ between {devices}"
    print(f"{method}: {' and '.join(devices)} write the same bytes in {len(names)} files", flush=True)
