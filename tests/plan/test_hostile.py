"""Values of the wrong kind in configs, adapters and tokenizers: a plan, or one error that a user can act on."""

from __future__ import annotations

import contextlib
import json

import pytest
from checkpoint_files import write_adapter
from tiny_models import make_tensors, save_model

from fastmerge.errors import FastmergeError
from fastmerge.plan import make_plan
from fastmerge.recipe import load

WHOLE = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n"
SLICED = "merge_method: passthrough\nslices: [{sources: [{model: %s, layer_range: [0, 1]}]}]\n"
ODD = [-1, 0, 2**70, "2", 1e400, float("nan"), True, None, [1], [None, None], {}, {"a": 1}]


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_model(tmp_path / name, make_tensors(seed, hidden=16, inner=24, vocab=32, layers=2))
    return tmp_path


def plans(*recipes):
    for recipe in recipes:
        with contextlib.suppress(FastmergeError):
            make_plan(load(recipe))


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "key",
    [
        "num_hidden_layers", "model_type", "vocab_size", "hidden_size", "num_attention_heads", "head_dim",
        "tie_word_embeddings", "text_config", "layer_types", "architectures", "quantization_config", "dtype",
        "rope_scaling", "eos_token_id", "auto_map",
    ],
)  # fmt: skip
def test_configs(key, models):
    for odd in ODD:
        for name in "ab":
            change(models / name / "config.json", **{key: odd})
        plans(WHOLE, SLICED % "a")


@pytest.mark.parametrize(
    "key",
    [
        "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "peft_type", "layers_to_transform",
        "base_model_name_or_path", "task_type", "modules_to_save", "use_dora", "use_rslora", "bias",
        "target_parameters", "init_lora_weights", "fan_in_fan_out", "trainable_token_indices",
    ],
)  # fmt: skip
def test_adapters(key, models):
    write_adapter(models / "lora", {"model.layers.0.self_attn.q_proj": (16, 16)})
    for odd in ODD:
        change(models / "lora" / "adapter_config.json", **{key: odd})
        plans(WHOLE.replace("model: a", "model: a+lora"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", '{"model": {"vocab": {"a": -1}}}'),
        ("tokenizer.json", '{"model": {"vocab": [["a"]]}}'),
        ("tokenizer.json", '{"model": 5}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": 1e30}}, "added_tokens": {"x": 1}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": 5}}}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": 1}]}'),
        ("special_tokens_map.json", '{"eos_token": {"content": [1]}}'),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("tekken.json", '{"vocab": [{"rank": "x"}], "config": {}}'),
        ("vocab.txt", "\ufeffa\n\n\n"),
        ("tokenizer.model", "\n\xff\xff\xff\xff\xff"),
    ],
)
def test_tokenizers(name, text, models):
    for model in "ab":
        (models / model / name).write_text(text)
    plans(WHOLE, WHOLE + "tokenizer_source: union\n", WHOLE + "tokenizer_source: base\nchat_template: auto\n")
