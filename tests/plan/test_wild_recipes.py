"""Recipes as people wrote them, planned over models that are there but for their data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stand_ins import StandIns

from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.layers import split_layer
from fastmerge.errors import InvalidInput
from fastmerge.plan import plan_all
from fastmerge.plan.types import Plan
from fastmerge.recipe.pipeline import Pipeline, load_pipeline

RECIPES = Path(__file__).resolve().parents[3] / "shared" / "recipes"
FILES = [
    f"{folder}/{file.stem}" for folder in ("main", "synthetic") for file in sorted((RECIPES / folder).glob("*.yml"))
]

# Where a human must look, and what the message says.
REFUSED = {
    "main/063_multi": "2 documents have no name",
    "main/088_sce": r"dype: unknown key \(did you mean 'dtype'\?\)",
    # The stand-ins share one vocabulary, without the recipe's tokens.
    "synthetic/011_tokens_kinds_ties": r"has no row for '<\|chat\|>'",
    "synthetic/012_tokens_practical_linear": r"has no row for '<\|im_start\|>'",
    "main/136_ties": r"nomalize: unknown parameter \(did you mean 'normalize'\?\)",
}
MOST_LAYERS = re.compile(r"layer_range: *\[\d+, *(\d+)\]")


def plan_over_stand_ins(path: Path, folder: Path) -> None:
    """Plan every document of a recipe, and account for every tensor."""
    layers = max(map(int, MOST_LAYERS.findall(path.read_text())), default=4)
    pipeline = load_pipeline(path)
    stand_ins, names = StandIns(folder), [step.name for step in pipeline.steps]
    steps = tuple(stand_ins.of(step, layers, names) for step in pipeline.steps)
    with plan_all(Pipeline(steps, steps[-1])) as plans:
        for plan in plans:
            assert_accounted(plan)


def assert_accounted(plan: Plan) -> None:
    """Every input tensor is used, or left out with a reason; layers are numbered without a gap; names are unique."""
    used = {(t.model, t.name) for output in plan.outputs for t in output.inputs.every}
    held = {(i, tensor) for i, model in enumerate(plan.models) for tensor in open_checkpoint(model.folder).tensors}
    assert used | {(d.model, d.name) for d in plan.dropped} == held
    layers = {parts.index for output in plan.outputs if (parts := split_layer(output.name))}
    assert layers == set(range(len(layers))) and layers
    assert len({output.name for output in plan.outputs}) == len(plan.outputs)


@pytest.mark.parametrize("name", FILES or [pytest.param("", marks=pytest.mark.skip(reason="needs ../shared/recipes"))])
def test_plans(name, tmp_path):
    path = RECIPES / f"{name}.yml"
    if name in REFUSED:
        with pytest.raises(InvalidInput, match=REFUSED[name]):
            plan_over_stand_ins(path, tmp_path)
        return
    plan_over_stand_ins(path, tmp_path)
