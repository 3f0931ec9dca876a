"""Tiny merges on disk: their recipe, their plan, and what the result must be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from checkpoint_files import read_entry
from quantized_files import decode
from safetensors.torch import load_file
from tiny_models import make_tensors, save_model

from fastmerge.kernels import low_rank_update, use_backend
from fastmerge.methods import REQUIRED, get_method
from fastmerge.plan import make_plan
from fastmerge.plan.types import InputTensor, OutputTensor, Plan
from fastmerge.recipe import load
from fastmerge.steps.driver import merge_source
from fastmerge.steps.source import Resident

PARAMETERS = {
    "ties": "{weight: 0.5, density: 0.4}",
    "dare_ties": "{weight: 0.5, density: 0.4}",
    "della": "{weight: 0.5, density: 0.4, epsilon: 0.2}",
    "linear": "{weight: 1.5}",
    "task_arithmetic": "{weight: 0.5}",
    "model_stock": "{}",
    "task_arithmetic_sb": "{weight: 0.5}",
    "ties_sb": "{weight: 0.5, density: 0.4}",
    "tsvm": "{}",
    "iso_c": "{weight: 0.5}",
    "iso_cts": "{weight: 0.5}",
    "knots": "{density: 0.4}",
}


@dataclass
class Merge:
    """A recipe, its models, and where the output goes."""

    recipe: str
    out: Path

    def plan(self, **options) -> Plan:
        return make_plan(load(self.recipe), **options)


def make_merge(folder: Path, method="ties", models=3, shards=1, dtype=torch.bfloat16, extra=None, **size) -> Merge:
    """Write a base and fine-tunes of it into ``folder`` and return their merge by a method."""
    base = {**make_tensors(0, dtype=dtype, **size), **(extra or {})}
    save_model(folder / "base", base, shards=shards)
    for k in range(models):
        save_model(folder / f"model{k}", make_tensors(k + 1, base=base, dtype=dtype), shards=shards)
    return merge_of(folder, method, models)


def merge_of(folder: Path, method: str, models: int = 3) -> Merge:
    """Return the merge by a method of what ``make_merge`` wrote into ``folder``."""
    lines = [f"merge_method: {method}", f"base_model: {folder}/base", "models:"]
    if method == "linear":
        del lines[1]
    for k in range(models):
        lines += [f"- model: {folder}/model{k}", f"  parameters: {PARAMETERS[method]}"]
    return Merge("\n".join(lines) + "\n", folder / "out")


def merge_of_any(folder: Path, name: str, models: dict[str, dict[str, torch.Tensor]]) -> Merge:
    """Return the merge of ``models`` (the first is the base) by any method: as many as it takes, values made up."""
    method = get_method(name)
    for model, tensors in models.items():
        save_model(folder / model, tensors)
    base, *others = models
    others = others[: method.inputs[1]]
    required = [parameter for parameter in method.parameters if parameter.default is REQUIRED]
    values = {p.name: p.choices[0] if p.choices else p.kind(p.maximum or 0.5) for p in required}
    recipe = {
        "merge_method": name,
        "models": [{"model": str(folder / model)} for model in others],
        "parameters": values,
        **({"base_model": str(folder / base)} if method.base == "required" else {}),
    }
    return Merge(yaml.safe_dump(recipe), folder / "out")


def expected(plan: Plan) -> dict[str, torch.Tensor]:
    """Return every output tensor, merged whole and in memory by the reference."""
    with use_backend("reference"):
        return {output.name: _expected(output) for output in plan.outputs}


def _expected(output: OutputTensor) -> torch.Tensor:
    inputs = output.inputs.map(_load)
    if output.group is None:
        return inputs.every[0]
    out = torch.full(output.shape, float("nan"), dtype=output.dtype.torch)
    if out.numel():
        merge_source(get_method(output.method), output.group, Resident.of(inputs), out)
    return out


def _load(tensor: InputTensor) -> torch.Tensor:
    value = decode(tensor).view(tensor.shape) if tensor.coded else read_entry(tensor)
    for adapter in tensor.adapters:
        folded = torch.empty(tensor.shape, dtype=torch.float32)
        low_rank_update(folded, value, *(_load(part).float() for part in adapter.parts), adapter.scale)
        value = folded
    return value


def outputs_of(out: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of an output folder."""
    return {name: t for path in sorted(out.glob("*.safetensors")) for name, t in load_file(path).items()}


def assert_same_tensors(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def same_files(a: Path, b: Path) -> bool:
    """True when two folders hold the same files with the same bytes."""
    names = sorted(p.relative_to(a) for p in a.rglob("*"))
    return names == sorted(p.relative_to(b) for p in b.rglob("*")) and all(
        (a / n).is_dir() or (a / n).read_bytes() == (b / n).read_bytes() for n in names
    )
