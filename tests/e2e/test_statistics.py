"""Statistics of a model of transformers, from its folder: their names are those of its checkpoint."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import fastmerge.statistics

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=8,
        bos_token_id=0, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate("abcdefg?")}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(path)
    return path


@pytest.mark.slow
def test_names_are_those_of_the_checkpoint(folder, tmp_path):
    stored = load_file(folder / "model.safetensors")
    texts = ["a b c d", "e f g a b"]
    fastmerge.statistics.fisher(folder, texts, tmp_path / "fisher.safetensors")
    fisher = load_file(tmp_path / "fisher.safetensors")
    assert {name: t.shape for name, t in fisher.items()} == {name: t.shape for name, t in stored.items()}
    assert all(t.isfinite().all() and t.any() for t in fisher.values())
    fastmerge.statistics.grams(folder, texts, tmp_path / "grams.safetensors")
    grams = load_file(tmp_path / "grams.safetensors")
    layer = "model.layers.0.mlp.up_proj.weight"
    assert layer in grams and grams[layer].shape == (16, 16)
    assert set(grams) - {"lm_head.weight"} < set(stored)
    assert torch.linalg.eigvalsh(grams[layer].double()).min() > -1e-6
