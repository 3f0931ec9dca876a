"""What configs say of single layers, after slices: rewritten where the config can say it, else noted."""

from __future__ import annotations

import json

import pytest
from tiny_models import make_tensors, save_model

# Six layers, put together as 2 3 4 5 0 1 2.
LAYERS, ORDER = 6, [2, 3, 4, 5, 0, 1, 2]
SLICES = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [2, 6]}]
  - sources: [{model: a, layer_range: [0, 3]}]
"""


def planned(plan_of, tmp_path, monkeypatch, text=SLICES, **config):
    monkeypatch.chdir(tmp_path)
    tensors = make_tensors(layers=LAYERS, hidden=8, inner=8, vocab=8)
    for name in "ab":
        save_model(name, tensors, **(config if name == "a" else {}))
    plan = plan_of(text)
    return json.loads(plan.files["config.json"].text), plan


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        # An entry per layer: Qwen3-Next, Zamba 2, Llama 4, DeepSeek, OpenELM, MiniMax, GPT-Neo.
        ("layer_types", list("abcdef"), list("cdefabc")),
        ("no_rope_layers", [1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 1, 1]),
        ("moe_layer_freq", [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1]),
        ("ffn_multipliers", [1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 1, 2, 3]),
        ("block_configs", [{"n": i} for i in range(6)], [{"n": i} for i in ORDER]),
        ("compression_ratios", [1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2, 1]),
        # A letter per layer: Nemotron-H.
        ("hybrid_override_pattern", "M-M*ME", "M*MEM-M"),
        # Numbers of layers: Qwen MoE, Mllama, LFM 2, Zamba 2, Bamba, xLSTM, Step 3.
        ("mlp_only_layers", [0, 3], [1, 4]),
        ("mlp_only_layers", [], []),
        ("cross_attention_layers", [2, 5], [0, 3, 6]),
        ("full_attn_idxs", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]),
        ("moe_layers", [1], [5]),
        ("hybrid_layer_ids", [4], [2]),
        ("attn_layer_indices", [3, 0], [1, 4]),
        ("slstm_at", [5], [3]),
        ("exit_layers", [-1], [3]),
        ("moe_layers_enum", "1,2,3", "0,1,5,6"),
        # Counted from 1: Kimi Linear.
        ("linear_attn_config", {"kda_layers": [1, 2, 4, 5], "full_attn_layers": [3, 6]},
         {"kda_layers": [2, 3, 5, 6], "full_attn_layers": [1, 4, 7]}),
        ("ssm_cfg", {"d_state": 6, "attn_layer_idx": [1]}, {"d_state": 6, "attn_layer_idx": [5]}),
        # By number: heads that transformers has cut.
        ("pruned_heads", {"0": [1], "3": [2]}, {"1": [2], "4": [1]}),
        # A pattern that is repeated: RecurrentGemma, Exaone 4.
        ("block_types", ["r", "r", "a"], ["a", "r", "r", "a", "r", "r", "a"]),
        ("sliding_window_pattern", "LLG", "GLLGLLG"),
        # So many layers at an end: DeepSeek, Qwen 2, Gemma 3n, Ernie.
        ("first_k_dense_replace", 0, 0),
        ("max_window_layers", 28, 28),
        ("num_kv_shared_layers", 6, 7),
        # Periods that all layers keep.
        ("expert_layer_period", 2, 2),
        ("decoder_sparse_step", 1, 1),
    ],
)  # fmt: skip
def test_rewritten(plan_of, tmp_path, monkeypatch, key, before, after):
    config, plan = planned(plan_of, tmp_path, monkeypatch, **{key: before})
    assert config[key] == after and plan.notes == ()
    assert config["num_hidden_layers"] == len(ORDER)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_layer_period", 4),
        ("full_attention_interval", 3),
        ("global_attn_every_n_layers", 3),
        ("interleave_moe_layer_step", 4),
        ("sliding_window_pattern", 5),
        ("first_k_dense_replace", 1),
        ("num_kv_shared_layers", 2),
        ("attention_types", [[["global", "local"], 3]]),
    ],
)
def test_noted(plan_of, tmp_path, monkeypatch, key, value):
    config, plan = planned(plan_of, tmp_path, monkeypatch, **{key: value})
    assert config[key] == value
    (note,) = plan.notes
    assert f"describes the layers of a by {key} ({value!r})" in note


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_feature_layer", [1, 2]),
        ("vision_config", {"num_hidden_layers": 6, "layer_types": list("abcdef"), "fullatt_block_indexes": [1]}),
        ("audio_config", {"num_hidden_layers": 2, "layers": [1]}),
        ("mtp_layers_block_type", ["a", "b"]),
        ("eos_token_id", [1, 2, 3, 4, 5, 0]),
        ("suppress_tokens", [1, 2]),
        ("rope_scaling", {"rope_type": "longrope", "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}),
        ("model_type", "llamas"),
        ("id2label", {"0": "no", "1": "yes"}),
        ("block_sizes", [2, 4]),
        ("layers_per_stage", [2, 4]),
        ("num_attention_heads", 4),
        ("text_encoder", {"num_layers": 3, "exit_layers": [1]}),
        ("time_step_limit", [0.0, 1.0]),
        ("torch_dtype", "bfloat16"),
    ],
)
def test_what_is_not_about_these_layers(plan_of, tmp_path, monkeypatch, key, value):
    config, plan = planned(plan_of, tmp_path, monkeypatch, **{key: value})
    assert config[key] == value and plan.notes == ()


def test_periods_that_lists_state_as_well(plan_of, tmp_path, monkeypatch):
    config, plan = planned(plan_of, tmp_path, monkeypatch, sliding_window_pattern=6, layer_types=list("aaaaab"))
    assert config["layer_types"] == list("aaabaaa") and plan.notes == ()


def test_layers_that_stay_where_they_are(plan_of, tmp_path, monkeypatch):
    same = "merge_method: passthrough\nslices:\n" + "".join(
        f"  - sources: [{{model: a, layer_range: [{i}, {i + 3}]}}]\n" for i in (0, 3)
    )
    settings = {
        "attn_layer_period": 4,
        "first_k_dense_replace": 1,
        "mlp_only_layers": [5, 0],
        "layer_types": list("abcdef"),
    }
    config, plan = planned(plan_of, tmp_path, monkeypatch, same, **settings)
    assert {key: config[key] for key in settings} == settings and plan.notes == ()


def test_settings_of_the_model_that_gives_the_layer(plan_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = make_tensors(layers=LAYERS, hidden=8, inner=8, vocab=8)
    save_model("a", tensors, layer_types=list("abcdef"), mlp_only_layers=[], first_k_dense_replace=1)
    save_model("b", tensors, layer_types=list("uvwxyz"), mlp_only_layers=[4], first_k_dense_replace=2)
    text = SLICES.replace("{model: a, layer_range: [2, 6]}", "{model: b, layer_range: [1, 5]}")
    plan = plan_of(text)
    config = json.loads(plan.files["config.json"].text)
    assert config["layer_types"] == list("vwxyabc")
    assert config["mlp_only_layers"] == [3]
    assert any("by first_k_dense_replace (2)" in note or "by first_k_dense_replace (1)" in note for note in plan.notes)


def test_a_config_without_a_number_of_layers(plan_of, tmp_path, monkeypatch):
    """Nemotron-H in transformers 5: the list says how many there are."""
    monkeypatch.chdir(tmp_path)
    save_model("a", make_tensors(layers=LAYERS, hidden=8, inner=8, vocab=8), layers_block_type=list("abcdef"))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    del config["num_hidden_layers"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    written = json.loads(plan_of(SLICES).files["config.json"].text)
    assert written["layers_block_type"] == list("cdefabc") and "num_hidden_layers" not in written


def test_every_key_that_counts_the_layers(plan_of, tmp_path, monkeypatch):
    text = {"num_hidden_layers": 6, "n_layer": 6}
    config, _ = planned(plan_of, tmp_path, monkeypatch, text_config=text, num_layers=6)
    assert (config["num_hidden_layers"], config["num_layers"]) == (7, 7)
    assert config["text_config"] == {"num_hidden_layers": 7, "n_layer": 7}
