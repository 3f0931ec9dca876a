"""Times whole merges of files by the command, on the CPU and on the GPU, and compares the bytes of their outputs."""

from __future__ import annotations

import filecmp
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from ..merge import processes
from ..merge.checkpoints import SHAPES, make_checkpoints, model_names
from ..merge.recipes import RECIPES
from .timing import Bench, Bound, Contender

METHODS = ("ties", "linear")
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
            with bench.attempt(method):
                _merge(bench, method, folder, name)


def _merge(bench: Bench, method: str, folder: Path, name: str) -> None:
    recipe = folder / f"{method}.yml"
    models = [folder / name / model for model in model_names()[: RECIPES[method].inputs]]
    RECIPES[method].write(recipe, folder / name)
    # The dry run has no GPU to ask for.
    devices = ("cpu", "auto" if bench.check else "cuda")
    engine: dict[str, float] = {}

    def merge(device: str) -> float:
        out = folder / device
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "fastmerge", "merge", recipe, out, "--device", device, "--json"]
        usage = processes.run(command, out, folder / "log")
        engine[device] = json.loads(usage.stdout)["seconds"]
        return usage.seconds

    def bare() -> float:
        out = folder / "bare"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.merge.bare_cost", BARE, out, *models]
        return float(json.loads(processes.run(command, out, folder / "log").stdout))

    nbytes = 2 * SHAPES[name].parameters * (len(models) + 1)
    facts = {
        "shape": SHAPES[name].parameters, "dtype": torch.bfloat16, "models": len(models), "once": nbytes,
        "budget": BUDGET, "bound": Bound("bare", bare, nbytes),
    }  # fmt: skip
    contenders = [Contender("fastmerge", backend=device, measure=lambda d=device: merge(d)) for device in devices]
    bench.measure(f"{method}, files", contenders, **facts)
    contenders = [Contender("fastmerge", backend=d, measure=lambda d=d: engine[d]) for d in devices]
    bench.measure(f"{method}, files, without start", contenders, **facts)
    names = sorted(path.name for path in (folder / devices[0]).glob("*.safetensors"))
    same, different, missing = filecmp.cmpfiles(*(folder / device for device in devices), names, shallow=False)
    assert names and not different and not missing, f"{method}: {different + missing} differ between {devices}"
    print(f"{method}: {len(same)} files have the same bytes from {' and '.join(devices)}", flush=True)
