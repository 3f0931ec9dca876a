"""Configs that differ where the shapes do not show it: heads are refused, the rest is noted."""

from __future__ import annotations

import json
import shutil

import pytest

from fastmerge.errors import InvalidInput

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0}


def edit(name, **changes):
    """Change the config of a model; None removes a key."""
    with open(f"{name}/config.json") as file:
        config = json.load(file) | changes
    with open(f"{name}/config.json", "w") as file:
        json.dump({key: value for key, value in config.items() if value is not None}, file)


@pytest.fixture(autouse=True)
def equal_files(family):
    """``b`` is ``a``, so that nothing but the configs differs."""
    shutil.rmtree("b")
    shutil.copytree("a", "b")


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"rope_theta": 1e4}, {"rope_theta": 1e6}, "rope_theta (1000000.0, there 10000.0)"),
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "rope_theta (10000"),
        ({"rope_theta": 1, "rope_scaling": None}, {"rope_theta": 1, "rope_scaling": LLAMA3}, "rope_type ('llama3', "),
        ({"rope_scaling": LLAMA3}, {"rope_scaling": LLAMA3 | {"factor": 32.0}}, "factor (32.0, there 8.0)"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "full_attention.rope_theta (1000000.0,",
        ),
        ({}, {"rms_norm_eps": 1e-6}, "rms_norm_eps (1e-06, there 1e-05)"),
        ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, "hidden_act ('gelu', there 'silu')"),
        ({}, {"sliding_window": 4096}, "sliding_window (4096, there None)"),
        (
            {"sliding_window": 4096, "use_sliding_window": True},
            {"sliding_window": 4096, "use_sliding_window": False},
            "sliding_window (None, there 4096)",
        ),
        ({"eos_token_id": 1}, {"eos_token_id": [1, 2]}, "eos_token_id ([1, 2], there 1)"),
        ({"layer_types": list("abab")}, {"layer_types": list("abba")}, "layer_types (['a', 'b', 'b', 'a'], there"),
        ({"num_experts_per_tok": 2}, {"num_experts_per_tok": 4}, "num_experts_per_tok (4, there 2)"),
        ({"text_config": {"n_layer": 4, "hidden_act": "a"}}, {"hidden_act": "b"}, "hidden_act ('b', there 'a')"),
        ({"vision_config": {"act": "a"}}, {"vision_config": {"act": "b"}}, "vision_config.act ('b', there 'a')"),
    ],
)  # fmt: skip
def test_notes(plan_of, there, here, said):
    edit("a", **there)
    edit("b", **here)
    (note,) = plan_of(LINEAR).notes
    assert "b/config.json differs from that of a in " in note and said in note
    assert note.endswith("; the output has the config of a")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 2},
        {"num_key_value_heads": 1, "num_attention_heads": 2},
        {"head_dim": 8},
        {"vision_config": {"num_heads": 2}},
    ],
)
def test_heads_are_refused(plan_of, changes):
    edit("a", head_dim=16, vision_config={"num_heads": 1})
    edit("b", **{"head_dim": 16, "vision_config": {"num_heads": 1}} | changes)
    with pytest.raises(
        InvalidInput, match=r"b/config.json: differs from that of a in .*cut into other heads"
    ) as caught:
        plan_of(LINEAR)
    assert len(caught.value.problems) == 1
    (note,) = plan_of(LINEAR, allow_mixed_types=True).notes
    assert "b/config.json differs from that of a in" in note


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({}, {"head_dim": 16, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}),
        ({"transformers_version": "4.1.0", "bos_token_id": 1}, {"transformers_version": "5.0.0", "bos_token_id": 2}),
        ({"architectures": ["A"], "torch_dtype": "bfloat16"}, {"dtype": "float32", "use_cache": False}),
        ({"attention_dropout": 0.0, "initializer_range": 0.02}, {"attention_dropout": 0.1, "initializer_range": 0.01}),
        ({"sliding_window": 4096, "use_sliding_window": False}, {"sliding_window": None}),
    ],
)  # fmt: skip
def test_what_says_nothing_about_the_weights(plan_of, there, here):
    edit("a", **there)
    edit("b", **here)
    assert plan_of(LINEAR).notes == ()


def test_many_differences_are_one_note(plan_of):
    edit("a", **{f"key{i}": 0 for i in range(9)})
    edit("b", **{f"key{i}": 1 for i in range(9)})
    (note,) = plan_of(LINEAR).notes
    assert "key5 (1, there 0) and 3 more keys" in note


def test_lists_with_an_entry_per_layer_are_rewritten_by_slices(plan_of):
    edit("a", layer_types=list("abab"))
    edit("b", layer_types=list("abba"))
    slices = "".join(f"  - sources: [{{model: {name}, layer_range: [0, 2]}}]\n" for name in "ab")
    assert plan_of(f"merge_method: passthrough\nslices:\n{slices}").notes == ()
