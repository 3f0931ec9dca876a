"""``fastmerge plan --explain``."""

from __future__ import annotations

import pytest
from checkpoint_files import write_adapter
from commands import call, call_json

RECIPE = """
merge_method: ties
base_model: {0}/base
models:
  - {{model: {0}/one, parameters: {{weight: [0, 1], density: {{filter: mlp, value: 0.25}}}}}}
  - {{model: {0}/two+{1}/lora, parameters: {{weight: 0.5}}}}
parameters: {{normalize: false}}
dtype: bfloat16
rules:
  - {{glob: '*.o_proj.*', source: {0}/three}}
  - {{filter: k_proj, merge_method: slerp, models: [{0}/one], parameters: {{t: 0.75}}}}
  - {{filter: lm_head, missing: drop}}
"""
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def recipe(models, tmp_path):
    write_adapter(tmp_path / "lora", {UP.removesuffix(".weight"): (160, 64)})
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE.format(models, tmp_path))
    return path


def test_parameters_after_gradients_and_filters(recipe, models, tmp_path):
    (found,) = call_json("plan", recipe, "--explain", UP)
    assert (found["name"], found["method"], found["semantics"], found["depth"]) == (UP, "ties", "mergekit", 1)
    assert found["said_by"] == f"{recipe}:4:1: models" and found["parameters"]["normalize"] is False
    assert found["base"]["model"] == f"{models}/base" and found["copied_from"] is None
    one, two = found["sources"]
    assert one["parameters"] == {"weight": 1, "density": 0.25} and one["adapters"] == 0
    assert two["parameters"] == {"weight": 0.5, "density": 1} and two["adapters"] == 1
    assert two["model"] == f"{models}/two+{tmp_path}/lora" and two["tensor"] == UP
    assert found["output"] == {
        "dtype": "bfloat16", "rounded_first_to": None, "shape": [160, 64], "file": "model.safetensors",
    }  # fmt: skip
    (first,) = call_json("plan", recipe, "--explain", UP.replace("1", "0"))
    assert first["depth"] == 0 and first["sources"][0]["parameters"]["weight"] == 0


def test_rules(recipe, models):
    copied = call_json("plan", recipe, "--explain", "*.o_proj.*")
    assert {item["copied_from"] for item in copied} == {f"{models}/three"} and len(copied) == 2
    assert {item["said_by"] for item in copied} == {f"{recipe}:10:5: rules[0]"}
    by_slerp = call_json("plan", recipe, "--explain", "k_proj")
    assert [(item["method"], item["parameters"]) for item in by_slerp] == [("slerp", {"t": 0.75})] * 2


def test_text(recipe, models):
    text = call("plan", recipe, "--explain", UP).stdout
    for line in (
        f"{UP}\n",
        "  method      ties (semantics: mergekit)\n",
        "  parameters  normalize false, ",
        f"  model 1     {models}/one: {UP} (bfloat16); weight 1, density 0.25\n",
        f"/lora: {UP} (bfloat16); 1 adapter(s) added; weight 0.5, density 1\n",
        "  output      bfloat16 [160, 64] in model.safetensors\n",
    ):
        assert line in text
    assert f"  result   a copy of {models}/three\n" in call("plan", recipe, "--explain", "o_proj").stdout


def test_what_is_left_out_and_what_is_unknown(recipe, models, tmp_path):
    short = tmp_path / "short.yml"
    short.write_text(
        f"merge_method: passthrough\nslices: [{{sources: [{{model: {models}/one, layer_range: [0, 1]}}]}}]\n"
    )
    left = call_json("plan", short, "--explain", "layers.1.mlp.up")
    assert left == [{"name": UP, "dropped": "no slice uses this layer", "model": f"{models}/one"}]
    assert f"{UP}\n  dropped  no slice uses this layer (" in call("plan", short, "--explain", UP).stdout
    refused = call("plan", recipe, "--explain", "nowhere")
    assert refused.exit_code == 2 and "--explain: 'nowhere' is in no tensor's name" in refused.stderr


def test_every_step_of_several(ties, models, tmp_path):
    path = tmp_path / "steps.yml"
    path.write_text(f"name: x\n{ties.read_text()}---\nmerge_method: passthrough\nmodels: [x]\n")
    found = call_json("plan", path, "--explain", "lm_head")
    assert [(item["step"], item["method"]) for item in found] == [("x", "ties"), ("", "passthrough")]
    assert call("plan", path, "--explain", "lm_head").stdout.startswith("x:\nlm_head.weight\n")
