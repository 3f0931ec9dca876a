"""Merges of plain checkpoints on the processor load neither torch nor transformers, and give the same bits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of
from tiny_models import save_family

from fastmerge.engine.needs import why_torch
from fastmerge.kernels import use_backend
from fastmerge.methods import all_methods
from fastmerge.plan import make_plan
from fastmerge.recipe import load

pytestmark = pytest.mark.compiled

METHODS = {
    "linear": {"weight": 0.5},
    "slerp": {"t": 0.3},
    "ties": {"weight": 0.5, "density": 0.4},
    "dare_ties": {"weight": 0.5, "density": 0.4},
    "della": {"weight": 0.5, "density": 0.4},
    "breadcrumbs": {"weight": 0.5, "density": 0.4, "rescale": True},
    "nuslerp": {"weight": 0.5},
    "model_stock": {},
    "sce": {"select_topk": 0.5},
    "consensus": {},
}

# Merges with every method and verifies the results; as a GPU-less machine without torch would, if that could be.
PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name in ("torch", "transformers"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
import json
import fastmerge
from fastmerge.engine.forecast import forecast
*merges, average = json.load(sys.stdin)
fastmerge.average(*average, schedule="ema:0.5")
for recipe, out in merges:
    forecast(fastmerge.check(recipe), 1 << 30)
    fastmerge.merge(recipe, out, threads=2)
    assert fastmerge.verify(out, threads=2).ok
    assert fastmerge.verify(out, sample=0, threads=2).ok
print("torch" in sys.modules, "transformers" in sys.modules)
"""


def test_merges_and_their_verification_load_no_torch(tmp_path):
    family = save_family(tmp_path)
    recipes = {name: recipe_of(name, family) for name in METHODS}
    models = [str(family / name) for name in ("one", "two", "three")]
    merges = [(recipe, str(tmp_path / f"out-{name}")) for name, recipe in recipes.items()]
    given = json.dumps([*merges, (models, str(tmp_path / "average"))])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False False\n", "")
    for name, recipe in recipes.items():
        assert_same_tensors(outputs_of(tmp_path / f"out-{name}"), expected(make_plan(load(recipe))))


def recipe_of(name: str, family) -> str:
    method = all_methods()[name]
    most = method.inputs[1] or 3
    recipe = {
        "merge_method": name,
        "models": [{"model": str(family / model)} for model in ("one", "two", "three")[:most]],
        "parameters": METHODS[name],
        **({} if method.base == "ignored" else {"base_model": str(family / "base")}),
    }
    return yaml.safe_dump(recipe)


def test_what_needs_torch_is_named(tmp_path):
    assert why_torch(make_merge(tmp_path / "a", "ties").plan().outputs) is None
    with use_backend("reference"):
        assert "the backend reference (pinned)" in why_torch(make_merge(tmp_path / "a", "ties").plan().outputs)
    assert "iso_c computes with them" in why_torch(make_merge(tmp_path / "b", "iso_c").plan().outputs)
    twice = make_merge(tmp_path / "c", "ties")
    twice.recipe += "dtype: float16\nout_dtype: float32\n"
    assert "it is rounded twice" in why_torch(twice.plan().outputs)
