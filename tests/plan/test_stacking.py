"""Layers of several models in one stack: they must have the shapes and the tensors that one config describes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

from fastmerge.errors import InvalidInput

SIZE = {"layers": 3, "hidden": 16, "inner": 8, "vocab": 8}
STACK = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3]}]
"""


@pytest.fixture
def stack(tmp_path, monkeypatch, plan_of):
    """A function that saves ``a`` and ``b``, with other sizes and tensors of ``b``, and plans a stack of them."""
    monkeypatch.chdir(tmp_path)

    def plan(size=(), text=STACK, change=lambda tensors: tensors, **config):
        save_model("a", make_tensors(**SIZE), **config)
        save_model("b", change(make_tensors(**(SIZE | dict(size)))), **config)
        return plan_of(text)

    return plan


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"hidden": 32}, r"b: model.layers.1.input_layernorm.weight: shape \[32\], but \[16\] in a, in whose stack"),
        ({"inner": 12}, r"model.layers.1.mlp.down_proj.weight: shape \[16, 12\], but \[16, 8\] in a.* and 5 more"),
        ({"kv_heads": 1}, r"model.layers.1.self_attn.k_proj.weight: shape \[4, 16\], but \[8, 16\] in a"),
        ({"vocab": 12}, r"b: lm_head.weight: shape \[12, 16\], but \[8, 16\] in a, which gives the embedding"),
    ],
)
def test_sizes(stack, size, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        stack(size)
    assert len(caught.value.problems) == 1


def test_other_tensors(stack):
    def bias(tensors):
        return tensors | {"model.layers.2.self_attn.q_proj.bias": torch.ones(16)}

    with pytest.raises(InvalidInput, match="1 of its layers hold other tensors than any layer of a"):
        stack(change=bias)


def test_a_model_whose_layers_differ(stack):
    """OpenELM and pruned models: the config has a size for every layer."""

    def narrow(tensors):
        name = "model.layers.1.mlp.down_proj.weight"
        return tensors | {name: tensors[name][:, :4].contiguous()}

    ranges = "".join(f"  - sources: [{{model: {name}, layer_range: [0, 2]}}]\n" for name in "ba")
    plan = stack(change=narrow, text=f"merge_method: passthrough\nslices:\n{ranges}")
    assert {o.shape for o in plan.outputs if o.name.endswith("down_proj.weight")} == {(16, 8), (16, 4)}


def test_a_tied_model_behind_one_with_a_head(stack):
    (head,) = (o for o in stack({"tied": True}).outputs if o.name == "lm_head.weight")
    assert head.inputs.tensors[0].name == "model.embed_tokens.weight"
    with pytest.raises(InvalidInput, match=r"b: model.layers.1.input_layernorm.weight: shape \[32\]"):
        stack({"hidden": 32, "tied": True})


def test_encoder_and_decoder(tmp_path, monkeypatch, plan_of):
    monkeypatch.chdir(tmp_path)
    names = [f"model.{half}.layers.{i}.q.weight" for half in ("encoder", "decoder") for i in range(3)]
    for folder in "ab":
        save_model(folder, make_tensors(**SIZE))
        save_file({name: torch.ones(2) for name in names}, f"{folder}/model.safetensors")
    where = r"model\.encoder\.layers and in model\.decoder\.layers"
    with pytest.raises(InvalidInput, match=f"a has layers in {where}, and layer_range does not say which"):
        plan_of(STACK)


def test_layers_that_predict_further_ahead(stack):
    """The layer behind the last one stays behind the last one."""

    def ahead(tensors):
        own = {"model.layers.3.eh_proj.weight": torch.ones(2), "model.layers.3.input_layernorm.weight": torch.ones(16)}
        return tensors | own

    plan = stack(change=ahead, num_hidden_layers=3, num_nextn_predict_layers=1)
    outputs = {o.name: o.inputs.tensors[0] for o in plan.outputs}
    assert outputs["model.layers.4.eh_proj.weight"].name == "model.layers.3.eh_proj.weight"
    assert outputs["model.layers.3.input_layernorm.weight"].name == "model.layers.2.input_layernorm.weight"
    assert "model.layers.3.eh_proj.weight" not in outputs
    assert json.loads(plan.files["config.json"].text)["num_hidden_layers"] == 4
    with pytest.raises(InvalidInput, match=r"layer_range \[1, 4\] exceeds the 3 layers of b"):
        stack(change=ahead, num_hidden_layers=3, text=STACK.replace("[1, 3]", "[1, 4]"))


def test_columns_for_each_layer(stack):
    with pytest.raises(InvalidInput, match=r"columns for each layer .*slices cannot cut it"):
        stack(hidden_size_per_layer_input=4)
    same = STACK.replace("model: b, layer_range: [1, 3]", "model: b, layer_range: [2, 3]")
    assert stack(text=same, hidden_size_per_layer_input=4).outputs


def test_kinds_of_layers_that_the_config_cannot_name(stack):
    """DeepSeek's first layers are dense: the config counts them, and cannot say that a later one is."""

    def dense_first(tensors):
        return tensors | {"model.layers.0.mlp.dense.weight": torch.ones(2)}

    rotated = "merge_method: passthrough\nslices:\n" + "".join(
        f"  - sources: [{{model: b, layer_range: {layers}}}]\n" for layers in ("[1, 3]", "[0, 1]")
    )
    message = (
        r"first_k_dense_replace \(1\), which cannot .*: layer 0 has other tensors than layer 0 of b .*keep each kind"
    )
    with pytest.raises(InvalidInput, match=message):
        stack(change=dense_first, text=rotated, first_k_dense_replace=1)
    (note,) = stack(change=dense_first, text=rotated).notes
    assert "layer 0 of the output has other tensors than layer 0 of b, and nothing in the config says" in note
    assert stack(change=dense_first, text=rotated, mlp_layer_types=["dense", "sparse", "sparse"]).notes == ()


def test_blocks_that_layers_share(stack):
    def shared(tensors):
        return tensors | {"model.layers.1.shared_transformer.list.0.weight": torch.ones(2)}

    doubled = STACK.replace("{model: a", "{model: b")
    with pytest.raises(InvalidInput, match=r"b: shares a block between its layers.*merge whole models"):
        stack(change=shared, text=doubled)


@pytest.mark.parametrize(("start", "notes"), [(0, 0), (1, 1), (2, 0)])
def test_layers_of_different_kinds_in_one_slice(stack, start, notes):
    text = f"""
merge_method: linear
parameters: {{weight: 1}}
slices:
  - sources: [{{model: a, layer_range: [0, 1]}}, {{model: b, layer_range: [{start}, {start + 1}]}}]
"""
    found = stack(text=text, layer_types=["full", "sliding", "full"]).notes
    assert len(found) == notes
    if notes:
        assert found[0] == (
            "layers of different layer_types are merged: layer 0 of a is 'full', layer 1 of b is 'sliding'"
        )
