"""Recipes as people wrote them, planned over tiny models that were made for them."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.layers import split_layer
from fastmerge.plan import make_plan
from fastmerge.recipe import load

RECIPES = (
    "main/016_dare_ties", "main/040_linear", "main/058_model_stock", "main/073_passthrough", "main/079_passthrough",
    "main/106_slerp", "main/112_task_arithmetic", "main/131_ties", "synthetic/003_linear_dict_refs",
    "synthetic/010_scale_passthrough",
)  # fmt: skip
SMALL = ["--hidden", "8", "--inter", "16", "--heads", "2", "--kv-heads", "1", "--vocab", "64"]


@pytest.fixture(scope="module")
def make_models(shared):
    """The program that writes tiny models for a recipe."""
    spec = importlib.util.spec_from_file_location("make_models", shared / "tools" / "make_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The program leaves closing its files to the interpreter.
@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_plans(shared, make_models, tmp_path, monkeypatch, name):
    recipe = shared / "recipes" / f"{name}.yml"
    options = ["--same-vocab", "--drop-revision", *(["--shards", "3"] if "ties" in name else ["--tied"])]
    monkeypatch.setattr(sys, "argv", ["make_models", str(recipe), str(tmp_path / "wild"), *SMALL, *options])
    make_models.main()
    plan = make_plan(load(tmp_path / "wild" / "recipe.yml"))
    used = {(t.model, t.name) for output in plan.outputs for t in output.inputs.every}
    held = {(i, tensor) for i, model in enumerate(plan.models) for tensor in open_checkpoint(model.folder).tensors}
    assert used | {(d.model, d.name) for d in plan.dropped} == held
    layers = {parts.index for output in plan.outputs if (parts := split_layer(output.name))}
    assert layers == set(range(len(layers))) and layers
    assert len({output.name for output in plan.outputs}) == len(plan.outputs)
