"""What ``diff`` finds is the same without torch as with it."""

from __future__ import annotations

import math

import torch
from checkpoint_files import write_adapter
from commands import call, call_json
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

import fastmerge
from fastmerge.checkpoint import open_checkpoint
from fastmerge.kernels import GRID, use_backend
from fastmerge.recipe.types import ModelRef
from fastmerge.reports import comparing
from fastmerge.reports.opening import with_adapter

NUMBERS = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40, 3.0])


def test_every_type_of_element(tmp_path, generator, monkeypatch):
    # Several chunks of a tensor, the last one shorter.
    monkeypatch.setattr(comparing, "CHUNK", GRID)
    base = torch.cat([NUMBERS, torch.randn(2 * GRID + 5, generator=generator)])
    tuned = torch.where(torch.rand(len(base), generator=generator) < 0.5, base, base + 1)
    finite = [values.nan_to_num(0, 1, -1) for values in (base, tuned)]
    for folder, values, rest in (("a", base, finite[0]), ("b", tuned, finite[1])):
        tensors = {f"own.{kind}": rest.to(kind) for kind in (torch.float32, torch.bfloat16, torch.float16)}
        tensors |= {f"odd.{kind}": values.clone().to(kind) for kind in (torch.float32, torch.bfloat16, torch.float64)}
        kinds = (torch.int8, torch.int64, torch.bool, torch.complex64)
        tensors |= {f"not merged.{kind}": rest.to(kind) for kind in kinds}
        tensors["mixed"] = rest.clone().to(torch.bfloat16 if folder == "a" else torch.float32)
        tensors["empty"] = torch.zeros(0)
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    found = [with_adapter(open_checkpoint(str(tmp_path / folder)), ModelRef(folder)) for folder in "ab"]
    without = list(comparing.compare(*found))
    with use_backend("reference"):
        with_torch = list(comparing.compare(*found))
    assert list(map(repr, without)) == list(map(repr, with_torch)) and len(without) == 12
    own = next(item for item in without if item.name == "own.torch.float32")
    assert own.changed == (finite[0] != finite[1]).double().mean().item() and own.cosine < 1


def test_a_model_with_an_adapter_is_what_its_merge_writes(tmp_path):
    save_model(tmp_path / "base", make_tensors(1, hidden=16, inner=24, vocab=40, layers=1))
    write_adapter(tmp_path / "lora", {"model.layers.0.mlp.up_proj": (24, 16), "model.layers.0.mlp.down_proj": (16, 24)})
    both = f"{tmp_path}/base+{tmp_path}/lora"
    fastmerge.merge({"merge_method": "passthrough", "models": [{"model": both}]}, tmp_path / "merged")
    found = fastmerge.diff(both, tmp_path / "merged")
    assert found.equal == len(found.tensors) == 12
    found = call_json("diff", tmp_path / "base", both, "--changed")
    merged = call_json("diff", tmp_path / "base", tmp_path / "merged", "--changed")
    assert found == merged and len(found["tensors"]) == 2

    seen, written = (call_json("inspect", model) for model in (both, tmp_path / "merged"))
    for name, values in written["tensors"].items():
        assert all(seen["tensors"][name][key] == values[key] for key in ("dtype", "shape", "bytes")), name
    assert seen["adapter"].endswith("lora/adapter_model.safetensors: lora on 2 tensors")
    assert len(seen["files"]) == 2 and seen["parameters"] == written["parameters"]
    assert "lora on 2 tensors" in call("inspect", both).output

    write_adapter(tmp_path / "inner", {"layers.0.mlp.up_proj": (24, 16)})
    for command in (("inspect",), ("diff", tmp_path / "base")):
        result = call(*command, f"{tmp_path}/base+{tmp_path}/inner")
        assert "its names have no prefix where the model's have model.: folded in there" in result.output

    write_adapter(tmp_path / "other", {"model.layers.0.mlp.up_proj": (24, 17)})
    for command in (
        ("inspect", f"{tmp_path}/base+{tmp_path}/other"),
        ("diff", f"{tmp_path}/base+{tmp_path}/other", both),
    ):
        result = call(*command)
        assert result.exit_code == 2 and "have other shapes than the model's" in result.output
    result = call("inspect", tmp_path / "lora")
    assert result.exit_code == 2 and "(name it behind its base, as model+adapter)" in result.output
    assert call("inspect", f"{tmp_path}/base+").exit_code == 2
