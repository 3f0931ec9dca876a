"""Adapters of every kind that PEFT saves, folded into their base: equal to its ``merge_and_unload``."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastmerge
from fastmerge.errors import InvalidInput

peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
transformers = pytest.importorskip("transformers")

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": False}  # fmt: skip
BOTH = ["q_proj", "up_proj"]


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | changes))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64))


def fold(tmp_path, model, config):
    """Return what fastmerge folds and what PEFT folds, float32, by name."""
    torch.manual_seed(0)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    tuned.save_pretrained(adapter)
    expected = tuned.merge_and_unload().state_dict()
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    fastmerge.merge(recipe, tmp_path / "out", ram="64MiB")
    return load_file(tmp_path / "out" / "model.safetensors"), expected


def check(folded, expected):
    assert folded
    for name, tensor in folded.items():
        torch.testing.assert_close(tensor, expected[name], rtol=2e-6, atol=2e-6)


KINDS = {
    "plain": {"target_modules": BOTH},
    "rank stabilized": {"target_modules": BOTH, "use_rslora": True},
    "dora": {"target_modules": BOTH, "use_dora": True},
    "biases": {"target_modules": BOTH, "bias": "all"},
    "modules to save": {"target_modules": BOTH, "modules_to_save": ["lm_head", "norm"]},
    "embedding": {"target_modules": [*BOTH, "embed_tokens"]},
    "head": {"target_modules": [*BOTH, "lm_head"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_llama(tmp_path, kind):
    config = peft.LoraConfig(r=3, lora_alpha=7, task_type="CAUSAL_LM", init_lora_weights=False, **KINDS[kind])
    model = llama(attention_bias=True, mlp_bias=True) if kind == "biases" else llama()
    check(*fold(tmp_path, model, config))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flag", [True, False, None])
def test_the_base_decides_whether_weights_are_transposed(tmp_path, flag):
    """GPT-2's projections are stored as [in, out]; c_proj is square, so that its shape does not tell."""
    config = peft.LoraConfig(r=3, target_modules=["c_attn", "c_proj"], init_lora_weights=False, fan_in_fan_out=True)
    model = gpt2()
    folded, expected = fold(tmp_path, model, config)
    check(folded, expected | {"transformer." + n: t for n, t in expected.items()})
    path = tmp_path / "adapter" / "adapter_config.json"
    changed = json.loads(path.read_text()) | {"fan_in_fan_out": flag}
    path.write_text(json.dumps(changed))
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}
    fastmerge.merge(recipe, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], folded[name]) for name in folded)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("theirs", "ours"), [("model.", ""), ("", "language_model."), ("model.", "model.language_model.")]
)
def test_prefixes_that_differ(tmp_path, theirs, ours):
    """Adapters of a model that was loaded by another class: the one prefix under which all names fit."""
    config = peft.LoraConfig(r=2, target_modules=BOTH, init_lora_weights=False)
    folded, _ = fold(tmp_path, llama(), config)
    base = load_file(tmp_path / "base" / "model.safetensors")

    def renamed(name):
        return ours + name.removeprefix(theirs) if name.startswith(theirs) and not name.startswith("lm_head") else name

    save_file({renamed(name): t for name, t in base.items()}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}
    notes = fastmerge.check(recipe).notes
    assert sum("folded in there" in note for note in notes) == 1
    fastmerge.merge(recipe, tmp_path / "moved")
    moved = load_file(tmp_path / "moved" / "model.safetensors")
    assert all(torch.equal(moved[renamed(name)], tensor) for name, tensor in folded.items())


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_the_base_ties(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    fold(tmp_path, llama(tie_word_embeddings=True), config)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    head = {f"base_model.model.lm_head.lora_{side}.weight": torch.ones(shape) for side, shape in
            (("A", (2, 32)), ("B", (64, 2)))}  # fmt: skip
    save_file(load_file(path) | head, path)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}
    with pytest.raises(InvalidInput, match=r"changes lm_head.weight, .*: it ties its head to the embedding"):
        fastmerge.check(recipe)


@pytest.mark.filterwarnings("ignore")
def test_a_factor_that_is_not_finite(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    fold(tmp_path, llama(), config)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}
    words = r"adapter_model.safetensors: model.layers.1.*: holds 1 NaN, the first at .0, 0."
    with pytest.raises(fastmerge.FastmergeError, match=words):
        fastmerge.merge(recipe, tmp_path / "never")
    assert not os.path.exists(tmp_path / "never")
