"""Recipes with layer ranges: layers are renumbered, ends come from the ends, configs follow."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

from fastmerge.errors import InvalidInput

STACK = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
  - sources: [{model: a, layer_range: [3, 4]}]
"""


def test_layers_are_renumbered(family, plan_of):
    plan = plan_of(STACK)
    outputs = {output.name: output for output in plan.outputs}
    origin = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (0, 3)]
    for layer, (model, source) in enumerate(origin):
        for rest in ("mlp.up_proj.weight", "input_layernorm.weight"):
            (tensor,) = outputs[f"model.layers.{layer}.{rest}"].inputs.tensors
            assert (tensor.model, tensor.name) == (model, f"model.layers.{source}.{rest}")
    assert len(outputs) == 3 + 7 * 9
    assert json.loads(plan.files["config.json"].text)["num_hidden_layers"] == 7
    assert {(d.model, d.name, d.reason) for d in plan.dropped} >= {
        (1, "model.layers.0.mlp.up_proj.weight", "no slice uses this layer"),
        (1, "lm_head.weight", "no slice takes its tensors outside the layers from this model"),
    }
    order = [o.name for o in plan.outputs]
    assert order[0] == "model.embed_tokens.weight" and set(order[-2:]) == {"lm_head.weight", "model.norm.weight"}


def test_ends_come_from_the_first_and_the_last_slice(family, plan_of):
    plan = plan_of(STACK.replace("{model: a, layer_range: [3, 4]}", "{model: c, layer_range: [3, 4]}"))
    outputs = {output.name: output for output in plan.outputs}
    ends = {
        name: outputs[name].inputs.tensors[0].model
        for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    }
    assert ends == {"model.embed_tokens.weight": 0, "model.norm.weight": 2, "lm_head.weight": 2}


def test_no_source_of_the_last_slice_is_lost(family, plan_of):
    plan = plan_of("""
merge_method: linear
parameters: {weight: 1}
slices:
  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
  - sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}, {model: c, layer_range: [1, 3]}]
""")
    outputs = {output.name: output for output in plan.outputs}
    assert [t.model for t in outputs["lm_head.weight"].inputs.tensors] == [0, 1, 2]
    assert [t.model for t in outputs["model.embed_tokens.weight"].inputs.tensors] == [0, 1]
    assert [t.name for t in outputs["model.layers.2.mlp.up_proj.weight"].inputs.tensors][
        2
    ] == "model.layers.1.mlp.up_proj.weight"


def test_gradients_run_over_each_slice(family, plan_of):
    plan = plan_of("""
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]
    parameters: {t: [0.2, 0.8]}
  - sources: [{model: a, layer_range: [3, 4]}, {model: b, layer_range: [3, 4]}]
    parameters: {t: [0.1, 0.9]}
""")
    t = {output.name: output.group["t"] for output in plan.outputs}
    layers = [t[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(4)]
    assert layers == pytest.approx([0.2, 0.5, 0.8, 0.9])
    assert (t["model.embed_tokens.weight"], t["lm_head.weight"]) == (0.2, 0.1)


def test_lists_with_one_entry_per_layer(family, plan_of):
    for name, kinds in (("a", "stuv"), ("b", "wxyz")):
        save_model(name, make_tensors(layers=4), layer_types=list(kinds))
    config = json.loads(plan_of(STACK).files["config.json"].text)
    assert config["layer_types"] == list("stuxyzv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1, 4]", "[1, 5]", r"layer_range \[1, 5\] exceeds the 4 layers of b.*end it at 4 or less"),
        ("[3, 4]", "[4, 9]", r"layer_range \[4, 9\] exceeds"),
    ],
)
def test_ranges_beyond_the_model(family, plan_of, old, new, message):
    with pytest.raises(InvalidInput, match=message):
        plan_of(STACK.replace(old, new))


@pytest.mark.parametrize("names", ["transformer.h", "gpt_neox.layers", "model.decoder.blocks", "layers", "net.units"])
def test_any_name_of_the_layers(family, plan_of, names):
    for folder in ("a", "b"):
        tensors = make_tensors(layers=4)
        shutil.rmtree(folder)
        save_model(folder, tensors)
        renamed = {name.replace("model.layers", names): tensor for name, tensor in tensors.items()}
        save_file(renamed, f"{folder}/model.safetensors")
    outputs = {output.name: output for output in plan_of(STACK).outputs}
    assert outputs[f"{names}.3.mlp.up_proj.weight"].inputs.tensors[0].name == f"{names}.1.mlp.up_proj.weight"


def test_filters_of_values_per_model_mean_the_names_in_the_model(family, plan_of):
    # As in mergekit, and in it alone: what it lacks (glob, regex) and values that are one for all mean the output's.
    outputs = {
        output.name: output.group
        for output in plan_of("""
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: layers.1., value: 5}, {value: 1}]}}
      - {model: b, layer_range: [1, 3], parameters: {weight: [{glob: '*layers.1.*', value: 6}, {value: 2}]}}
      - {model: base, layer_range: [2, 4]}
  - sources:
      - {model: a, layer_range: [1, 3]}
      - {model: b, layer_range: [2, 4]}
      - {model: base, layer_range: [0, 2]}
    parameters: {weight: [{filter: layers.2.mlp, value: 7}, {value: 3}]}
parameters: {lambda: [{filter: layers.2., value: 8}, {value: 4}]}
""").outputs
    }
    found = [
        (group["weight"], group["lambda"])
        for i in range(4)
        for group in [outputs[f"model.layers.{i}.mlp.up_proj.weight"]]
    ]
    assert found == [((1, 2), 4), ((5, 6), 4), ((3, 7), 8), ((7, 3), 4)]
