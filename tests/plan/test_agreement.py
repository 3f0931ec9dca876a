"""A config that says other sizes than the tensors have stops the merge, with the tensor named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import make_tensors, save_model

from fastmerge.errors import InvalidInput
from fastmerge.plan import make_plan
from fastmerge.plan.agreement import check_agreement
from fastmerge.plan.findings import Findings
from fastmerge.plan.shapes import shapes_of
from fastmerge.recipe import load

SIZES = {"hidden": 16, "inner": 24, "vocab": 32, "layers": 2}


def plan_of(folder, **config):
    tensors = make_tensors(0, **SIZES)
    for name in ("a", "b"):
        save_model(folder / name, tensors, **config)
    models = "".join(f"- model: {folder}/{name}\n" for name in "ab")
    return make_plan(load(f"merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{models}"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"vocab_size": 40}, "vocab_size 40, hidden_size 16, but model.embed_tokens.weight has the shape [32, 16]"),
        ({"hidden_size": 8, "head_dim": 4}, "but model.norm.weight has the shape [16]"),
        ({"intermediate_size": 8}, "but model.layers.0.mlp.down_proj.weight has the shape [16, 24], and 1 more"),
        ({"num_key_value_heads": 4}, "but model.layers.0.self_attn.k_proj.weight has the shape [8, 16], and 1 more"),
        ({"head_dim": 8}, "num_attention_heads * head_dim 32, hidden_size 16, but model.layers.0.self_attn.q_proj"),
    ],
)
def test_other_sizes_are_refused(tmp_path, config, said):
    with pytest.raises(InvalidInput, match=re.escape(said)) as caught:
        plan_of(tmp_path, **config)
    assert all(problem.where == f"{tmp_path}/a/config.json" for problem in caught.value.problems)


@pytest.mark.parametrize(
    "config",
    [{}, {"head_dim": 4}, {"model_type": "deci", "vocab_size": 40}, {"vocab_size": None}, {"hidden_size": None}],
)
def test_what_agrees_or_is_not_known_is_taken(tmp_path, config):
    assert plan_of(tmp_path, **config).outputs


def test_layers_of_different_sizes_are_taken(tmp_path):
    tensors = make_tensors(0, **SIZES)
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.1.mlp.{name}.weight"] = tensors[f"model.layers.1.mlp.{name}.weight"][:8].clone()
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"][:, :8].clone()
    save_model(tmp_path / "a", tensors)
    assert make_plan(load(f"merge_method: passthrough\nmodels:\n- model: {tmp_path}/a\n")).outputs


FAMILIES = json.loads((Path(__file__).parents[1] / "data" / "agreement.json").read_text())
MADE_BY = FAMILIES.pop("transformers")


def problems_of(config, shapes):
    findings = Findings()
    outputs = [SimpleNamespace(name=name, shape=tuple(shape)) for name, shape in shapes.items()]
    check_agreement(config, "config.json", outputs, findings)
    return findings.problems


def inner_of(config):
    return config.get("text_config", config)


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_transformers_agree(name):
    """Frozen from tiny models (``make_agreement.py``); every size that is known is missed where it is another."""
    config, shapes = FAMILIES[name]["config"], FAMILIES[name]["shapes"]
    known = shapes_of(inner_of(config)["model_type"])
    assert known and not problems_of(config, shapes)
    keys = {key for shape in known.values() for size in shape for key in re.findall("[a-z_]+", size)}
    stated = {key for key in keys if isinstance(inner_of(config).get(key), int)} - {"num_key_value_heads", "head_dim"}
    assert len(stated) >= 2
    for key in sorted(stated):
        changed = json.loads(json.dumps(config))
        inner_of(changed)[key] += 7
        if not any(key in size for end, shape in known.items() for size in shape if ends(shapes, end)):
            continue
        assert problems_of(changed, shapes), key


def ends(shapes, end):
    return any(f".{re.sub('[.][0-9]+[.]', '.N.', name)}".endswith(f".{end}") for name in shapes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_frozen_models_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    import make_agreement

    config, shapes = make_agreement.shapes_of(name, make_agreement.models()[name])
    assert not problems_of(config, shapes)
    if transformers.__version__ == MADE_BY:
        assert shapes == FAMILIES[name]["shapes"]
