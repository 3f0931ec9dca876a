"""Recipes with dtype and out_dtype: where values are rounded on their way in and out."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import write_adapter
from tiny_merges import make_merge, outputs_of, same_files

import fastmerge
from fastmerge.engine import RunOptions, run, verify
from fastmerge.engine.checksums import BLOCK
from fastmerge.errors import BudgetError

SMALL = {"hidden": 32, "inner": 48, "vocab": 128, "layers": 1}
# Matrices of several chunks of one cell.
WIDE = {"hidden": 256, "inner": 384, "vocab": 512, "layers": 1}
PAIRS = [
    (torch.float32, "bfloat16", "float32"),
    (torch.float32, "bfloat16", "float16"),
    (torch.bfloat16, "float16", "bfloat16"),
    (torch.float32, "float16", "float64"),
    (torch.float64, "bfloat16", "float64"),
    (torch.bfloat16, "float32", "bfloat16"),
    (torch.float64, "float64", "float32"),
]


def merged(folder, recipe: str, inputs=None, **options) -> dict[str, torch.Tensor]:
    """Merge three models of ``folder`` in memory, each input rounded by ``inputs`` first."""
    models = [outputs_of(folder / name) for name in ("base", "model0", "model1", "model2")]
    base, *tuned = [{n: t.to(inputs) if inputs else t for n, t in model.items()} for model in models]
    return fastmerge.merge_state_dicts(base, tuned, method="ties", weight=0.5, density=0.4, **options)


@pytest.mark.parametrize(("stored", "dtype", "out_dtype"), PAIRS)
def test_inputs_and_result_are_rounded_to_dtype_first(tmp_path, stored, dtype, out_dtype):
    merge = make_merge(tmp_path, dtype=stored, **SMALL)
    merge.recipe += f"dtype: {dtype}\nout_dtype: {out_dtype}\n"
    inner = getattr(torch, dtype) if dtype != "float64" else torch.float32
    wanted = merged(tmp_path, merge.recipe, inner, dtype=inner)
    run(merge.plan(), merge.out, RunOptions(chunk=BLOCK))
    found = outputs_of(merge.out)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.to(getattr(torch, out_dtype))), name
        assert found[name].dtype == getattr(torch, out_dtype)
    assert verify(merge.out).ok


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_one_of_them_rounds_the_result_alone(tmp_path, key):
    merge = make_merge(tmp_path, dtype=torch.float32, **SMALL)
    merge.recipe += f"{key}: bfloat16\n"
    run(merge.plan(), merge.out)
    wanted = merged(tmp_path, merge.recipe, dtype=torch.bfloat16)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in outputs_of(merge.out).items())


def test_other_semantics_round_once(tmp_path):
    merge = make_merge(tmp_path, dtype=torch.float32, **SMALL)
    merge.recipe += "dtype: bfloat16\nout_dtype: float32\nsemantics: peft\n"
    run(merge.plan(), merge.out)
    wanted = merged(tmp_path, merge.recipe, dtype=torch.float32, semantics="peft")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in outputs_of(merge.out).items())


def test_float64_is_computed_in_float32(tmp_path):
    merge = make_merge(tmp_path, dtype=torch.float64, **SMALL)
    plan = merge.plan()
    assert "12 tensors are float64" in plan.notes[0] and plan.notes[0].endswith("they are computed in float32")
    run(plan, merge.out)
    wanted = merged(tmp_path, merge.recipe, torch.float32, dtype=torch.float32)
    for name, tensor in outputs_of(merge.out).items():
        assert tensor.dtype == torch.float64 and torch.equal(tensor, wanted[name].double())


def test_a_copy_of_float64_is_a_copy(tmp_path):
    merge = make_merge(tmp_path, dtype=torch.float64, **SMALL)
    merge.recipe = f"merge_method: passthrough\nmodels: [{tmp_path}/base]\n"
    run(merge.plan(), merge.out)
    base = outputs_of(tmp_path / "base")
    assert all(torch.equal(tensor, base[name]) for name, tensor in outputs_of(merge.out).items())


@pytest.mark.parametrize("method", ["ties", "task_arithmetic_sb"])
def test_chunks_adapters_budgets_and_threads_change_no_byte(tmp_path, method):
    merge = make_merge(tmp_path, method, dtype=torch.float32, **WIDE)
    write_adapter(tmp_path / "lora", {"model.layers.0.mlp.up_proj": (384, 256)})
    merge.recipe = merge.recipe.replace(f"{tmp_path}/model0", f"{tmp_path}/model0+{tmp_path}/lora")
    merge.recipe += "dtype: bfloat16\nout_dtype: float16\n"
    plan = merge.plan()
    run(plan, tmp_path / "roomy")
    with pytest.raises(BudgetError, match=r"at least \d+ ") as caught:
        run(plan, tmp_path / "never", RunOptions(ram=1, threads=2, chunk=BLOCK))
    least = int(str(caught.value).split("at least ")[1].split()[0])
    run(plan, merge.out, RunOptions(ram=least, threads=2, chunk=BLOCK))
    assert same_files(merge.out, tmp_path / "roomy")
